"""The plan of a run.toml: which stages, of what, in which folders; nothing is run."""

from pathlib import Path
from typing import Any

import pytest

from monolex.errors import UserError
from monolex.plan import Step, plan, waits
from monolex.run_toml import run_config

RUN = Path("run")
SITES = ["resid_post.0", "resid_post.1", "mlp_out.1"]
TOML: dict[str, Any] = {
    "model": {"model": "m"},
    "corpus": {"corpus": "c"},
    "harvest": {"sites": SITES},
    "train": {"a": {"ks": [4], "kinds": ["topk"]}, "b": {"alphas": [0.1]}},
    "baselines": {"plain": {"match": ["a"]}},
    "controls": {"models": ["random", "shuffled"], "control_seed": 3, "train": {"small": {"sites": ["resid_post.*"]}}},
    "features": {},
    "patch": {"ioi": {}},
    "explain": {"paper": {}},
    "score": {"rules": {"explanations": "paper"}},
}


def planned(**changes: Any) -> dict[str, Step]:
    return {step.name: step for step in plan(run_config({**TOML, **changes}, Path("run.toml")), RUN)}


def test_every_stage_is_made_of_the_folders_that_its_inputs_name():
    steps = planned()
    sources = [RUN / "train" / "a", RUN / "train" / "b", RUN / "baselines" / "plain"]
    controls = {
        name: (RUN / "controls" / name / "activations", [RUN / "controls" / name / "train" / "small"])
        for name in ("random", "shuffled")
    }
    of_subject = {"activations": RUN / "activations", "sources": sources}
    assert steps["eval"].inputs == {**of_subject, "controls": controls}
    assert steps["features"].inputs == of_subject
    assert steps["train a"].inputs == {"activations": RUN / "activations"}
    assert steps["train random small"].inputs == {"activations": controls["random"][0]}
    assert steps["baselines plain"].config.match == (str(RUN / "train" / "a"),)
    assert steps["patch ioi"].inputs == {"run": RUN}
    assert steps["score rules"].inputs == {"run": RUN, "explanations": RUN / "explain" / "paper"}
    # what must be done before, and what a change of it does again
    everything = {
        RUN / "activations",
        *sources,
        *(path for first, rest in controls.values() for path in (first, *rest)),
    }
    assert set(steps["eval"].needs) == everything
    assert set(steps["patch ioi"].needs) == everything | {RUN / "features"}
    assert set(steps["features"].needs) == {RUN / "activations", *sources}
    assert set(steps["baselines plain"].needs) == {RUN / "activations", RUN / "train" / "a"}
    assert steps["score rules"].needs == (RUN / "explain" / "paper",)
    order = list(steps)
    for step in steps.values():
        before = {steps[name].folder for name in order[: order.index(step.name)]}
        assert set(step.needs) <= before, step.name


def test_control_models_are_the_subject_of_other_weights_on_the_same_text():
    steps = planned()
    for control in ("random", "shuffled"):
        harvest = steps[f"harvest {control}"]
        assert harvest.folder == RUN / "controls" / control / "activations"
        assert (harvest.inputs["model"].control, harvest.inputs["model"].control_seed) == (control, 3)
        assert harvest.inputs["model"].model == "m" and harvest.inputs["corpus"] == steps["harvest"].inputs["corpus"]
    assert steps["harvest"].inputs["model"].control == "none"


@pytest.mark.parametrize(
    ("tables", "sites"),
    [
        ({"small": {"sites": ["resid_post.*"]}}, ("resid_post.0", "resid_post.1")),
        ({"small": {"sites": ["mlp_out.1"]}, "other": {"sites": ["resid_post.0"]}}, ("mlp_out.1", "resid_post.0")),
        # one that names none trains on all
        ({"small": {"sites": ["mlp_out.1"]}, "other": {}}, tuple(SITES)),
        # a star of what is not harvested stays, to be refused by its name
        ({"small": {"sites": ["mlp_act.*"]}}, ("mlp_act.*",)),
    ],
)
def test_of_a_control_model_the_sites_of_its_tables_are_harvested(tables, sites):
    steps = planned(controls={"models": ["random"], "train": tables})
    assert steps["harvest random"].config.sites == sites
    assert steps["harvest"].config.sites == tuple(SITES)


def test_a_sweep_that_goes_on_with_anothers_dictionary_waits_for_it():
    def order(init: str, *names: str) -> list[list[int]]:
        tables = {name: {"ks": [4], "kinds": ["topk"]} for name in names}
        tables["b"]["init"] = str(RUN.resolve() / init)
        return waits(list(planned(train=tables, baselines={}, controls={}).values())[:3])

    assert order("elsewhere", "a", "b") == [[], [0], [0]]
    assert order("train/a/resid_post.0/topk-k4", "a", "b") == order("train/a", "a", "b") == [[], [0], [0, 1]]
    with pytest.raises(UserError, match=r"train/a' of \[train\.b\] is made later; move its table below that one's"):
        order("train/a", "b", "a")
