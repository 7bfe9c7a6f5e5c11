import sys
import types

import numpy as np
import pytest
import torch
from helpers.counted_stores import SITES, TRAINED, found_run

import monolex
from monolex.artifact import finish, write_json
from monolex.dictionaries.base import load
from monolex.errors import UserError
from monolex.features.find import find
from monolex.features.query import FindConfig
from monolex.interp.score import cards
from monolex.live.interventions import Intervention
from monolex.live.prompts import from_text
from monolex.live.reading import Wanted, read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return found_run(tmp_path_factory.mktemp("lexicon"))


def test_names_lead_to_dictionaries(run):
    lexicon = monolex.open(run)
    assert lexicon.sites == list(SITES)
    site = lexicon.site(SITES[0])
    assert site.dictionaries == [TRAINED, f"second/{TRAINED}", "topk-k8-r2-s0", "neurons", "pca"]
    entry = site.dictionary(TRAINED)
    stored = load(run / "train" / "first" / SITES[0] / TRAINED)
    assert torch.equal(entry.weights.W_dec, stored.W_dec)
    assert len(entry) == len(entry.store) == stored.d_sae
    again = site.dictionary(f"second/{TRAINED}")
    assert torch.equal(again.weights.W_dec, load(run / "train" / "second" / SITES[0] / TRAINED).W_dec)


def test_a_feature_is_its_evidence_and_direction(run):
    entry = monolex.open(run).site(SITES[1]).dictionary(TRAINED)
    alive = next(s.id for s in entry.store.summaries() if s.n_active)
    feature = entry.feature(alive)
    assert feature.summary == entry.store.feature(alive).summary == feature.evidence.summary
    assert torch.allclose(feature.direction, entry.weights.directions()[alive])
    assert f"Feature {alive} of {SITES[1]}/{TRAINED}: active in" in repr(feature)
    assert "\n" not in repr(feature) + repr(entry) + repr(monolex.open(run)) + repr(monolex.open(run).site(SITES[1]))


def test_numbers_of_arrays_name_features(run):
    entry = monolex.open(run).site(SITES[0]).dictionary("pca")
    for number in (np.int64(3), torch.tensor(3)):
        assert repr(entry.feature(number)) == repr(entry.feature(3))
        assert entry.feature(number).summary.id == entry.store.feature(number).summary.id == 3


def test_a_notebook_shows_the_card(run, monkeypatch):
    card = types.ModuleType("monolex.pages.card")

    def card_html(evidence, meta, text, scored):
        return f"<p>{evidence.summary.id} {meta['name']} {text(token)} {scored}</p>"

    def explained(folder, *, only):
        assert folder == run and only == ("subject", SITES[0], "pca")
        return {("subject", SITES[0], "pca"): {3: ["explained"]}, ("random", SITES[0], "pca"): {4: ["elsewhere"]}}

    setattr(card, "card_html", card_html)  # noqa: B010
    monkeypatch.setitem(sys.modules, "monolex.pages.card", card)
    monkeypatch.setattr(cards, "scored", explained)
    entry = monolex.open(run).site(SITES[0]).dictionary("pca")
    # a token that the evidence of one feature need not name, such as that of the nearest embedding
    token, said = entry.store.rows("SELECT token, text FROM vocabulary")[0]
    assert said and entry.feature(3)._repr_html_() == f"<p>3 pca {said} ['explained']</p>"
    assert entry.feature(4)._repr_html_() == f"<p>4 pca {said} ()</p>"


def test_without_evidence_there_are_still_directions(tmp_path):
    entry = monolex.open(found_run(tmp_path, stores=False)).site(SITES[0]).dictionary("pca")
    feature = entry.feature(0)
    assert feature.direction.norm() == pytest.approx(1)
    assert "nothing gathered" in repr(feature) and feature._repr_html_() is None
    with pytest.raises(UserError, match="nothing was gathered of resid_post.0/pca"):
        _ = feature.summary
    assert entry.metrics == {}


def test_metrics_are_the_rows_of_the_evaluation(tmp_path):
    run = found_run(tmp_path, stores=False)
    pca = {"model": "subject", "site": SITES[0], "name": "pca", "other": ""}
    rows = [
        {**pca, "metric": "fvu", "value": 0.25},
        {**pca, "metric": "l0", "value": 32.0},
        {**pca, "other": "neurons", "metric": "mmcs", "value": 0.5},
        {**pca, "model": "random", "metric": "fvu", "value": 0.9},
        {**pca, "name": "neurons", "metric": "fvu", "value": 0.1},
    ]
    files = {"metrics.json": write_json(run / "eval" / "metrics.json", rows)}
    finish(run / "eval", "eval", {}, {}, files, {})
    assert monolex.open(run).site(SITES[0]).dictionary("pca").metrics == {"fvu": rows[0], "l0": rows[1]}


def test_finding_is_that_of_the_command_line(run):
    lexicon = monolex.open(run)
    assert lexicon.find(prompt="the cat", limit=2) == find(run, FindConfig(prompt="the cat", limit=2))
    assert lexicon.find(sort="max") == find(run, FindConfig(sort="max"))
    assert lexicon.model() is lexicon.model()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: monolex.open(run / "nothing"), "is no folder of a run"),
        (lambda run: monolex.open(run).site("resid_pots.2"), "did you mean 'resid_post.2'"),
        (lambda run: monolex.open(run).site(SITES[0]).dictionary("pac"), "did you mean 'pca'"),
        (lambda run: monolex.open(run).site(SITES[0]).dictionary("pca").feature(32), "features 0 to 31"),
        (lambda run: monolex.open(run).site(SITES[0]).dictionary("pca").feature(-1), "features 0 to 31"),
    ],
)
def test_names_that_do_not_exist_have_a_hint(run, call, said):
    with pytest.raises(UserError, match=said):
        call(run)


def test_a_prompt_tried_live_is_read_as_it_is_found(run):
    lexicon = monolex.open(run)
    live = lexicon.live()
    assert live is lexicon.live() and live.lm is lexicon.model()
    assert set(live.sites) == set(SITES) and f"{SITES[0]}/second/{TRAINED}" in live.titles
    text = "the cat sat on a"
    answer = read(live, from_text(live, text), Wanted(live.titles, 5))
    expected = find(run, FindConfig(prompt=text, limit=5, find_device="cpu")).rows
    for title in live.titles:
        tokens = answer.features[title]
        assert [token.counts for token in tokens] == [False] + [True] * (len(tokens) - 1), "the separator is not read"
        hits = [(row.feature, row.activation) for row in expected if f"{row.site}/{row.dictionary}" == title]
        assert [active.feature for active in tokens[-1].top] == [feature for feature, _ in hits]
        assert np.allclose([active.value for active in tokens[-1].top], [value for _, value in hits], rtol=1e-4)
    separator = live.run(answer.prompt, [Intervention(live.titles[0], 0, "add", 1.0, where=0)])
    assert separator.cost.computed == 0 and separator.notes[0].endswith(
        "at token 0: no token that it is meant for counts, so nothing changes"
    )
