import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from helpers.counted_stores import SITES, dense_codes, found_run, gather
from helpers.fake_store import fake_store
from helpers.tiny_texts import make_tokenizer

from monolex.activations.stored import stored_model
from monolex.cli import main
from monolex.dictionaries.base import DictionaryConfig
from monolex.dictionaries.listing import RunDictionary, choose, run_dictionaries
from monolex.errors import UserError
from monolex.features.answer import Known, NumberHit, PromptHit, TokenHit
from monolex.features.displayed import displayed_token
from monolex.features.find import by_token, find
from monolex.features.known import open_store
from monolex.features.prompt_activations import tokenise
from monolex.features.query import COLUMNS, OPERATORS, FindConfig, condition
from monolex.model.hooks import capture
from monolex.model.load import wrap
from monolex.text.characters import alone

PROMPT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return found_run(tmp_path_factory.mktemp("found"))


def prompt_codes(run, member):
    """Codes on every token of the prompt, from one plain forward: the separator, then the text."""
    lm = stored_model(run / "activations")
    ids = make_tokenizer()(PROMPT, add_special_tokens=False)["input_ids"]
    x = capture(lm, torch.tensor([[0, *ids]]), [member.site]).activations[member.site][0, 1:]
    return member.weights().encode(x).clamp_min(0)


@pytest.mark.parametrize("token", ["last", "any"])
def test_a_prompt_finds_what_dense_codes_say(run, token):
    found = find(run, FindConfig(prompt=PROMPT, token=token, limit=7))
    for member in run_dictionaries(run):
        codes = prompt_codes(run, member)
        values = codes[-1] if token == "last" else codes.max(0).values
        hits = [row for row in found.rows if (row.site, row.dictionary) == (member.site, member.name)]
        wanted = sorted(((-float(v), i) for i, v in enumerate(values) if v > 0))[:7]
        assert [hit.feature for hit in hits] == [i for _, i in wanted]
        assert len(hits) > 0
        with_store = open_store(member)
        for hit, (value, feature) in zip(hits, wanted, strict=True):
            assert isinstance(hit, PromptHit)
            assert hit.activation == pytest.approx(-value, rel=1e-5)
            assert float(codes[hit.position, feature]) == pytest.approx(hit.activation, rel=1e-5)
            summary = with_store.feature(feature).summary
            assert hit.known.density == summary.density
            assert hit.known.dense == (summary.density > 0.1)
            assert hit.known.top_token == (None if summary.top_token is None else with_store.text(summary.top_token))
            assert hit.of_max == (pytest.approx(hit.activation / summary.max) if summary.max else None)


MARKUP = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>"


@pytest.mark.parametrize("text", [MARKUP, f"<s>{MARKUP}"])
def test_a_prompt_s_markup_is_special_tokens(run, text):
    """A chat's markup reaches the model as in its training, behind one separator."""
    lm, spelled = stored_model(run / "activations"), make_tokenizer()
    ids = spelled(MARKUP, add_special_tokens=False)["input_ids"]
    assert [ids[0], ids[-1], ids.count(3)] == [2, 2, 1]
    member = run_dictionaries(run)[0]
    x = capture(lm, torch.tensor([[0, *ids]]), [member.site]).activations[member.site][0, -1]
    codes = member.weights().encode(x).clamp_min(0)
    answer = find(run, FindConfig(prompt=text, dictionaries=(member.title,), limit=1))
    assert [hit.activation for hit in answer.rows if isinstance(hit, PromptHit)] == [pytest.approx(float(codes.max()))]
    assert [hit.token for hit in answer.rows if isinstance(hit, PromptHit)] == ["<|im_start|>"]
    assert f"{len(ids)} tokens, '<|im_start|>' " in answer.notes[0]
    assert answer.notes[1] == "3 of the tokens are special ones; with literal their names are ordinary text"
    assert ("begin with the separator" in answer.notes[-1]) == text.startswith("<s>")


