"""Patterns that fit nothing are refused before the work that makes the dictionaries."""

import pytest

from monolex.errors import UserError
from monolex.patterns import planned_names, require_fitting
from monolex.run_toml import RunConfig, run_config

BASE = {
    "model": {"model": "demo"},
    "harvest": {"sites": ["resid_post.*"]},
    "train": {
        "a": {"kinds": ["tied", "batchtopk"], "alphas": [0.006], "ks": [16], "ratios": [2.0]},
        "b": {"kinds": ["topk"], "ks": [8], "ratios": [1.0], "target": "mlp_out", "sites": ["mlp_in.1"]},
    },
    "baselines": {"c": {"kinds": ["pca", "pca-topk", "neurons"], "match": ["a"]}},
    "controls": {"train": {"d": {"kinds": ["tied"], "alphas": [0.5], "ratios": [1.0]}}},
}


def run(tmp_path, **tables) -> RunConfig:
    return run_config({**BASE, **tables}, tmp_path / "run.toml")


def test_names_are_those_that_are_made(tmp_path):
    names = set(planned_names(run(tmp_path)))
    assert names == {
        *("tied-a6e-3-r2-s0", "batchtopk-k16-r2-s0", "topk-k8-r1-s0-to-mlp_out.0", "pca", "pca-topk-k*", "neurons"),
    }


@pytest.mark.parametrize(
    "pattern",
    [
        "tied-*",
        "tied-a6e-3-r2-s0",
        "pca-topk-*",
        "pca-topk-k24",
        "*-s0",
        "neurons",
        "resid_post.1/tied-x",
        "tied-x@10",
        "pca*",
    ],
)
def test_what_fits_passes(pattern, tmp_path):
    require_fitting(run(tmp_path, features={"dictionaries": [pattern]}))


@pytest.mark.parametrize(
    "pattern",
    ["tied-a0.006-*", "pca-topk", "ica", "batchtopk-k16-r4-s0", "pca-topk-24", "tied-a0.5-r1-s0", "ica-topk-*"],
)
def test_what_fits_nothing_is_refused_with_the_nearest(pattern, tmp_path):
    for table in ({"features": {"dictionaries": [pattern]}}, {"patch": {"ioi": {"exact": [pattern]}}}):
        with pytest.raises(UserError, match="the run makes none like it"):
            require_fitting(run(tmp_path, **table))
    with pytest.raises(UserError, match=r"of \[patch.ioi\].*did you mean 'tied-a6e-3-r2-s0'"):
        require_fitting(run(tmp_path, patch={"ioi": {"dictionaries": ["tied-a6e-3-r2-s9"]}}))
