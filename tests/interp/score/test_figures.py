"""The numbers of figures and tables: those of the artefacts, and only beside each other what can be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_scores import (
    EXACT,
    METHODS,
    SKIPPED,
    UNSAID,
    dictionary,
    fake_scores,
    line,
    plan,
    sizes,
    steps,
)

from monolex.artifact import finish, open_artifact, read_json
from monolex.config import identity
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig, FigureConfig
from monolex.interp.score.comparable import NoScores, ScoreSource, joined, sources
from monolex.interp.score.curves import labels
from monolex.interp.score.figures import TITLES, figure
from monolex.interp.score.tables import MOMENTS, table

RESIDUAL = ("resid_post.0", "resid_post.1")
FIGURES = tuple(TITLES)


def points(content, site=""):
    every = [point for panel in content["panels"] for curve in panel["series"] for point in curve["points"]]
    return [point for point in every if not site or point["site"] == site]


def means(run: Path, name: str, explainer: str, metric: str) -> dict[tuple[str, str, str], dict]:
    listed = read_json(run / "score" / name / "score.json")["dictionaries"]
    return {(d["model"], d["site"], d["name"]): d["explainers"][explainer][metric] for d in listed}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fake_scores(folder, "paper", plan((*RESIDUAL, "mlp_act.1")))
    fake_scores(folder, "more", plan(("resid_post.2",)) + sizes("resid_post.0") + steps("resid_post.1"))
    fake_scores(folder, "exact", plan(RESIDUAL), simulator=EXACT)
    return folder


@pytest.mark.parametrize(("which", "metric"), [("fig2", "top_and_random"), ("fig9", "random"), ("fig10", None)])
def test_points_are_the_means_of_the_artefacts(run, which, metric):
    content = figure(run, which, FigureConfig())
    json.dumps(content, allow_nan=False)
    assert content["metric"] == (metric or "top_and_random")
    for panel in content["panels"]:
        (explainer,), known = panel["explainers"], {}
        for name in panel["scores"]:
            known |= means(run, name, explainer, content["metric"])
        for curve in panel["series"]:
            for point in curve["points"]:
                wanted = known[curve["model"], point["site"], point["name"]]
                assert {key: point[key] for key in wanted} == wanted
                assert point["site"] == f"{panel['place']}.{point['x']}"
                assert point["skipped"] == {SKIPPED: 2} and (point["asked"], point["explained"]) == (10, 8)


def test_every_dictionary_is_drawn_once(run):
    content = figure(run, "fig2", FigureConfig(explainers=("token",), scores=("paper",)))
    (panel,) = content["panels"]
    drawn = [(curve["model"], point["site"], point["name"]) for curve in panel["series"] for point in curve["points"]]
    wanted = {(model, site, name) for site in RESIDUAL for model, name, *_ in METHODS}
    assert len(drawn) == len(set(drawn)) and set(drawn) == wanted


def test_other_simulators_modes_and_explainers_never_share_a_panel(tmp_path):
    for i, settings in enumerate(({}, {"simulator": EXACT}, {"mode": "modern"})):
        fake_scores(tmp_path, f"s{i}", plan((RESIDUAL[i % 2],)), **settings)
    for which in ("fig2", "fig9"):
        panels = figure(tmp_path, which, FigureConfig())["panels"]
        kinds = {(p["simulator"], p["mode"], *p["explainers"]) for p in panels}
        assert len(panels) == len(kinds) == 6 and len({p["title"] for p in panels}) == 6
        assert all(len(p["scores"]) == 1 for p in panels)


def test_artefacts_of_one_kind_are_joined(run):
    (first, second, *_) = [g.head["scores"] for g in joined(sources(run))]
    assert (first, second) == (["exact"], ["more", "paper"])
    panel = next(p for p in figure(run, "fig2", FigureConfig())["panels"] if p["simulator"] == "rules")
    tied = next(curve for curve in panel["series"] if curve["label"] == "tied-a1e-3-r2-s0")
    assert [point["x"] for point in tied["points"]] == [0, 1, 2]


def test_what_scores_the_same_again_stays_apart(tmp_path):
    fake_scores(tmp_path, "a", plan(RESIDUAL))
    fake_scores(tmp_path, "b", plan(RESIDUAL[:1]))
    panels = figure(tmp_path, "fig2", FigureConfig(explainers=("token",)))["panels"]
    assert [p["scores"] for p in panels] == [["a"], ["b"]] and len({p["title"] for p in panels}) == 2


@pytest.mark.parametrize(("change", "together"), [({"features": 9}, True), ({"fragment_tokens": 32}, False)])
def test_explanations_of_another_protocol_stay_apart(tmp_path, change, together):
    fake_scores(tmp_path, "a", plan(RESIDUAL[:1]))
    fake_scores(tmp_path, "b", plan(RESIDUAL[1:]))
    other = finish(tmp_path / "explain" / "b", "explain", identity(ExplainConfig(**change)), {}, {}, {})
    old = open_artifact(tmp_path / "score" / "b")
    finish(tmp_path / "score" / "b", "score", old.config, {"explanations": other.content}, old.files, old.data)
    assert len(joined(sources(tmp_path))) == (1 if together else 2)


@pytest.mark.parametrize("gone", [True, False])
def test_scores_of_older_explanations_stay_apart_and_are_drawn(tmp_path, gone):
    for name, site in zip("abc", (*RESIDUAL, "resid_post.2"), strict=True):
        fake_scores(tmp_path, name, plan((site,)))
    for name in "bc":
        folder = tmp_path / "explain" / name
        if gone:
            shutil.rmtree(folder)
        else:
            # of the same protocol, so that nothing but the content tells them apart
            finish(folder, "explain", open_artifact(folder).config, {"activations": "others"}, {}, {})
    assert [g.head["scores"] for g in joined(sources(tmp_path))] == [["a"], ["b"], ["c"]]
    panels = figure(tmp_path, "fig2", FigureConfig(explainers=("token",)))["panels"]
    assert [p["scores"] for p in panels] == [["a"], ["b"], ["c"]] and all(p["series"] for p in panels)


def test_explainers_together_are_series_of_their_own(run):
    content = figure(run, "fig2", FigureConfig(together=True, scores=("paper",)))
    (panel,) = content["panels"]
    assert len(panel["series"]) == 2 * len(METHODS) and panel["explainers"] == ["token", "pattern"]
    assert {"neurons, token", "neurons, pattern"} <= {curve["label"] for curve in panel["series"]}


def test_missing_scores_keep_their_place_and_reasons(tmp_path):
    fake_scores(tmp_path, planned=plan(("resid_post.0",)), lost=True)
    content = figure(tmp_path, "fig2", FigureConfig())
    assert len(points(content)) == 2 * len(METHODS) and all(p["value"] is None for p in points(content))
    assert all(p["reason"] and sum(p["missing"].values()) == 8 for p in points(content))
    assert [panel["chance"] for panel in content["panels"]] == [[], []]


def test_chance_is_the_mean_over_dictionaries_with_its_range(run):
    panel = figure(run, "fig2", FigureConfig(scores=("paper",), explainers=("token",)))["panels"][0]
    for level in panel["chance"]:
        known = [p["chance"]["value"] for curve in panel["series"] for p in curve["points"] if p["x"] == level["x"]]
        assert level["value"] == pytest.approx(np.mean(known)) and level["n"] == len(METHODS)
        assert (level["low"], level["high"]) == (min(known), max(known))
    detection = figure(run, "fig2", FigureConfig(metric="detection"))["panels"]
    assert {level["value"] for p in detection for level in p["chance"]} == {0.5}
    area = figure(run, "fig2", FigureConfig(metric="detection_auc"))["panels"]
    for level in (level for panel in area for level in panel["chance"]):
        assert level["value"] == pytest.approx(0.51)  # measured, not by definition
    assert {p["explainers"][0] for p in detection} == {"token"}  # nothing else was asked for it


def test_crowded_baselines_are_told_apart_by_whom_they_match():
    labelled = labels([facts for facts, _ in plan(("resid_post.0",))])
    assert labelled["subject", "resid_post.0", "pca-topk-k24"] == "pca-topk, as sparse as batchtopk-k24-r2-s0"
    assert labelled["subject", "resid_post.0", "pca-topk-k60"] == "pca-topk, as sparse as tied-a1e-3-r2-s0"
    assert labelled["subject", "resid_post.0", "ica-topk-k24"] == "ica-topk"
    assert labelled["random", "resid_post.0", "batchtopk-k24-r2-s0"] == "random model: batchtopk-k24-r2-s0"
    twins = [dictionary("subject", "resid_post.0", n, "neurons", None, None, 1.0, step=None) for n in ("a", "b")]
    assert set(labels(twins).values()) == {"neurons a", "neurons b"}
    near = [dictionary("subject", "s.0", f"pca-topk-k{k}", "pca-topk", None, k, 1.0, step=None) for k in (23, 25)]
    near.append(dictionary("subject", "s.0", "topk-k24", "tied", None, 24, 1.0, step=None))
    assert len(set(labels(near).values())) == 3


def test_sizes_are_followed_by_recipe_over_artefacts(run):
    content = figure(run, "fig8", FigureConfig(explainers=("token",)))
    (panel,) = content["panels"]
    tied = panel["series"][0]
    assert panel["place"] == "resid_post.0" and tied["label"] == "tied-a1e-3-s0"
    assert [(point["x"], point["name"]) for point in tied["points"]] == [
        (r, f"tied-a1e-3-r{r:g}-s0") for r in (0.5, 1.0, 2.0, 4.0)
    ]


def test_top_k_baselines_stand_beside_their_own_families_alone(tmp_path):
    fake_scores(tmp_path, planned=plan((*RESIDUAL, "mlp_act.1")))
    (panel, _) = figure(tmp_path, "fig18", FigureConfig())["panels"]
    kinds = {curve["kind"] for curve in panel["series"] if not curve["trained"]}
    assert panel["place"] == "resid_post" and kinds == {"pca", "pca-topk", "ica", "ica-topk"}
    fake_scores(tmp_path, planned=plan(RESIDUAL, METHODS[:6]))
    with pytest.raises(NoScores, match="fig18: none"):
        figure(tmp_path, "fig18", FigureConfig())


def test_recipes_of_one_size_are_left_out_and_baselines_stay(tmp_path):
    fake_scores(tmp_path, planned=plan(("resid_post.0",)) + sizes("resid_post.0"))
    (panel, _) = figure(tmp_path, "fig8", FigureConfig())["panels"]
    assert [p["x"] for p in panel["series"][0]["points"]] == [0.5, 1.0, 2.0, 4.0]
    assert "batchtopk-k24-s0" not in {curve["label"] for curve in panel["series"]}  # of one size alone
    assert {curve["label"] for curve in panel["series"] if not curve["trained"]} >= {"neurons", "random", "pca"}


@pytest.mark.parametrize("known", [False, True])
def test_training_ends_at_the_last_step_of_its_sweep(tmp_path, known):
    fake_scores(tmp_path, planned=plan(("resid_post.1",), METHODS[:1]) + steps("resid_post.1"))
    if known:
        members = [{"site": "resid_post.1", "name": "tied-a1e-3-r2-s0"}]
        finish(tmp_path / "train" / "residual", "sweep", {}, {}, {}, {"members": members, "steps": 741})
    (panel, _) = figure(tmp_path, "training", FigureConfig())["panels"]
    (curve,) = panel["series"]
    assert [p["x"] for p in curve["points"]] == [10, 100, 741 if known else None]
    assert curve["points"][-1]["name"] == "tied-a1e-3-r2-s0" and curve["label"] == "tied-a1e-3-r2-s0"


def test_checkpoints_are_in_no_other_figure(run):
    for which in ("fig2", "fig9", "fig8"):
        assert not [p for p in points(figure(run, which, FigureConfig())) if "@" in p["name"]]
    assert all("@" not in str(row["name"]) for t in table(run, "table2", FigureConfig())["tables"] for row in t["rows"])


@pytest.mark.parametrize("which", FIGURES)
def test_a_figure_without_data_says_what_makes_it(tmp_path, which):
    with pytest.raises(UserError, match="has no scores; run `monolex explain"):
        figure(tmp_path, which, FigureConfig())
    fake_scores(tmp_path, planned=plan(("attn_out.1",), METHODS[:3]))
    with pytest.raises(NoScores, match=f"^{which}: none of the .* scores .*; (explain and score|train |fit )"):
        figure(tmp_path, which, FigureConfig())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scores": ("papr",)}, "scores = 'papr': .* did you mean 'paper'"),
        ({"explainers": ("tokens",)}, "explainers = 'tokens': nothing of it was scored; did you mean 'token'"),
        ({"dictionaries": ("pqa",)}, "dictionaries = 'pqa': none like it was scored; did you mean 'pca'"),
    ],
)
def test_names_of_nothing_are_refused(run, settings, said):
    for make in (figure, table):
        with pytest.raises(UserError, match=said):
            make(run, "fig2" if make is figure else "table1", FigureConfig(**settings))


@pytest.mark.parametrize("settings", [{"rows": 0}, {"resamples": 0}, {"level": 1.0}, {"figure_seed": -1}])
def test_configs_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        FigureConfig(**settings)


def test_patterns_choose_dictionaries(run):
    content = figure(run, "fig2", FigureConfig(dictionaries=("neurons", "resid_post.1/pca"), scores=("paper",)))
    assert {(p["site"], p["name"]) for p in points(content)} == {
        ("resid_post.0", "neurons"),
        ("resid_post.1", "neurons"),
        ("resid_post.1", "pca"),
    }


def test_table_1_holds_the_first_features_as_they_come(run):
    content = table(run, "table1", FigureConfig(scores=("paper",), explainers=("token",), rows=7))
    json.dumps(content, allow_nan=False)
    (only,) = content["tables"]
    assert (only["site"], only["name"]) == ("resid_post.0", "tied-a1e-3-r2-s0")
    assert [row["feature"] for row in only["rows"]] == list(range(7)) and only["skipped"] == {SKIPPED: 2}
    known = plan(("resid_post.0",))[0]
    for row in only["rows"]:
        wanted = line(known[0], row["feature"], "token", "rules", known[1])
        assert row["text"] == wanted["text"] and row["score"] == wanted["scores"]["top_and_random"]
    assert only["rows"][6]["text"] is None and only["rows"][6]["score"]["reason"] == UNSAID


def test_table_1_of_several_dictionaries_and_explainers(run):
    config = FigureConfig(scores=("paper",), dictionaries=("resid_post.1/p*",), together=True, rows=2, metric="fuzz")
    tables = table(run, "table1", config)["tables"]
    assert [shown["name"] for shown in tables] == ["pca", "pca-topk-k24", "pca-topk-k60"]
    assert [(row["feature"], row["explainer"]) for row in tables[0]["rows"]] == [
        (0, "token"),
        (0, "pattern"),
        (1, "token"),
        (1, "pattern"),
    ]
    assert [row["score"]["reason"] for row in tables[0]["rows"][:2]] == ["", "not asked for"]


def test_table_2_correlates_over_features(run):
    content = table(run, "table2", FigureConfig(scores=("paper",), explainers=("token",), resamples=50))
    json.dumps(content, allow_nan=False)
    (only,) = content["tables"]
    planned = {(d["model"], d["site"], d["name"]): (d, level) for d, level in plan((*RESIDUAL, "mlp_act.1"))}
    pooled = {}
    for row in only["rows"]:
        place = row["site"].partition(".")[0]
        if row["name"] is None:
            scored = pooled[row["method"], place]
        else:
            known, level = planned[row["model"], row["site"], row["name"]]
            scored = [line(known, i, "token", "rules", level) for i in range(8)]
            pooled.setdefault((row["method"], place), []).extend(scored)
        assert row["features"] == len(scored) and sum(row["missing"].values()) == len(scored) // 4
        for moment in MOMENTS:
            pairs = [(r["moments"][moment], r["scores"]["top_and_random"]["value"]) for r in scored]
            x, y = np.array([p for p in pairs if None not in p]).T
            pearson = row["moments"][moment]["pearson"]
            assert pearson["value"] == pytest.approx(np.corrcoef(x, y)[0, 1]) and pearson["n"] == len(x)
            assert pearson["low"] <= pearson["value"] <= pearson["high"] and pearson["over"] == "features"
    whole = {(row["method"], row["site"]) for row in only["rows"] if row["name"] is None}
    assert ("neurons", "resid_post.*") in whole and ("pca-topk", "mlp_act.*") in whole
    assert ("neurons", "mlp_act.*") not in whole  # one dictionary is its own pool


def test_tables_without_features_or_values(tmp_path):
    fake_scores(tmp_path, planned=plan(("resid_post.0",), METHODS[:2]), features=0)
    for which in ("table1", "table2"):
        with pytest.raises(NoScores, match=f"{which}: no feature was scored"):
            table(tmp_path, which, FigureConfig())
    fake_scores(tmp_path, planned=plan(("resid_post.0",), METHODS[:2]), lost=True)
    for shown in table(tmp_path, "table2", FigureConfig())["tables"]:
        for row in shown["rows"]:
            assert {c["reason"] for m in row["moments"].values() for c in m.values()} == {"fewer than 3 features"}


def test_lines_may_hold_any_character(tmp_path):
    """A reader that splits at every line separator of Unicode would break a line in two."""
    rows = fake_scores(tmp_path, planned=plan(("resid_post.0",), METHODS[:1]))
    path = tmp_path / "score" / "paper" / "scores.jsonl"
    text = "".join(json.dumps({**r, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8", newline="")
    source = ScoreSource("paper", path.parent, read_json(path.parent / "score.json"))
    assert [r["text"] for r in source.lines()] == ["a\u2028b\x85c"] * len(rows)
