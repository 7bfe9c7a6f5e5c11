"""``find --contrast`` against a naive reference, with a planted concept, and where there is nothing to find."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.counted_stores import SITES, TRAINED, found_run
from helpers.tiny_texts import WORDS, write_jsonl
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import roc_auc_score

from monolex.activations.rule import RowRule
from monolex.activations.stored import stored_model
from monolex.cli import main
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.listing import RunDictionary, run_dictionaries
from monolex.errors import UserError
from monolex.features import contrast
from monolex.features.answer import ContrastHit
from monolex.features.contrast import GRID, by_contrast, read
from monolex.features.find import find
from monolex.features.prompt_activations import activations
from monolex.features.query import FindConfig
from monolex.model.hooks import capture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return found_run(tmp_path_factory.mktemp("contrast"))


@pytest.fixture(scope="module")
def lm(run):
    return stored_model(run / "activations")


def written(path: Path, count: int, seed: int, word: str = "") -> Path:
    """Different texts of some random words, with ``word`` (which no other text has) in the middle of each."""
    rng = np.random.default_rng(seed)
    texts, pool = [], [one for one in WORDS if one not in ("cat", "dogs")]
    for _ in range(count):
        words = [pool[i] for i in rng.integers(len(pool), size=rng.integers(4, 12))]
        words[len(words) // 2 : len(words) // 2] = [word] if word else []
        texts.append(f"{rng.integers(10**6)} " + " ".join(words))
    return write_jsonl(path, texts)


def naive(lm, member, texts, how):
    """Codes by text, one forward a text."""
    out = []
    for tokens in texts.tokens.tokens:
        ids = torch.tensor([[0, *tokens]])
        codes = member.weights().encode(capture(lm, ids, [member.site]).activations[member.site][0, 1:]).clamp_min(0)
        out.append({"max": codes.max(0).values, "mean": codes.mean(0), "last": codes[-1]}[how].numpy())
    peak = np.stack(out).max(0)
    return np.round(np.stack(out) / np.where(peak > 0, peak, 1) * GRID) / GRID * peak


@pytest.mark.parametrize("how", ["max", "mean", "last"])
def test_every_number_equals_a_naive_reference(run, lm, how, tmp_path):
    paths = (written(tmp_path / "a.jsonl", 13, 1, "cat"), written(tmp_path / "b.jsonl", 18, 2, "dogs"))
    config = FindConfig(contrast=paths, aggregate=how, limit=6, resamples=50)
    texts = read(paths, lm, config)
    assert (texts.positive.sum(), len(texts.positive)) == (13, 31)
    assert (texts.choosing[texts.positive].sum(), texts.choosing[~texts.positive].sum()) == (6, 9)
    chosen = [member for member in run_dictionaries(run) if member.name in (TRAINED, "pca")]
    found = by_contrast(chosen, lm, paths, config)
    held, everything = ~texts.choosing, []
    for member in chosen:
        codes = naive(lm, member, texts, how)
        tested = np.flatnonzero((codes > 0).any(0))
        split = [(codes[half], texts.positive[half]) for half in (texts.choosing, held)]
        ranked = [abs(roc_auc_score(split[0][1], split[0][0][:, f]) - 0.5) for f in tested]
        hits = [row for row in found.rows if (row.site, row.dictionary) == (member.site, member.name)]
        assert len(hits) == 6
        for place, hit in enumerate(hits):
            assert isinstance(hit, ContrastHit)
            column, labels = split[1][0][:, hit.feature], split[1][1]
            assert hit.auroc.value == pytest.approx(roc_auc_score(labels, column), abs=1e-6)
            assert hit.chosen_auroc == pytest.approx(roc_auc_score(split[0][1], split[0][0][:, hit.feature]), abs=1e-6)
            assert abs(hit.chosen_auroc - 0.5) == pytest.approx(sorted(ranked, reverse=True)[place])
            assert hit.more_in == ("A" if hit.chosen_auroc >= 0.5 else "B")
            assert hit.auroc.n == held.sum() and hit.auroc.over == "texts"
        for feature in tested:
            a, b = (split[1][0][split[1][1] == side, feature] for side in (True, False))
            same = np.ptp(np.concatenate([a, b])) == 0
            rarest = 2 / comb(len(a) + len(b), len(a))
            everything.append(1.0 if same else max(rarest, mannwhitneyu(a, b, method="asymptotic").pvalue))
    q = false_discovery_control(everything)
    for row in found.rows:
        assert isinstance(row, ContrastHit)
        assert np.isclose(q[np.isclose(everything, row.p, rtol=1e-4)], row.q, rtol=1e-3).any()


@pytest.mark.parametrize("how", ["max", "mean", "last"])
def test_what_does_not_count_is_in_no_text(run, lm, how, tmp_path, monkeypatch):
    """Where no row counts there is nothing to tell texts apart by, for a feature or for a probe."""
    paths = (written(tmp_path / "a.jsonl", 13, 1, "cat"), written(tmp_path / "b.jsonl", 18, 2, "dogs"))
    config = FindConfig(contrast=paths, aggregate=how, limit=6, resamples=50)
    chosen, texts = run_dictionaries(run)[:1], read(paths, lm, config)
    told = contrast._aggregate(lm, texts.tokens, chosen[0].site, chosen, config, Silent())
    assert told[0][chosen[0].name].any() and told[1].any()
    monkeypatch.setattr(RunDictionary, "rule", RowRule(limit=0.0))
    codes, pooled = contrast._aggregate(lm, texts.tokens, chosen[0].site, chosen, config, Silent())
    assert not codes[chosen[0].name].any() and not pooled.any()


def test_a_text_is_what_its_tokens_that_count_say():
    values = torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 9.0], [7.0, 7.0, 7.0]])[..., None]
    real = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    expected = {"mean": [2, 3, 0], "max": [3, 4, 0], "last": [3, 4, 0]}
    for aggregate, numbers in expected.items():
        assert contrast._over_tokens(values, real, aggregate)[:, 0].tolist() == numbers


class Silent:
    """A progress bar that nobody sees."""

    def update(self, _count: int) -> None: ...


def test_a_planted_concept_is_found_first(lm, tmp_path):
    site = SITES[0]
    # Row 17 reads what sets " cat" apart from other tokens in texts of their own; the rest are random.
    (cat,) = lm.tokenizer(" cat", add_special_tokens=False)["input_ids"]
    own = written(tmp_path / "own.jsonl", 40, 3, "cat")
    ids = [[0, *lm.tokenizer(json.loads(line)["text"])["input_ids"]] for line in own.read_text().splitlines()]
    x = torch.cat([capture(lm, torch.tensor([one]), [site]).activations[site][0] for one in ids])
    on_cat = torch.tensor([token == cat for one in ids for token in one])
    a, b = x[on_cat].mean(0), x[~on_cat].mean(0)
    rows = torch.randn(64, x.shape[1], generator=torch.Generator().manual_seed(3))
    rows[17] = a - b
    bias = torch.zeros(64)
    bias[17] = -(0.7 * a + 0.3 * b) @ rows[17]
    weights = {"W_enc": rows, "W_dec": rows, "b_enc": bias}
    weights |= {name: torch.zeros(x.shape[1]) for name in ("centre", "b_dec")}
    width = x.shape[1]
    shape = DictionaryConfig("untied", "relu", width, width, 64, site=site)
    Dictionary(shape, weights).save(tmp_path / "planted")
    paths = (written(tmp_path / "a.jsonl", 40, 1, "cat"), written(tmp_path / "b.jsonl", 40, 2, "dogs"))
    config = FindConfig(contrast=paths, limit=5, resamples=200)
    dictionary = RunDictionary("subject", site, "planted", tmp_path / "planted", shape)
    first, *_ = by_contrast([dictionary], lm, paths, config).rows
    assert isinstance(first, ContrastHit)
    assert (first.feature, first.more_in) == (17, "A")
    assert first.auroc.value is not None and first.auroc.value > 0.7 and first.q < 0.05
    swapped, *_ = by_contrast([dictionary], lm, (paths[1], paths[0]), config).rows
    assert isinstance(swapped, ContrastHit)
    assert (swapped.feature, swapped.more_in) == (17, "B")


def test_where_there_is_nothing_selection_does_not_show(run, lm, tmp_path):
    chosen = [member for member in run_dictionaries(run) if member.site == SITES[1]]
    hits: list[ContrastHit] = []
    probes = []
    for seed in range(6):
        paths = (written(tmp_path / "a.jsonl", 30, 10 + seed), written(tmp_path / "b.jsonl", 30, 50 + seed))
        found = by_contrast(chosen, lm, paths, FindConfig(contrast=paths, resamples=50, find_seed=seed))
        hits += [row for row in found.rows if isinstance(row, ContrastHit)]
        probes += [row.auroc.value for row in found.beside if row.what != "length in tokens"]
    held = [
        hit.auroc.value if hit.more_in == "A" else 1 - hit.auroc.value for hit in hits if hit.auroc.value is not None
    ]
    chose = [abs(hit.chosen_auroc - 0.5) + 0.5 for hit in hits]
    assert np.mean(chose) > 0.6
    assert abs(np.mean(held) - 0.5) < 0.05
    assert abs(np.mean(probes) - 0.5) < 0.1
    assert np.mean([hit.q < 0.05 for hit in hits]) < 0.05


def test_probe_and_difference_find_what_is_linear_and_random_does_not(run, lm, tmp_path):
    paths = (
        written(tmp_path / "a.jsonl", 40, 1, "cat cat cat"),
        written(tmp_path / "b.jsonl", 40, 2, "dogs dogs dogs"),
    )
    found = find(run, FindConfig(contrast=paths, resamples=50, dictionaries=(SITES[0],)), lm=lambda: lm)
    beside = {row.what: row for row in found.beside}
    assert list(beside) == ["length in tokens", "linear probe", "mean difference", "random direction"]
    values = {what: row.auroc.value or 0 for what, row in beside.items()}
    assert values["linear probe"] > 0.9 and values["mean difference"] > 0.8
    assert values["random direction"] < values["linear probe"]


def test_halves_are_by_text_and_seed(lm, tmp_path):
    paths = (written(tmp_path / "a.jsonl", 20, 1), written(tmp_path / "b.jsonl", 20, 2))
    one = read(paths, lm, FindConfig(contrast=paths))
    lines = paths[0].read_text().splitlines()
    paths[0].write_text("\n".join(reversed(lines)))
    again = read(paths, lm, FindConfig(contrast=paths))
    assert one.tokens == again.tokens and (one.choosing == again.choosing).all()
    assert read(paths, lm, FindConfig(contrast=paths, find_seed=1)).tokens != one.tokens


def test_forward_passes_stay_small_whatever_the_width(run, lm, tmp_path, monkeypatch):
    paths = (written(tmp_path / "a.jsonl", 16, 1, "cat"), written(tmp_path / "b.jsonl", 16, 2, "dogs"))
    config = FindConfig(contrast=paths, resamples=10)
    chosen = [one for one in run_dictionaries(run) if one.name == TRAINED]
    whole, sizes = by_contrast(chosen, lm, paths, config), []

    def seen(*asked):
        for batch in activations(*asked):
            sizes.append(batch.real.numel())
            yield batch

    monkeypatch.setattr(contrast, "activations", seen)
    monkeypatch.setattr(contrast, "TOKENS", 64)
    again = by_contrast(chosen, lm, paths, config)
    assert [(row.site, row.feature) for row in again.rows] == [(row.site, row.feature) for row in whole.rows]
    assert len(sizes) > 2 and max(sizes) <= 64


def test_paths_may_be_texts(lm, tmp_path):
    paths = (written(tmp_path / "a.jsonl", 16, 1, "cat"), written(tmp_path / "b.jsonl", 16, 2, "dogs"))
    config = FindConfig(contrast=paths)
    texts = (str(paths[0]), str(paths[1]))
    assert read(texts, lm, config).tokens == read(paths, lm, config).tokens


def test_texts_in_markup_hold_special_tokens(lm, tmp_path):
    paths = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for path, word in zip(paths, ("cat", "dogs"), strict=True):
        write_jsonl(path, [f"<|im_start|>user {word} {number}<|im_end|>" for number in range(8)])
    texts = read(paths, lm, FindConfig(contrast=paths))
    assert all(tokens[0] == 2 and tokens[-1] == 3 for tokens in texts.tokens.tokens)
    assert any(note.startswith("32 of the tokens are special ones") for note in texts.notes)
    literal = read(paths, lm, FindConfig(contrast=paths, literal=True))
    assert not {2, 3} & {token for tokens in literal.tokens.tokens for token in tokens}


def test_what_is_left_out_is_counted(lm, tmp_path):
    paths = (written(tmp_path / "a.jsonl", 20, 1), written(tmp_path / "b.jsonl", 20, 2))
    first = paths[0].read_text().splitlines()
    shared = paths[1].read_text().splitlines()[:3]
    long = json.dumps({"text": "the cat " * 60})
    paths[0].write_text("\n".join([*first, first[0], *shared, "not json", long]))
    texts = read(paths, lm, FindConfig(contrast=paths))
    assert (texts.positive.sum(), (~texts.positive).sum()) == (21, 17)
    notes = " | ".join(texts.notes)
    assert "21 texts, 10 choose and 11 measure" in notes and "17 texts, 8 choose and 9 measure" in notes
    assert "1 repeated texts" in notes and "3 texts that are in both" in notes and "1 lines hold no text" in notes
    assert f"1 texts are cut at the {lm.max_context} positions" in notes
    assert max(map(len, texts.tokens.tokens)) == lm.max_context - 1


def test_too_few_texts_and_wrong_files_are_refused(lm, tmp_path):
    enough, few = written(tmp_path / "a.jsonl", 20, 1), written(tmp_path / "b.jsonl", 7, 2)
    with pytest.raises(UserError, match="b.jsonl has 7 different texts of its own and at least 8"):
        read((enough, few), lm, FindConfig(contrast=(enough, few)))
    with pytest.raises(UserError, match="is no file"):
        read((enough, tmp_path / "c.jsonl"), lm, FindConfig(prompt="x"))
    with pytest.raises(UserError, match="text_field = 'body': .* has no such field but text"):
        read((enough, enough), lm, FindConfig(contrast=(enough, enough), text_field="body"))
    with pytest.raises(UserError, match="has 0 different texts"):
        read((enough, enough), lm, FindConfig(prompt="x"))


def test_the_verb_prints_features_baselines_and_notes(run, tmp_path, capsys):
    paths = (written(tmp_path / "a.jsonl", 16, 1, "cat"), written(tmp_path / "b.jsonl", 16, 2, "dogs"))
    asked = ["find", str(run), "--contrast", *map(str, paths), "--limit", "2", "--where", "density<0.5"]
    assert main([*asked, "--resamples", "50"]) == 0
    out = capsys.readouterr().out
    assert "chosen_auroc" in out and "linear probe" in out and "features were tested" in out
    assert main([*asked, "--resamples", "50", "--json"]) == 0
    written_out = json.loads(capsys.readouterr().out)
    assert {row["more_in"] for row in written_out["rows"]} <= {"A", "B"}
    assert all(row["density"] < 0.5 for row in written_out["rows"])
    assert {row["what"] for row in written_out["beside"]} >= {"mean difference", "random direction"}
    assert main(["find", str(run), "--contrast", str(paths[0]), str(tmp_path / "no.jsonl")]) == 2
