import json
import shutil
from typing import Any

import pytest
from helpers.counted_stores import SITES, dense_codes, found_run, gather
from helpers.tiny_texts import make_tokenizer

from monolex.activations.stored import stored_model
from monolex.cli import main
from monolex.dictionaries.listing import choose, run_dictionaries
from monolex.errors import UserError
from monolex.features.answer import Known, NumberHit, PromptHit, TokenHit
from monolex.features.find import find
from monolex.features.known import open_store
from monolex.features.query import COLUMNS, OPERATORS, FindConfig, condition
from monolex.model.hooks import capture

PROMPT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return found_run(tmp_path_factory.mktemp("found"))


def prompt_codes(run, member):
    """Codes on every token of the prompt, from one plain forward: the separator, then the text."""
    import torch

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


def test_a_text_that_is_no_token_says_how_it_splits(run):
    with pytest.raises(UserError, match=r"on = .cat cat. is not one token of .* but \d+, .* \+ . cat.; give one"):
        find(run, FindConfig(on="cat cat"))


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
        ({"where": "max>0"}, "where = 'max>0' is one text: give a tuple"),
        ({"sort": "max", "dictionary": "pca"}, "dictionary = 'pca' is one text: give a tuple"),
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
    with pytest.raises(UserError, match=r"dictionary = 'resid_post.2/pac'.*did you mean 'resid_post.2/pca'"):
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
        find(some, FindConfig(sort="max", dictionary=("pca",)))


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


def test_the_verb_prints_a_table_and_writes_json(run, tmp_path, capsys):
    out = tmp_path / "found.json"
    asked = ["find", str(run), "--where", "density<0.1", "--where", "n_active>2", "--sort", "kurtosis", "--limit", "3"]
    assert main([*asked, "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["site", "dictionary", "feature"] and len(lines) == 4
    rows = json.loads(out.read_text())["rows"]
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
        ["--sort", "max", "--dictionary", "nothing-like-it"],
    ],
)
def test_bad_questions_exit_with_2_and_one_line(run, asked, capsys):
    assert main(["find", str(run), *asked]) == 2
    error = capsys.readouterr().err
    assert error.startswith("monolex: ") and error.count("\n") == 1


def test_no_run_is_one_line(tmp_path, capsys):
    assert main(["find", str(tmp_path), "--sort", "max"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