def test_what_a_harvest_leaves_out_is_active_in_no_prompt(run):
    """Here the separator, which is written behind the text."""
    last = find(run, FindConfig(prompt=f"{PROMPT}<s>", token="last"))
    assert last.rows == () and any("'<s>' do not count, as in the harvest" in note for note in last.notes)
    every = find(run, FindConfig(prompt=f"{PROMPT}<s>", token="any", limit=7))
    plain = find(run, FindConfig(prompt=PROMPT, token="any", limit=7))
    assert [hit._replace(activation=0, of_max=0) for hit in every.rows] == [
        hit._replace(activation=0, of_max=0) for hit in plain.rows
    ]
    # of another length, so that products round differently
    assert [hit.activation for hit in every.rows] == pytest.approx([hit.activation for hit in plain.rows], rel=1e-5)
    assert not any("do not count" in note for note in plain.notes)


def test_a_prompt_s_characters_are_named_with_their_tokens(run):
    (note,) = find(run, FindConfig(prompt="é a")).notes
    assert note.endswith(r"tokens, 'é' ('\xc3' '\xa9') ' ' 'a'") or note.endswith(r"tokens, 'é' ('\xc3' '\xa9') ' a'")


def test_a_literal_prompt_spells_markup_out(run):
    texts = tokenise(stored_model(run / "activations"), [MARKUP, "<s>a"], literal=True)
    expected = make_tokenizer()([MARKUP, "<s>a"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert texts.tokens == expected and not {0, 2, 3} & {token for of_text in expected for token in of_text}
    assert texts.notes == ()
    literal = find(run, FindConfig(prompt=MARKUP, literal=True))
    assert f"{len(expected[0])} tokens, '<' '|' " in literal.notes[0] and len(literal.notes) == 1


def test_conditions_filter_a_prompt(run):
    plain = find(run, FindConfig(prompt=PROMPT, limit=999))
    sparse = find(run, FindConfig(prompt=PROMPT, limit=999, where=("density<0.1",)))
    wanted = [row for row in plain.rows if row.known.density is not None and row.known.density < 0.1]
    assert list(sparse.rows) == wanted
    assert 0 < len(wanted) < len(plain.rows)


def test_a_token_finds_what_dense_codes_say(run):
    tokenizer = make_tokenizer()
    text = " cat"
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    wanted = []
    for member in run_dictionaries(run):
        codes, tokens = dense_codes(run, member)
        mass, count = codes[tokens == token].double().sum(0), (codes[tokens == token] > 0).sum(0)
        total = codes.double().sum(0)
        for feature in (mass > 0).nonzero().flatten().tolist():
            by_token = [float(codes[tokens == t, feature].double().sum()) for t in tokens.unique().tolist()]
            if sorted(by_token)[-10:][0] <= float(mass[feature]):  # what the store keeps
                share = float(mass[feature] / total[feature])
                wanted.append((member.site, member.name, feature, share, int(count[feature])))
    found = find(run, FindConfig(on=text, limit=100_000))
    got = {(r.site, r.dictionary, r.feature): r for r in found.rows if isinstance(r, TokenHit)}
    assert got.keys() == {row[:3] for row in wanted}
    for *key, share, count in wanted:
        assert got[tuple(key)].share == pytest.approx(share, rel=1e-6)
        assert got[tuple(key)].n_active == count
    assert [r.share for r in got.values()] == sorted((r.share for r in got.values()), reverse=True)
    assert find(run, FindConfig(on=text, limit=3)).rows == found.rows[:3]


def test_a_text_that_no_token_shows_is_answered_by_the_nearest(run):
    with pytest.raises(UserError, match=r"on = .cat cat. is how no token .* is shown; the nearest are .*' cat'"):
        find(run, FindConfig(on="cat cat"))


SHOWN = (" was", "was", ".", " s", "s", "  ", "\n", "\\n", alone("é".encode()[:1]), " ", " ", "#3", "Was ")


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> list[RunDictionary]:
    """A dictionary whose store has a feature for every token of :data:`SHOWN`."""
    path = tmp_path_factory.mktemp("shown") / "resid_post.0" / "main.sqlite"
    tokens = np.arange(len(SHOWN), dtype=np.int32).repeat(8)
    fake_store(path, np.eye(len(SHOWN), dtype=np.float32)[tokens], tokens, SHOWN).close()
    config = DictionaryConfig("tied", "relu", 12, 12, len(SHOWN), site="resid_post.0")
    return [RunDictionary("subject", "resid_post.0", "main", path.parent, config, path)]


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (" was", 0), ("was", 1), (".", 2), (" s", 3), ("s", 4), ("  ", 5), ("\n", 6), ("\\n", 7), (r"\xc3", 8),
        ("␣was", 0), ("␣␣", 5), ("␣×2", 5), ("↵", 6), ("#3", 11), ("#5", 5), (r"Was\u0020", 12), ("#10", 10),
    ],
)  # fmt: skip
def test_a_token_is_what_is_shown(shown, text, token):
    answer = by_token(shown, text, FindConfig(on=text))
    assert answer.notes[0].startswith(f"share of a feature's activation on token {token}, ")
    assert [(hit.feature, hit.share) for hit in answer.rows if isinstance(hit, TokenHit)] == [(token, pytest.approx(1))]


