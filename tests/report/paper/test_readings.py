"""What the numbers of a figure say: verdicts follow from intervals, controls are no part of them, reasons are given."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import causal_json, fake_scores
from helpers.causal_json import SITES, estimate
from helpers.fake_run import fake_run
from helpers.fake_store import fake_features
from helpers.paper_run import ALPHAS, logged_sweep

from monolex.artifact import finish, read_json, write_json
from monolex.errors import UserError
from monolex.interp.config import FigureConfig
from monolex.pages.eval_charts import entries
from monolex.report.paper import ablated, alive, axes, beside, evaluated, fidelity, patched, rooted, scored, tradeoff
from monolex.report.paper.figure import Missing

CONFIG = FigureConfig(resamples=20)


def measured_again(run: Path, rows: list[dict]) -> None:
    """An evaluation with other rows."""
    raw = read_json(run / "eval" / "manifest.json")
    files = {"metrics.json": write_json(run / "eval" / "metrics.json", rows)}
    finish(run / "eval", "eval", raw["config"], raw["parents"], files, raw["data"])


def moved(row: dict, shift: float) -> dict:
    """An estimate somewhere else."""
    return row | {name: row[name] + shift for name in ("value", "low", "high") if row[name] is not None}


@pytest.fixture(scope="module")
def fig2(tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("run")
    fake_scores.fake_scores(run, planned=fake_scores.plan(SITES))
    return scored.numbers("fig2", run, CONFIG)


def compared(content: dict, low: float, high: float) -> dict:
    """The figure with every difference in one place."""
    rows = [row | {"value": (low + high) / 2, "low": low, "high": high} for row in content["comparisons"]]
    return content | {"comparisons": rows}


def test_scores_are_compared_with_baselines_pair_by_pair(fig2):
    pairs = {(c["method"], c["against_model"], c["against"]) for c in fig2["comparisons"]}
    assert ("batchtopk-k24-r2-s0", "subject", "pca-topk-k24") in pairs
    assert ("batchtopk-k24-r2-s0", "subject", "pca-topk-k60") not in pairs  # the other is as sparse
    assert ("tied-a1e-3-r2-s0", "subject", "pca-topk-k60") in pairs
    assert {p for p in pairs if p[1] != "subject"} == {
        ("batchtopk-k24-r2-s0", model, "batchtopk-k24-r2-s0") for model in ("random", "shuffled")
    }


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "confirmed"), (-0.2, -0.1, "contradicted"), (-0.1, 0.1, "undecided")]
)
def test_the_verdict_on_scores_follows_from_the_intervals(fig2, low, high, verdict):
    reading = beside.above_all(compared(fig2, low, high))
    assert reading.verdict == verdict
    above = {"confirmed": 1}.get(verdict, 0)
    for grid in reading.grids:
        assert all(f"above at {above} of 1 site" in cell for row in grid.rows for cell in row[1:])
        assert set(grid.heads[1:]) == {f"than {kind}" for kind in ("neurons", "random", "pca", "ica")}


@pytest.mark.parametrize(("low", "high"), [(-0.2, -0.1), (-0.1, 0.1), (None, None)])
@pytest.mark.parametrize("model", ["random", "shuffled"])
def test_nothing_is_confirmed_where_a_control_model_is_not_below(fig2, low, high, model):
    content = compared(fig2, 0.1, 0.2)
    for row in content["comparisons"]:
        row |= {"low": low, "high": high} if row["against_model"] == model else {}
    for reading in (beside.above_all(content), beside.above_topk(content), beside.above_neurons(content)):
        assert reading.verdict == "undecided"
        assert reading.said[0].startswith("The same dictionary of a control model is not shown to be below")
    worse = [row | {"low": -0.2, "high": -0.1} for row in content["comparisons"]]
    assert beside.above_all(fig2 | {"comparisons": worse}).verdict == "contradicted"
    alone = [row for row in content["comparisons"] if row["against_model"] == "subject"]
    reading = beside.above_all(fig2 | {"comparisons": alone})
    assert reading.verdict == "confirmed" and reading.said[0].startswith("No dictionary of a control model")


def test_the_verdict_is_of_early_layers_where_the_claim_is(fig2):
    """What the paper itself shows of six layers: far above in the first ones, no gain in the last."""
    row = next(c for c in fig2["comparisons"] if c["against"] == "ica")
    rows = []
    for layer, (low, high) in enumerate([(0.1, 0.2)] * 4 + [(-0.1, 0.1)] * 2):
        site = {"layer": layer, "site": f"resid_post.{layer}", "low": low, "high": high}
        rows += [row | site, row | site | {"against_kind": "neurons"}]
    content = fig2 | {"comparisons": rows}
    reading = beside.above_all(content)
    assert reading.verdict == "confirmed" and "layers 0 and 1, the first third of the 6" in reading.said[1]
    assert beside.above_neurons(content).verdict == "undecided"  # of MLPs the claim is of all layers
    rows[0] |= {"low": -0.1}
    assert beside.above_all(content).verdict == "undecided"


def test_one_site_that_is_otherwise_leaves_it_undecided(fig2):
    content = compared(fig2, 0.1, 0.2)
    content["comparisons"][0] |= {"low": None, "high": None}
    reading = beside.above_all(content)
    assert reading.verdict == "undecided"
    cells = [cell for grid in reading.grids for row in grid.rows for cell in row[1:]]
    assert sum(cell.startswith("?") for cell in cells) == 1
    none = beside.above_all(fig2 | {"comparisons": []})
    assert none.verdict == "cannot say" and "This run cannot say: no trained dictionary" in none.said[0]


def test_each_claim_on_scores_is_of_its_own_baselines(fig2):
    content = compared(fig2, 0.1, 0.2)
    rows = [
        row | ({"value": -0.15, "low": -0.2, "high": -0.1} if row["against_kind"] == "neurons" else {})
        for row in content["comparisons"]
    ]
    assert beside.above_neurons(fig2 | {"comparisons": rows}).verdict == "contradicted"
    assert beside.above_topk(fig2 | {"comparisons": rows}).verdict == "confirmed"
    assert beside.above_all(fig2 | {"comparisons": rows}).verdict == "undecided"


def test_an_alpha_of_zero_is_a_control(tmp_path):
    methods = [m[:3] + (0.0,) + m[4:] if m[2] == "tied" else m for m in fake_scores.METHODS]
    fake_scores.fake_scores(tmp_path, planned=fake_scores.plan(SITES, methods))
    content = scored.numbers("fig2", tmp_path, CONFIG)
    assert {c["method"] for c in content["comparisons"]} == {"batchtopk-k24-r2-s0"}


def test_sizes_contradict_where_widened_intervals_are_apart_and_confirm_nothing(tmp_path):
    fake_scores.fake_scores(tmp_path, planned=fake_scores.sizes("resid_post.0"))
    content = scored.numbers("fig8", tmp_path, CONFIG)
    points = [p for panel in content["panels"] for s in panel["series"] for p in s["points"]]
    for point in points:
        point |= {"value": 0.4, "low": 0.3, "high": 0.5}
    assert scored.across_sizes(content).verdict == "undecided"
    points[0] |= {"value": 0.19, "low": 0.09, "high": 0.29}
    reading = scored.across_sizes(content)  # apart, as some of many are by chance
    assert reading.verdict == "undecided" and "0 of 2 curves" in reading.said[-1]
    assert re.search(r"widened for [1-9]\d* comparisons", reading.said[-1])
    points[0] |= {"value": 0.05, "low": 0.0, "high": 0.1}
    reading = scored.across_sizes(content)
    assert reading.verdict == "contradicted" and "1 of 2 curves" in reading.said[-1]
    assert "0.0500 [0, 0.100] at R = 0.5" in reading.said[0]


def test_moments_are_read_of_trained_dictionaries_alone(tmp_path):
    fake_scores.fake_scores(tmp_path, planned=fake_scores.plan(SITES))
    content = scored.numbers("table2", tmp_path, CONFIG)
    for table in content["tables"]:
        for row in table["rows"]:
            trained = row["model"] == "subject" and row["method"].startswith(("tied", "batchtopk"))
            for name in ("skew", "kurtosis"):
                row["moments"][name]["pearson"] |= {"low": 0.1 if trained else -0.5, "high": 0.3 if trained else -0.3}
    reading = scored.moments(content)
    assert reading.verdict == "confirmed" and all("resid_post.*" in said for said in reading.said)
    assert len(reading.said) == 4  # two methods, two explainers


def test_patches_are_cut_into_the_middle_site_and_the_others(tmp_path):
    for name, task in (("a", "greater-than"), ("b", "ioi")):
        content = causal_json.patch(sites=("resid_post.1", "resid_post.2", "resid_post.5")) | {"task": task}
        causal_json.artifact(tmp_path / "patch" / name, "patch", content)
    main, others = (patched.numbers(which, tmp_path, CONFIG) for which in ("fig3", "fig17"))
    assert main["made_of"] == ["patch/b"] and main["sites"] == ["resid_post.2"]
    assert others["sites"] == ["resid_post.1", "resid_post.5"]
    for content in (main, others):
        assert {c["site"] for c in content["curves"]} == set(content["sites"])
        assert {c["dictionary"].partition("/")[0] for c in content["claims"]} == set(content["sites"])
    assert [len(picture.panels) for picture in patched.pictures(others)] == [6]


def test_one_patched_site_leaves_nothing_for_the_others(tmp_path):
    with pytest.raises(Missing, match="no features were patched"):
        patched.numbers("fig3", tmp_path, CONFIG)
    causal_json.artifact(tmp_path / "patch" / "a", "patch", causal_json.patch(sites=SITES[:1]))
    with pytest.raises(Missing, match="at resid_post.1 alone, which Fig. 3 shows"):
        patched.numbers("fig17", tmp_path, CONFIG)


def fig3(tmp_path, **changed) -> dict:
    causal_json.artifact(tmp_path / "patch" / "a", "patch", causal_json.patch(**changed))
    return patched.numbers("fig3", tmp_path, CONFIG)


def test_the_verdict_on_patches_is_of_sparse_dictionaries_at_half_of_the_kl(tmp_path):
    content = fig3(tmp_path)
    reading = patched.reading(content)
    assert reading.verdict == "undecided" and "1 confirmed, 1 undecided of 2 comparisons" in reading.said[1]
    assert "α = 0" in reading.said[-1] and "tied-a0-r4-s0" in str(reading.grids)
    for claim in content["claims"]:
        if claim["level"] == 0.5 and "tied-a0-" not in claim["dictionary"]:
            claim["verdict"] = "confirmed"
    assert patched.reading(content).verdict == "confirmed"
    cells = {row[0]: row[1:] for row in reading.grids[0].rows}
    assert cells["resid_post.1/tied-a3e-3-r4-s0"][0] == "✓ 0.600\n[0.570, 0.630]"
    assert cells["resid_post.1/batchtopk-k32-r4-s0"][2] == "? n/a"
    assert "chosen on 12 of them and measured on the others" in reading.setting


def test_a_model_that_cannot_do_the_task_says_nothing(tmp_path):
    reading = patched.reading(fig3(tmp_path, able=False))
    assert reading.verdict == "cannot say" and "this model cannot do the task" in reading.said[0]
    assert not reading.grids


def test_ablations_are_read_by_their_paired_test(tmp_path):
    fake_features(tmp_path, {f"{SITES[0]}/tied-a3e-3-r4-s0": "tied"})
    first = causal_json.ablate(features=5)
    first["ablations"][0]["feature"] = 0
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", first)
    content = ablated.numbers(tmp_path, CONFIG)
    assert [each["ablation"]["feature"] for each in content["features"]] == [0, 18, 19] and content["of"] == 5
    # the store has eight features: it is of another dictionary than those that were ablated
    assert [bool(each["tokens"]) for each in content["features"]] == [True, False, False]
    reading = ablated.reading(content)
    assert reading.verdict == "confirmed" and "100 % of its activation is on ␣self, one of 1" in reading.said[0]
    assert "0.510 [0.459, 0.561] nats, without a matched active feature by 0.100" in reading.said[0]
    assert reading.said[-1] == "The first 3 of 5 ablated features are shown."
    assert [len(picture.panels) for picture in ablated.pictures(content)] == [3, 2, 2]
    ablation = content["features"][0]["ablation"]
    kl = ablation["kl"]
    for q, effect, verdict in ((0.3, 0.5, "undecided"), (1e-3, 0.01, "undecided"), (None, 0.5, "undecided")):
        ablation |= {"q": q}
        kl |= {"feature": estimate(effect)}
        assert ablated.reading(content).verdict == verdict
    content["features"] = content["features"][:1]
    ablation |= {"q": 1e-3}
    kl |= {"feature": estimate(0.01)}
    assert ablated.reading(content).verdict == "contradicted"
    ablation |= {"q": None}
    assert ablated.reading(content).verdict == "cannot say"


def test_ablations_are_judged_by_p_corrected_for_all_of_their_experiment(tmp_path):
    content = causal_json.ablate(features=4)
    for ablation, p in zip(content["ablations"], (0.04, 0.5, 0.6, 0.9), strict=True):
        ablation["kl"] |= {"p_feature": p}
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", content)
    alone = content | {"ablations": content["ablations"][:1]}
    for kept, verdict in ((content, "undecided"), (alone, "confirmed")):
        causal_json.artifact(tmp_path / "ablate" / "a", "ablate", kept)
        shown = ablated.numbers(tmp_path, CONFIG)
        assert ablated.reading(shown | {"features": shown["features"][:1]}).verdict == verdict


def test_token_histograms_keep_every_count(tmp_path):
    fake_features(tmp_path, {f"{SITES[0]}/tied-a3e-3-r4-s0": "tied"})
    content = causal_json.ablate()
    content["ablations"][0]["feature"] = 2
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", content)
    tokens = ablated.numbers(tmp_path, CONFIG)["features"][0]["tokens"]
    counted = np.array([*(each["counts"] for each in tokens["tokens"]), tokens["others"]])
    assert counted.sum() == tokens["n_active"] and counted.min() >= 0 and tokens["others"] != [0] * 10
    panel = ablated.pictures(ablated.numbers(tmp_path, CONFIG))[0].panels[0]
    blocks = [point for series in panel.series for point in series.points]
    for i, total in enumerate(counted.sum(0)):
        column = [p for p in blocks if p.x_interval and p.x_interval[0] == pytest.approx(i * tokens["maximum"] / 10)]
        spans = sorted(p.y_interval or (0, 0) for p in column)
        assert len(column) == (counted[:, i] > 0).sum()
        if total:
            assert spans[0][0] == pytest.approx(0.7) and spans[-1][1] == pytest.approx(total)
            assert all(a[1] == pytest.approx(b[0]) for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("sign", [1, -1])
def test_trees_have_no_verdict_for_children_are_chosen_for_their_effect(tmp_path, sign):
    causal_json.artifact(tmp_path / "tree" / "a", "tree", causal_json.tree())
    content = rooted.numbers(tmp_path, CONFIG)
    for node in content["trees"][0]["nodes"][1:]:
        node["effect"] = estimate(sign * abs(node["effect"]["value"]))
    reading = rooted.reading(content)
    assert reading.verdict == "no claim" and "is done by 1.344" in reading.said[0]
    assert reading.said[-1].startswith("Children are chosen for their effect")
    assert "The first 1 of 7 trees are shown." in rooted.reading({**content, "of": 7}).said
    assert rooted.reading({"of": 1, "trees": causal_json.tree(deep=False)["trees"]}).verdict == "no claim"


def test_features_are_compared_with_axes_over_all_of_them(tmp_path):
    fake_features(tmp_path, {f"{SITES[0]}/tied": "tied", f"{SITES[0]}/neurons": "neurons", f"{SITES[1]}/tied": "tied"})
    content = axes.numbers(tmp_path, CONFIG)
    (site,) = content["sites"]  # the other has no axes
    assert (site["site"], site["axis"]) == (SITES[0], 7 - site["feature"])
    reading = axes.reading(content)
    assert reading.verdict == "undecided"  # both stores are the same
    site["feature_shares"] = moved(site["feature_shares"], 5)
    assert axes.reading(content).verdict == "confirmed"
    site["feature_shares"] = moved(site["feature_shares"], -10)
    assert axes.reading(content).verdict == "contradicted"
    site["axis_shares"] = {"value": None, "low": None, "high": None, "reason": "fewer than 2 features"}
    assert "n/a (fewer than 2 features)" in axes.reading(content).said[0]
    left, right = axes.pictures(content)[0].panels
    assert not {s.colour for s in left.series} & {s.colour for s in right.series}


@pytest.fixture
def frontier(tmp_path) -> dict:
    return tradeoff.frontier_numbers(fake_run(tmp_path), CONFIG)


def test_every_step_of_alpha_trades(frontier):
    reading = tradeoff.frontier_reading(frontier)
    steps = 2 * len(SITES)
    assert reading.verdict == "confirmed" and reading.said[0].startswith(f"{steps} of {steps} steps")
    rows = copy.deepcopy(frontier["rows"])
    for row in rows:
        if row["metric"] == "fvu" and row["alpha"] == 3e-3 and row["model"] == "subject":
            row |= {"value": 0.001, "low": 0.0009, "high": 0.0011}
    broken = tradeoff.frontier_reading({**frontier, "rows": rows})
    # L0 still falls: half of the claim is no opposite
    assert broken.verdict == "undecided" and "0 do the opposite" in broken.said[0]
    for row in rows:
        if row["metric"] == "l0" and row["alpha"] == 3e-3 and row["model"] == "subject":
            row |= {"value": 400.0, "low": 399.0, "high": 401.0}
    both = tradeoff.frontier_reading({**frontier, "rows": rows})
    assert both.verdict == "undecided" and f"{len(SITES)} do the opposite" in both.said[0]
    for row in rows:
        row |= {"low": None, "high": None}
    assert tradeoff.frontier_reading({**frontier, "rows": rows}).verdict == "undecided"


def test_two_values_of_alpha_cannot_show_a_knee(frontier):
    rows = [row for row in frontier["rows"] if row["alpha"] != 3e-3]
    reading = tradeoff.frontier_reading({**frontier, "rows": rows})
    assert reading.verdict == "cannot say" and "it has 2 values of α" in reading.said[0]
    marks = [p for panel in tradeoff.frontier_pictures(frontier)[0].panels for s in panel.series for p in s.points]
    assert {p.y for p in marks} == {r["value"] for r in frontier["rows"] if r["metric"] == "fvu"}


def test_one_alpha_is_no_curve(tmp_path):
    run = fake_run(tmp_path)
    rows = [row for row in read_json(run / "eval" / "metrics.json") if row["alpha"] in (None, 3e-3)]
    measured_again(run, rows)
    with pytest.raises(Missing, match="no site has dictionaries of one recipe at two values of α"):
        tradeoff.frontier_numbers(run, CONFIG)
    (run / "eval" / "manifest.json").unlink()
    with pytest.raises(Missing, match="were not evaluated"):
        tradeoff.frontier_numbers(run, CONFIG)


def test_training_is_looked_at_near_the_moments_that_were_logged(tmp_path):
    logged_sweep(tmp_path)
    content = tradeoff.training_numbers(tmp_path, CONFIG)
    (panel,) = content["panels"]
    assert [(series["moment"], series["step"]) for series in panel["series"]] == [(0, 50), (1, 100), (2, 200), (3, 400)]
    for series in panel["series"]:
        assert [p["alpha"] for p in series["points"]] == list(ALPHAS)
        assert [p["fvu"] for p in series["points"]] == [pytest.approx(100 * a + 10 / series["step"]) for a in ALPHAS]
    reading = tradeoff.training_reading(content)
    assert reading.verdict == "undecided" and reading.said[0].startswith("At 4 of 4 moments")
    assert len(tradeoff.training_pictures(content)[0].panels[0].series) == 4


def test_a_log_that_is_damaged_or_empty(tmp_path):
    logged_sweep(tmp_path, fvu=None)
    with pytest.raises(Missing, match="no sweep whose training was logged"):
        tradeoff.training_numbers(tmp_path, CONFIG)
    log = tmp_path / "train" / "alphas" / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-3] + b"{,\n")
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        tradeoff.training_numbers(tmp_path, CONFIG)


def test_features_alive_of_residual_and_mlp_dictionaries(tmp_path):
    content = alive.alive_numbers(fake_run(tmp_path), CONFIG)
    known = {(d["site"], d["name"]) for d in content["dictionaries"]}
    assert len(known) == len(content["dictionaries"]) == 2 * 6  # the second seed is left out
    assert content["panels"][0]["x"] == "layer" and len(content["panels"]) == 1
    assert not any("never" in d for d in content["dictionaries"])
    reading = alive.alive_reading(content)
    assert reading.verdict == "confirmed" and "it has none" in reading.said[-2]
    assert "a density below 5.00e-04 counts as dead" in reading.setting
    content |= {"rows": alive.PAPER_ROWS}
    mlp = [d | {"site": "mlp_act.1", "alpha": 1e-3, "ratio": 0.5} for d in content["dictionaries"][:1]]
    assert "its widest with an α is of R = 0.5" in alive.alive_reading({**content, "dictionaries": mlp}).said[-1]
    wide = [d | {"ratio": 2.0, "low": 0.8, "high": 0.9} for d in mlp]
    assert alive.alive_reading({**content, "dictionaries": wide}).verdict == "contradicted"
    dead = [d | {"low": 0.1, "high": 0.2} for d in wide]
    assert alive.alive_reading({**content, "dictionaries": dead}).verdict == "confirmed"
    both = [*content["dictionaries"], *wide]
    assert alive.alive_reading({**content, "dictionaries": both}).verdict == "undecided"


@pytest.mark.parametrize(("site", "ratio"), [("resid_post.1", 1.0), ("mlp_act.1", 2.0)])
@pytest.mark.parametrize(("low", "high"), [(0.8, 0.9), (0.4, 0.6), (0.2, 0.3)])
def test_few_rows_say_that_features_are_alive_and_never_that_they_are_dead(site, ratio, low, high):
    shown = {"site": site, "name": "tied", "alpha": 1e-3, "ratio": ratio, "value": (low + high) / 2}
    content = {"rows": 2_000, "dictionaries": [shown | {"low": low, "high": high}]}
    living = "confirmed" if site.startswith("resid") else "contradicted"
    assert alive.alive_reading(content).verdict == (living if low > 0.5 else "cannot say")
    enough = alive.alive_reading(content | {"rows": alive.PAPER_ROWS}).verdict
    assert (enough == "undecided") == (low < 0.5 < high) and enough != "cannot say"


def test_alive_is_of_the_dictionaries_that_the_claim_is_of():
    known = {"site": "resid_post.1", "name": "a", "value": 0.9, "low": 0.8, "high": 1.0}
    dead = known | {"value": 0.1, "low": 0.0, "high": 0.2}
    counted = known | {"alpha": 1e-3, "ratio": 4.0}
    others = [dead | {"alpha": a, "ratio": r} for a, r in ((0.0, 1.0), (None, 16.0), (None, 4.0), (1e-3, 8.0))]
    content = {"rows": alive.PAPER_ROWS, "dictionaries": [counted, *others]}
    assert alive.alive_reading(content).verdict == "confirmed"
    assert alive.alive_reading(content | {"dictionaries": others}).verdict == "cannot say"


def test_sizes_have_a_panel_where_a_recipe_has_several(tmp_path):
    run = fake_run(tmp_path)
    rows = read_json(run / "eval" / "metrics.json")
    wide = [row | {"ratio": 8.0, "name": row["name"].replace("-r4-", "-r8-")} for row in rows if row["k"] == 8]
    shown = evaluated.recipes(entries(rows + wide))
    panels = evaluated.over_sizes(shown, "alive", "share")
    assert [panel["title"] for panel in panels] == list(SITES)
    for panel in panels:
        (series,) = panel["series"]
        assert series["label"] == "topk-k8" and [p["x"] for p in series["points"]] == [4.0, 8.0]


def test_densities_keep_every_feature(tmp_path):
    content = alive.density_numbers(fake_run(tmp_path), CONFIG)
    first, beside = content["panels"]
    assert [p["title"] for p in content["panels"]] == ["resid_post.1", "resid_post.1: beside control models"]
    for each in (*first["dictionaries"], *beside["dictionaries"]):
        assert sum(each["counts"]) + each["silent"] == each["features"] == 512
    assert len({(d["colour"], d["variant"]) for d in first["dictionaries"]}) == len(first["dictionaries"])
    assert [d["variant"] for d in beside["dictionaries"]][1:] == ["dashed", "dotted"]
    left, _ = alive.density_pictures(content)[0].panels
    assert {series.label for series in left.series} >= {"active 10 times in 20,000 rows"}
    assert "never active: tied-a0.0003-r4-s0 3 of 512" in alive.density_reading(content).said[0]


def test_biases_are_read_against_nearly_all(tmp_path):
    content = alive.bias_numbers(fake_run(tmp_path), CONFIG)
    assert alive.bias_reading(content).verdict == "confirmed"
    point = content["panels"][0]["series"][0]["points"][0]
    point |= {"value": 0.5, "low": 0.4, "high": 0.6}
    reading = alive.bias_reading(content)
    assert reading.verdict == "undecided" and "0.500 [0.400, 0.600]" in reading.said[0]
    point |= {"alpha": 0.0}
    reading = alive.bias_reading(content)
    assert reading.verdict == "confirmed" and "0.500 [0.400, 0.600]" in reading.said[1]
    only = [{**panel, "series": [{**s, "points": [point]} for s in panel["series"][:1]]} for panel in content["panels"]]
    assert alive.bias_reading({**content, "panels": only}).verdict == "cannot say"


def test_perplexity_is_beside_the_model_and_the_mean(tmp_path):
    content = fidelity.perplexity_numbers(fake_run(tmp_path), CONFIG)
    assert [panel["title"] for panel in content["panels"]] == list(SITES)
    for panel in content["panels"]:
        assert [level["label"] for level in panel["levels"]] == list(fidelity.LEVELS.values())
        assert {series["kind"] for series in panel["series"]} >= {"tied", "topk", "pca-topk", "neurons"}
        assert all(series["model"] == "subject" for series in panel["series"])
        assert panel["high"] == 2 * panel["levels"][1]["value"]
    assert fidelity.perplexity_reading(content).verdict == "confirmed"
    content["dictionaries"][0]["ce_added"] |= {"low": -0.1}
    reading = fidelity.perplexity_reading(content)
    assert reading.verdict == "undecided" and reading.said[0].startswith("11 of 12 reconstructions")


def test_pairs_are_called_by_what_sets_them_apart(tmp_path):
    run = fake_run(tmp_path)
    content = fidelity.similarity_numbers(run, CONFIG)
    assert {s["label"] for panel in content["panels"] for s in panel["series"]} == {"tied, another dictionary"}
    rows = read_json(run / "eval" / "metrics.json")
    pair = next(row for row in rows if row["metric"] == "mmcs")
    others = ("random directions", "tied-a0.00086-r4-s1", "tied-a0.003-r4-s0", "topk-k8-r4-s0")
    measured_again(run, [*rows, *(pair | {"other": other} for other in others)])
    labels = {s["label"] for panel in fidelity.similarity_numbers(run, CONFIG)["panels"] for s in panel["series"]}
    assert labels == {
        "tied, another seed",
        "random directions",
        "tied, another α",
        "tied, another kind",
        "tied, another dictionary",
    }
