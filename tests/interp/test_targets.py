"""Which dictionaries are explained, of a run that is folders and configurations alone."""

from dataclasses import asdict
from pathlib import Path

import pytest

from monolex.artifact import finish, open_artifact, write_json
from monolex.dictionaries import listing
from monolex.dictionaries.base import CONFIG, DictionaryConfig
from monolex.errors import UserError
from monolex.interp import targets as module
from monolex.interp.config import ExplainConfig
from monolex.interp.targets import candidates, targets

SITE = "resid_post.0"


def activations(folder: Path, fingerprint: str, sites: tuple[str, ...] = (SITE,)) -> Path:
    facts = {"model": {"name": "tiny", "fingerprint": fingerprint}, "sites": {site: {} for site in sites}}
    finish(folder, "activations", {}, {}, {}, facts)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained dictionary, and top-k baselines of three sizes; no activation is stored."""
    monkeypatch.setattr(listing, "constant_sites", lambda *_: {})
    run = tmp_path / "run"
    activations(run / "activations", "a")
    content = open_artifact(run / "activations").content
    named = {"train/main": [("untied", "relu", None)], "baselines/plain": [("pca-topk", "topk", k) for k in (2, 5, 16)]}
    for place, kinds in named.items():
        members = []
        for kind, activation, k in kinds:
            config = DictionaryConfig(kind, activation, 4, 4, 16, k=k, site=SITE)
            path = f"{SITE}/{kind}-{k}"
            write_json(run / place / path / CONFIG, asdict(config))
            members.append({"path": path, "site": SITE})
        made = "sweep" if place.startswith("train") else "baselines"
        finish(run / place, made, {}, {"activations": content}, {}, {"members": members})
    return run


@pytest.mark.parametrize(("l0", "k"), [(1.2, 2), (3.4, 2), (3.6, 5), (10.4, 5), (10.6, 16), (90.0, 16)])
def test_of_top_k_baselines_the_nearest_to_a_trained_l0_is_explained(run, monkeypatch, l0, k):
    monkeypatch.setattr(module, "Reader", lambda *_: None)
    monkeypatch.setattr(module.RunDictionary, "weights", lambda *_: None)
    monkeypatch.setattr(module, "mean_l0", lambda *_: [l0])
    chosen = targets(candidates(run, ExplainConfig()), ExplainConfig())
    assert {target.dictionary.name: target.l0 for target in chosen} == {"untied-None": l0, f"pca-topk-{k}": k}
    everything = ExplainConfig(matched=False)
    assert len(targets(candidates(run, everything), everything)) == 4


def test_activations_of_other_weights_under_the_same_name_are_refused(run, tmp_path):
    same, other, without = (tmp_path / name for name in ("same", "other", "without"))
    assert {t.activations for t in candidates(run, ExplainConfig(activations=str(activations(same, "a"))))} == {same}
    with pytest.raises(UserError, match="activations = .*other: those are of another model than the run's"):
        candidates(run, ExplainConfig(activations=str(activations(other, "b"))))
    with pytest.raises(UserError, match=f"no site {SITE} there; harvest it or give --sites"):
        candidates(run, ExplainConfig(activations=str(activations(without, "a", ("resid_post.1",)))))