def test_tokens_that_look_the_same_are_told_apart_by_their_numbers(shown):
    with pytest.raises(UserError, match=r"on = ' ' is how 2 tokens are shown: say which by its number, #9 or #10"):
        displayed_token(shown, " ")
    with pytest.raises(
        UserError,
        match=r"on = 'WAS' is how no token of what was gathered is shown; the nearest are ' was', 'Was ', 'was', ",
    ):
        displayed_token(shown, "WAS")
    with pytest.raises(UserError, match=r"on = '#99' is how no token"):
        displayed_token(shown, "#99")


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
def test_numbers_are_those_of_the_stores(run, column, ascending):
    config = FindConfig(sort=column, where=("n_active>=2", "top_share < 1"), ascending=ascending, limit=9)
    rows = find(run, config).rows
    everything = [s for m in run_dictionaries(run) for s in open_store(m).summaries()]
    kept = [getattr(s, column) for s in everything if s.n_active >= 2 and s.top_share is not None and s.top_share < 1]
    wanted = sorted((value for value in kept if value is not None), reverse=not ascending)[:9]
    assert [getattr(row.summary, column) for row in rows if isinstance(row, NumberHit)] == wanted


@pytest.mark.parametrize("operator", OPERATORS)
def test_conditions_mean_what_they_say(run, operator):
    rows = find(run, FindConfig(where=(f"n_active {operator} 20",), limit=100_000)).rows
    compare = {"=": "==", **{o: o for o in OPERATORS if o != "="}}[operator]
    wanted = [s for m in run_dictionaries(run) for s in open_store(m).summaries() if eval(f"{s.n_active} {compare} 20")]
    assert len(rows) == len(wanted) > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dens<1", "did you mean 'density'"),
        ("density", "a column, an operator and a number"),
        ("density==1", "'==' is none of"),
        ("density=<1", "'=<' is none of"),
        ("density<10%", "'10%' is no number"),
        ("density<nan", "'nan' is no number"),
        ("density<1; DROP TABLE feature", "a column, an operator and a number"),
        ("density<1 OR 1=1", "a column, an operator and a number"),
        ("histogram>0", "is no number of a feature"),
    ],
)
def test_a_condition_is_read_strictly(text, said):
    with pytest.raises(UserError, match=said):
        condition(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nothing to find"),
        ({"prompt": "a", "on": "b"}, "--prompt and --on"),
        ({"prompt": "a", "sort": "max"}, "does not go with --prompt"),
        ({"sort": "maxx"}, "did you mean 'max'"),
        ({"prompt": ""}, "has no token"),
        ({"on": ""}, "is no token"),
        ({"sort": "max", "limit": 0}, "limit = 0"),
        ({"on": "b", "ascending": True}, "--ascending goes with --sort: leave it out"),
        ({"on": "b", "literal": True}, "--literal goes with --prompt or --contrast: leave it out"),
        ({"sort": "max", "text_field": "body"}, "--text-field goes with --contrast: leave it out"),
        ({"where": "max>0"}, "where = 'max>0' is one text: give a tuple"),
        ({"sort": "max", "dictionaries": "pca"}, "dictionaries = 'pca' is one text: give a tuple"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        FindConfig(**fields)


def test_dictionaries_are_chosen_by_site_name_and_pattern(run):
    found = run_dictionaries(run)
    assert [m.title for m in choose(found, ["resid_post.2/pca"])] == ["resid_post.2/pca"]
    assert [m.site for m in choose(found, ["pca"])] == list(SITES)
    assert choose(found, ["resid_post.0"]) == [m for m in found if m.site == SITES[0]]
    assert [m.name for m in choose(found, ["second/*"])] == ["second/topk-k4-r2-s0"]
    assert choose(found, []) == found
    with pytest.raises(UserError, match=r"dictionaries = 'resid_post.2/pac'.*did you mean 'resid_post.2/pca'"):
        choose(found, ["resid_post.2/pac"])


def test_a_run_without_evidence_answers_prompts_only(run, tmp_path):
    bare = tmp_path / "run"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("features"))
    rows = [row for row in find(bare, FindConfig(prompt=PROMPT)).rows if isinstance(row, PromptHit)]
    full = [row for row in find(run, FindConfig(prompt=PROMPT)).rows if isinstance(row, PromptHit)]
    assert rows == [row._replace(of_max=None, known=Known()) for row in full]
    assert {row.known.dense for row in rows} == {None}
    asked: list[dict[str, Any]] = [{"on": " cat"}, {"sort": "max"}, {"prompt": PROMPT, "where": ("max>0",)}]
    for fields in asked:
        with pytest.raises(UserError, match="nothing was gathered of resid_post.0/topk-k4-r2-s0"):
            find(bare, FindConfig(**fields))


def test_dictionaries_without_evidence_are_left_out_and_counted(run, tmp_path):
    some = tmp_path / "run"
    shutil.copytree(run, some)
    path = some / "features" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["data"]["stores"] = [store for store in raw["data"]["stores"] if store["name"] != "pca"]
    path.write_text(json.dumps(raw))
    asked: list[dict[str, Any]] = [{"on": " cat"}, {"sort": "max"}, {"prompt": PROMPT, "where": ("max>0",)}]
    for fields in asked:
        found, whole = (find(folder, FindConfig(**fields, limit=10**6)) for folder in (some, run))
        assert found.rows and found.rows == tuple(row for row in whole.rows if row.dictionary != "pca")
        assert found.notes[-1] == "nothing was gathered of 2 of the 8 dictionaries; they are left out"
    with pytest.raises(UserError, match="nothing was gathered of resid_post.0/pca"):
        find(some, FindConfig(sort="max", dictionaries=("pca",)))


def test_evidence_of_other_dictionaries_is_refused(run, tmp_path):
    stale = tmp_path / "run"
    shutil.copytree(run, stale)
    path = stale / "features" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["parents"] = dict.fromkeys(raw["parents"], "0" * 64)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="gather again"):
        find(stale, FindConfig(sort="max"))
    gather_again = stale / "features"
    shutil.rmtree(gather_again)
    gather(stale)
    assert find(stale, FindConfig(sort="max")).rows == find(run, FindConfig(sort="max")).rows


