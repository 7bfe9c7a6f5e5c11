"""What the first screen says: numbers of the artefacts, and nothing where there are none."""

import re

import pytest
from helpers import causal_json
from helpers.fake_run import SITES, fake_run

from monolex.artifact import read_json
from monolex.pages.eval_charts import EvaluatedDictionary, entries
from monolex.report.findings import explained, findings, patched, reconstruction
from monolex.report.page import report


@pytest.fixture
def everything(tmp_path) -> list[EvaluatedDictionary]:
    return entries(read_json(fake_run(tmp_path) / "eval" / "metrics.json"))


def test_dictionaries_stand_beside_baselines_of_their_l0(everything):
    first, second = reconstruction(everything)
    assert "of several the one that misses least" in first  # a choice among results is said beside them
    alike = [e for e in everything if e.site == SITES[0] and e.kind in ("topk", "batchtopk") and e.value("l0") == 32]
    fvu = min(value for e in alike if (value := e.value("fvu")) is not None)
    assert first.startswith(
        f"With 32.0 active features a token, trained dictionaries miss {fvu:.3f} of the variance at 1"
    )
    assert "with as many random directions miss 0.930, PCA miss 0.410" in first  # at the other site none is as sparse
    assert "Better than all of them, intervals apart, at" in first
    assert second.startswith("On their reconstructions the model keeps ")


def test_complete_bases_and_dense_dictionaries_are_no_comparison(everything):
    assert "PCA miss 0.00" not in reconstruction(everything)[0]
    sparse = [e for e in everything if not (e.trained and (e.value("l0") or 0) <= 32)]
    assert reconstruction(sparse) == []


def test_nothing_is_said_without_baselines(tmp_path):
    alone = entries(read_json(fake_run(tmp_path, baselines=False) / "eval" / "metrics.json"))
    assert reconstruction(alone) == []
    page = report(tmp_path).read_text(encoding="utf-8")
    assert 'class="findings"' not in page and 'class="lead"' in page


def test_better_only_where_intervals_are_apart(everything):
    first = reconstruction(everything)[0]
    sites, wins = (int(re.search(pattern, first)[1]) for pattern in (r"at (\d+) sites?;", r"apart, at (\d+) of"))
    for entry in everything:
        if entry.kind == "pca-topk":
            entry.rows["fvu"] = {**entry.rows["fvu"], "low": 0.0}
    assert sites == wins == 1
    assert "apart, at 0 of" in reconstruction(everything)[0]


def test_patching_is_said_with_its_verdicts():
    patch = causal_json.patch()
    (told,) = patched("ioi", patch)
    assert "on other prompts than they were chosen on" in told and "resid_post.1" in told
    (unable,) = patched("ioi", causal_json.patch(able=False))
    assert unable.endswith("so patching says nothing of it.")
    assert patched("ioi", {**patch, "claims": []}) == []


def test_the_best_explained_dictionary_is_said_beside_its_site():
    def facts(name: str, value: float | None, *, trained: bool, model: str = "subject", site: str = "a") -> dict:
        cell = {"value": value, "low": 0.1, "high": 0.9, "n": 12, "over": "features and documents", "reason": ""}
        head = {"name": name, "trained": trained, "model": model, "site": site, "step": None, "kind": "tied"}
        return head | {
            "explainers": {"token": {"top_and_random": cell}, "other": {"top_and_random": cell | {"value": None}}}
        }

    listed = [
        facts("mine", 0.5, trained=True),
        facts("worse", 0.3, trained=True),
        facts("controlled", 0.9, trained=True, model="random"),
        facts("pca", 0.25, trained=False),
        facts("elsewhere", 0.75, trained=False, site="b"),
        facts("none", None, trained=True),
    ]
    (told,) = explained({"dictionaries": listed})
    assert (
        "0.500 [0.100, 0.900]" in told
        and "12 features of mine at a" in told
        and "pca 0.250. Dictionaries of control models score 0.900." in told
    )
    assert explained({"dictionaries": []}) == []


def test_the_page_begins_with_what_was_found(tmp_path):
    page = report(fake_run(tmp_path)).read_text(encoding="utf-8")
    assert page.index('class="findings"') < page.index("<nav") < page.index('class="facts"')
    assert "<h1>Features of " in page
    assert findings(tmp_path, [], {}) == []