def test_the_verb_prints_a_table_or_json(run, capsys):
    asked = ["find", str(run), "--where", "density<0.1", "n_active>2", "--sort", "kurtosis", "--limit", "3"]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["site", "dictionary", "feature"] and len(lines) == 4
    assert main([*asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = find(run, FindConfig(sort="kurtosis", where=("density<0.1", "n_active>2"), limit=3)).rows
    assert [row["summary"]["kurtosis"] for row in rows] == [
        r.summary.kurtosis for r in found if isinstance(r, NumberHit)
    ]
    assert all(row["dense"] is False for row in rows)
    assert main(["find", str(run), "--where", "density<0", "--sort", "max"]) == 0
    assert "no feature is found" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["--prompt", "a", "--sort", "max"],
        ["--sort", "maximum"],
        ["--where", "max>a"],
        ["--on", "cat cat"],
        ["--prompt", "the cat " * 99],
        ["--sort", "max", "--dictionaries", "nothing-like-it"],
    ],
)
def test_bad_questions_exit_with_2_and_one_line(run, asked, capsys):
    assert main(["find", str(run), *asked]) == 2
    error = capsys.readouterr().err
    assert error.startswith("monolex: ") and error.count("\n") == 1


def test_a_prompt_beyond_the_model_is_refused_not_cut(run):
    with pytest.raises(UserError, match="prompt has more tokens than the 64 that .* takes; shorten it"):
        find(run, FindConfig(prompt="the cat " * 99))


def test_a_model_without_a_tokenizer_reads_no_text(run):
    lm = wrap(stored_model(run / "activations", "cpu").hf, None, "mute")
    with pytest.raises(UserError, match="mute has no tokenizer, so no text can be given to it"):
        find(run, FindConfig(prompt="a"), lm=lambda: lm)


def test_no_run_is_one_line(tmp_path, capsys):
    assert main(["find", str(tmp_path), "--sort", "max"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
