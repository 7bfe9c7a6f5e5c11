"""Pictures of the experiments: whole files, at the same places in SVG and PNG, and as true as the numbers."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers import causal_json, fake_scores
from helpers.causal_json import HOSTILE, TOKENS
from PIL import Image

from monolex.artifact import finish
from monolex.errors import UserError
from monolex.kinds import BASELINES, FAMILIES, NEUTRAL
from monolex.pages import ablate_charts, html, patch_charts, svg, tree_diagram
from monolex.pages.axis import Axis, Frame
from monolex.pages.picture import Box, Diagram, Edge, Panel, Picture, Sheet, Writing, layout, svg_file
from monolex.pages.png import legible, png
from monolex.pages.svg import BAR, BLOCK, NONE, Point, Series
from monolex.report import figures

NAMESPACE = "{http://www.w3.org/2000/svg}"
CONTENTS = {
    "patch": causal_json.patch(),
    "ablate": causal_json.ablate(features=2),
    "tree": causal_json.tree(),
}


def parsed(content: bytes) -> ET.Element:
    return ET.fromstring(content.decode())


def texts(content: bytes) -> list[str]:
    return [node.text or "" for node in parsed(content).iter(f"{NAMESPACE}text")]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", CONTENTS)
def test_draws_whole_files_beside_the_numbers(kind, tmp_path):
    causal_json.artifact(tmp_path, kind, CONTENTS[kind])
    paths = figures.draw(tmp_path)
    assert paths and sorted(paths) == sorted([*tmp_path.glob("*.svg"), *tmp_path.glob("*.png")])
    assert [path.stem for path in paths[::2]] == [path.stem for path in paths[1::2]]
    for vector, pixel in zip(paths[::2], paths[1::2], strict=True):
        root = parsed(vector.read_bytes())
        assert root.tag == f"{NAMESPACE}svg" and not list(root.iter(f"{NAMESPACE}script"))
        assert "var(" not in vector.read_text() and "url(" not in vector.read_text()
        assert pixel.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        shown = pixels(pixel)
        size = int(root.get("width", 0)), int(root.get("height", 0))
        assert shown.shape[:2] == (2 * size[1], 2 * size[0])
        assert len(np.unique(shown[::3, ::3].astype(int) @ (65536, 256, 1))) > 20


@pytest.mark.parametrize("kind", ["ablate", "tree"])
def test_the_same_numbers_give_the_same_files(kind, tmp_path):
    causal_json.artifact(tmp_path, kind, CONTENTS[kind])
    first = {path: path.read_bytes() for path in figures.draw(tmp_path)}
    assert {path: path.read_bytes() for path in figures.draw(tmp_path)} == first


def test_stale_pictures_go_and_nothing_else(tmp_path):
    causal_json.artifact(tmp_path, "ablate", causal_json.ablate(features=2))
    assert len(figures.draw(tmp_path)) == 4
    (tmp_path / "mine.png").write_bytes(b"mine")
    causal_json.artifact(tmp_path, "ablate", causal_json.ablate(features=1))
    paths = figures.draw(tmp_path)
    assert len(paths) == 2
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in paths}
    assert left == {"mine.png", "ablate.json", "manifest.json"}


def test_other_kinds_have_no_pictures(tmp_path):
    finish(tmp_path, "sweep", {}, {}, {}, {"members": []})
    with pytest.raises(UserError, match="holds sweep, of which there are no pictures"):
        figures.draw(tmp_path)
    with pytest.raises(UserError, match="no finished artefact"):
        figures.draw(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("kind", "content", "pictures"),
    [
        ("patch", causal_json.patch(sites=()), 0),
        ("ablate", {"ablations": []}, 0),
        ("ablate", causal_json.ablate(control=False), 1),
        ("tree", causal_json.tree(deep=False), 1),
        ("tree", {"trees": [{**causal_json.tree(deep=False)["trees"][0], "logits": []}]}, 1),
    ],
)
def test_what_may_be_missing_may_be_missing(kind, content, pictures, tmp_path):
    causal_json.artifact(tmp_path, kind, content)
    paths = figures.draw(tmp_path)
    assert len(paths) == len(figures.ENDINGS) * pictures
    for path in paths:
        assert path.stat().st_size > 1000


@pytest.mark.parametrize("kind", CONTENTS)
def test_estimates_may_be_null(kind, tmp_path):
    causal_json.artifact(tmp_path, kind, causal_json.without_values(CONTENTS[kind]))
    paths = figures.draw(tmp_path)
    assert paths
    if kind == "patch":
        assert svg.NO_DATA in texts(paths[0].read_bytes())


def test_tokens_are_escaped_and_legible(tmp_path):
    causal_json.artifact(tmp_path, "ablate", causal_json.ablate())
    vector, _ = figures.draw(tmp_path)
    assert HOSTILE not in vector.read_text() and "&lt;script&gt;" in vector.read_text()
    said = texts(vector.read_bytes())
    wanted = {ablate_charts.label(text) for text in TOKENS[: ablate_charts.LOSERS]}
    assert wanted <= set(said) and {"␣self", "↵␣×4", "∅", "$x$"} <= set(said)
    assert all(len(text) <= ablate_charts.LETTERS for text in wanted)


def test_letters_that_the_type_lacks_are_escapes():
    assert legible("␣self ↵ ⁻³ ± ‖x′‖ $x$") == "␣self ↵ ⁻³ ± ‖x′‖ $x$"
    assert legible("中\U00020000") == "\\u4e2d\\U00020000"


def test_a_chart_holds_a_choice_of_dictionaries():
    dictionaries = patch_charts.sites(CONTENTS["patch"])["resid_post.1"]
    names = [(each["model"], each["name"]) for each in patch_charts.shown(dictionaries)]
    assert ("subject", "tied-a3e-3-r4-s0") in names and ("subject", "tied-a3e-3-r4-s1") not in names
    assert {("subject", name) for name in ("pca", "ica-topk-k32", "neurons", "random")} <= set(names)
    assert [model for model, _ in names if model != "subject"] == ["random"]
    more = [{**dictionaries[0], "name": f"tied-a{i}-r4-s0", "alpha": float(i)} for i in range(30)]
    chosen = patch_charts.shown([*more, *dictionaries[4:]])
    assert len(chosen) == patch_charts.SHOWN
    alphas = [each["alpha"] for each in chosen if each["kind"] == "tied"]
    assert (alphas[0], alphas[-1]) == (0.0, 29.0) and alphas == sorted(alphas)


def test_a_chart_holds_families_of_the_rows_and_kinds_that_nobody_knows(monkeypatch):
    row = dataclasses.replace(FAMILIES["pca"], name="rotated", forms=("",), complete=(), marker="square")
    monkeypatch.setitem(FAMILIES, "rotated", row)
    monkeypatch.setitem(BASELINES, "rotated", row)
    dictionaries = patch_charts.sites(CONTENTS["patch"])["resid_post.1"]
    kinds = ("unheard", "nmf", "unheard", "rotated")
    added = [{**dictionaries[0], "kind": kind, "name": f"{kind}-{i}"} for i, kind in enumerate(kinds)]
    names = [each["name"] for each in patch_charts.shown([*added, *dictionaries])]
    others = ["pca", "ica-topk-k32", "neurons", "random", "nmf-1", "rotated-3", "unheard-0"]
    assert names[-8:-1] == others
    left, *_ = patch_charts.panels("resid_post.1", [*added, *dictionaries])
    drawn = {curve.label: (curve.colour, curve.marker) for curve in left.series}
    assert drawn["rotated-3"] == (row.colour, "square") and drawn["unheard-0"] == (NEUTRAL, "triangle")
    many = [{**dictionaries[0], "kind": f"kind-{i}"} for i in range(2 * patch_charts.SHOWN)]
    assert {each["kind"] for each in patch_charts.shown([*many, *dictionaries])} >= {f"kind-{i}" for i in range(20)}


def test_curves_show_the_numbers_of_the_artefact():
    dictionaries = patch_charts.sites(CONTENTS["patch"])["resid_post.1"]
    left, right, _ = patch_charts.panels("resid_post.1", dictionaries)
    wanted = dictionaries[0]["curves"]["ranking"]
    by_size = next(curve for curve in left.series if curve.label == dictionaries[0]["name"])
    by_edit = next(curve for curve in right.series if curve.label == dictionaries[0]["name"])
    assert [(p.x, p.y) for p in by_size.points] == [(w["size"], w["kl"]["value"]) for w in wanted]
    assert [(p.x, p.y) for p in by_edit.points] == [(w["edit"]["value"], w["kl"]["value"]) for w in wanted]
    spans = {(w["kl"]["low"], w["kl"]["high"]) for w in wanted}
    assert {p.y_interval for p in by_size.points} - {None} <= spans
    assert by_size.points[0].y_interval and any(p.y_interval is None for p in by_size.points)
    base = next(curve for curve in left.series if curve.label == "nothing patched")
    assert {p.y for p in base.points} == {4.1} and [p.x for p in base.points] == [left.x.low, left.x.high]
    assert left.y.low == 0 and all(p.x <= patch_charts.LARGEST for curve in left.series for p in curve.points)


def test_control_models_are_broken_lines():
    left, *_ = patch_charts.panels("s", patch_charts.sites(CONTENTS["patch"])["resid_post.1"])
    looks = {curve.label: curve.variant for curve in left.series}
    assert [label for label, variant in looks.items() if variant == "dashed"] == [
        "batchtopk-k32-r4-s0 of the randomly initialised model"
    ]
    assert len({(curve.colour, curve.marker, curve.variant) for curve in left.series}) == len(left.series)


def test_searches_are_drawn_where_there_are_more_than_the_cheap_ones():
    names = [picture.name for picture in patch_charts.pictures(CONTENTS["patch"])]
    assert names == ["resid_post.1", "resid_post.1-searches", "resid_post.2"]
    panels = patch_charts.search_panels(patch_charts.sites(CONTENTS["patch"])["resid_post.1"])
    assert [panel.title for panel in panels] == ["tied-a3e-3-r4-s0", "pca"]
    sweep = next(curve for curve in panels[0].series if curve.label == patch_charts.SEARCHES["sweep"][2])
    assert [point.x for point in sweep.points] == [3, 12, 40]


def test_an_outline_keeps_every_count():
    ablation = causal_json.ablate()["ablations"][0]
    left, _ = ablate_charts.panels(ablation)
    histogram, outline = ablation["measures"]["logprob"]["total"], left.series[0].points
    tops = {(a.x, b.x): a.y for a, b in zip(outline, outline[1:], strict=False) if a.x != b.x}
    bins = zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False)
    held = {(low, high): count for low, high, count in bins if count}
    assert {ends: top for ends, top in tops.items() if top > ablate_charts.FLOOR} == held
    assert outline[0].y == outline[-1].y == ablate_charts.FLOOR


def test_losers_have_bars_with_intervals_and_marks_beside_them():
    ablation = causal_json.ablate()["ablations"][0]
    _, right = ablate_charts.panels(ablation)
    bars, direct, control = right.series
    wanted = ablation["measures"]["logprob"]["suppressed"][: ablate_charts.LOSERS]
    assert bars.marker == BAR and [p.x for p in bars.points] == [w["change"] for w in wanted]
    assert [p.x_interval for p in bars.points] == [(w["low"], w["high"]) for w in wanted]
    assert [p.x for p in direct.points] == [w["direct"] for w in wanted]
    assert [p.x for p in control.points] == [w["control"] for w in wanted]
    assert [name for _, name in right.y.ticks()] == [ablate_charts.label(w["text"]) for w in wanted]


def test_bars_run_from_zero_to_their_value():
    frame = Frame(Axis("x", -4, 1), Axis("", -1.5, 0.5, names=((0.0, "a"), (-1.0, "b"))), 500, 300)
    for point in (Point(-3, 0), Point(0.5, -1)):
        left, top, wide, tall = svg.rod(frame, point)
        zero, end = frame.at(0, 0)[0], frame.at(point.x, 0)[0]
        assert (left, left + wide) == pytest.approx((min(zero, end), max(zero, end)))
        assert top + tall / 2 == pytest.approx(frame.at(0, point.y)[1])
        assert tall == pytest.approx(svg.ROD * (frame.bottom - frame.top) / 2)


def test_nodes_of_a_tree_do_not_overlap_and_edges_meet_them():
    diagram = tree_diagram.diagram(CONTENTS["tree"]["trees"][0])
    for i, a in enumerate(diagram.boxes):
        assert a.x >= 0 and a.x + a.width <= diagram.width and a.y >= 0 and a.y + a.height <= diagram.height
        for b in diagram.boxes[:i]:
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x
            assert apart or a.y + a.height <= b.y or b.y + b.height <= a.y
    for edge in diagram.edges:
        assert any(edge.start == (b.x + b.width, b.y + b.height / 2) for b in diagram.boxes)
        assert any(edge.stop == (b.x, b.y + b.height / 2) for b in diagram.boxes)


def test_edges_tell_sign_and_size():
    diagram = tree_diagram.diagram(CONTENTS["tree"]["trees"][0])
    by = {edge.title.partition(" on ")[0]: edge for edge in diagram.edges}
    raises, lowers, error, rest = (by[name] for name in ("1.344", "1.12", "reconstruction error", "all features"))
    assert (raises.colour, raises.broken) == ("blue", False) and (lowers.colour, lowers.broken) == ("vermilion", True)
    assert error.colour == rest.colour == "ink" and error.faint and rest.faint and not raises.faint
    shares = {"raises": 0.6, "lowers": 0.275, "error": 0.1}
    for edge, share in zip((raises, lowers, error), shares.values(), strict=True):
        assert edge.thickness == pytest.approx(tree_diagram.THIN + (tree_diagram.THICK - tree_diagram.THIN) * share)
    said = [line for box in diagram.boxes for line in box.lines]
    assert "2.40 ± 0.100 (60 %)" in said and "−1.10 ± 0.100 (−28 %)" in said and "0.300 ± 0.100 (8 %), repeated" in said


def test_a_large_tree_stays_in_order():
    nodes = [causal_json._node(0, None, "resid_post.3", 0, None, "")]
    for parent in range(13):
        for _ in range(3):
            site = f"resid_post.{2 - round(math.log(2 * parent + 1, 3) - 1e-9)}"
            nodes.append(causal_json._node(len(nodes), parent, site, len(nodes), 1 + len(nodes) % 7, "x"))
    diagram = tree_diagram.diagram({"root": "a/b:0", "dictionaries": {}, "nodes": nodes, "logits": []})
    middles = {node["id"]: box.y + box.height / 2 for node, box in zip(nodes, diagram.boxes, strict=True)}
    for node in nodes:
        below = [middles[child["id"]] for child in tree_diagram.ordered(nodes, node["id"])]
        assert below == sorted(below)
        if below:
            assert middles[node["id"]] == pytest.approx((below[0] + below[-1]) / 2)


def test_panels_and_legend_have_room():
    series = tuple(Series(f"a series with a long name {i}", (Point(i, i),)) for i in range(10))
    panel = Panel("p", series, Axis("x", 0, 10), Axis("y", 0, 10), 300, 200)
    arranged = layout(Picture("n", "t", (panel,) * 3, columns=2))
    for i, placed in enumerate(arranged.panels):
        assert placed.x + placed.panel.width <= arranged.width and placed.y + placed.panel.height <= arranged.height
        for other in arranged.panels[:i]:
            assert placed.x >= other.x + other.panel.width or placed.y >= other.y + other.panel.height
    places = [(entry.x, entry.y) for entry in arranged.legend]
    assert len(places) == len(set(places)) == 10
    assert min(y for _, y in places) >= max(placed.y + placed.panel.height for placed in arranged.panels)
    assert max(y for _, y in places) < arranged.height and all(x < arranged.width for x, _ in places)


def test_every_look_has_its_colour_in_a_file_of_its_own():
    """What a page's style sheet says of a class, the file says too, with the light palette's colours."""
    colours = html.palette()
    for name in svg.COLOURS:
        shade = colours["soft" if name == "ink" else name]
        series = Series("s", (Point(1, 1), Point(2, 2)), name)
        shown = svg_file(Picture("n", "t", (Panel("p", (series,), Axis("x", 0, 3), Axis("y", 0, 3)),))).decode()
        assert f".line.c-{name} {{" in shown
        assert shade in re.findall(rf"\.line\.c-{name} {{([^}}]*)}}", shown)[0]


MARKS = [(colour, marker) for colour in ("blue", "ink") for marker in (*list(svg.MARKERS)[:6], BAR, BLOCK, NONE)]


@pytest.mark.parametrize("variant", ["", "open", "dashed", "dotted"])
def test_pixels_are_where_the_vectors_are(variant, tmp_path):
    """A mark of every kind is drawn near the place that its panel gives it."""
    for colour, marker in MARKS:
        point = Point(2, 2, x_interval=(1.5, 2.5), y_interval=(1, 3))
        series = Series("s", (point,), colour, marker, joined=False, variant=variant)
        picture = Picture("n", "", (Panel("", (series,), Axis("", 0, 4), Axis("", 0, 4), 200, 150),), legend=False)
        path = tmp_path / "a.png"
        path.write_bytes(png(picture))
        place = layout(picture).panels[0]
        x, y = place.frame().at(2, 2)
        box = pixels(path)[round(2 * (place.y + y)) - 24 :, round(2 * (place.x + x)) - 24 :][:48, :48]
        shade = html.palette()["soft" if colour == "ink" else colour]
        target = np.array([int(shade[i : i + 2], 16) for i in (1, 3, 5)])
        near = np.abs(box.astype(int) - target).sum(-1) < 150
        assert near.sum() > 20, (colour, marker)


def test_a_block_is_all_that_its_intervals_span(tmp_path):
    point = Point(2, 2, x_interval=(1, 3), y_interval=(0, 4))
    panel = Panel("", (Series("s", (point,), "blue", BLOCK, joined=False),), Axis("", 0, 4), Axis("", 0, 8), 200, 150)
    place = layout(Picture("n", "", (panel,), legend=False)).panels[0]
    left, top, wide, tall = svg.block(place.frame(), point)
    assert (left, top) == place.frame().at(1, 4) and (left + wide, top + tall) == place.frame().at(3, 0)
    (tmp_path / "b.png").write_bytes(png(Picture("n", "", (panel,), legend=False)))
    shown = pixels(tmp_path / "b.png").astype(int)
    shade = np.array([int(html.palette()["blue"][i : i + 2], 16) for i in (1, 3, 5)])
    x, y = 2 * (place.x + left), 2 * (place.y + top)
    inside = shown[round(y) + 3 : round(y + 2 * tall) - 3, round(x) + 3 : round(x + 2 * wide) - 3]
    assert (np.abs(inside - shade).sum(-1) < 6).all()  # no grid shines through
    outside = shown[round(y) - 12 : round(y) - 3, round(x) + 3 : round(x + 2 * wide) - 3]
    assert (np.abs(outside - shade).sum(-1) > 100).all()


def test_broken_faint_and_plain_edges_are_drawn(tmp_path):
    boxes = tuple(Box(x, 20, 60, 40, ("a", "b"), style, "t") for x, style in ((10, ""), (150, "root"), (290, "token")))
    edges = (
        Edge((70, 40), (150, 40), 4, "blue"),
        Edge((210, 40), (290, 40), 4, "vermilion", broken=True),
    )
    diagram = Diagram("d", "t", boxes, edges, ((10, "head"),), 360, 80)
    path = tmp_path / "d.png"
    path.write_bytes(png(diagram))
    row = pixels(path)[2 * (40 + 34), :, :].astype(int)
    gaps = {}
    for name, (start, stop) in {"plain": (142, 298), "broken": (422, 578)}.items():
        ground = np.abs(row[start:stop] - row[1]).sum(-1) < 30
        gaps[name] = int(np.diff(ground.astype(int)).clip(0).sum())
    assert gaps["plain"] == 0 and gaps["broken"] >= 4
    assert {"head", "a", "b", "t"} <= set(texts(svg_file(diagram)))


RESIDUAL = ("resid_post.0", "resid_post.1", "resid_post.2")


@pytest.mark.parametrize("options", [{}, {"lost": True}, {"features": 0}, {"planned": []}])
def test_scores_are_drawn_beside_their_numbers(options, tmp_path):
    fake_scores.fake_scores(tmp_path, **{"planned": fake_scores.plan((*RESIDUAL, "mlp_act.1")), **options})
    folder = tmp_path / "score" / "paper"
    paths = figures.draw(folder)
    names = ["score-resid_post", "score-mlp_act"] if options.get("planned") != [] else []
    assert [path.name for path in paths] == [f"{name}{ending}" for name in names for ending in (".svg", ".png")]
    for path in paths[::2]:
        assert (svg.NO_DATA in texts(path.read_bytes())) == bool(options)
    assert {"manifest.json", "score.json", "scores.jsonl"} <= {path.name for path in folder.iterdir()}


def test_sheets_are_drawn_where_the_vectors_are(tmp_path):
    sheet = Sheet("s", "t", (Writing(100, 60, "here", "label"),), ((20, 180, 30),), 200, 80)
    (tmp_path / "s.png").write_bytes(png(sheet))
    shown = pixels(tmp_path / "s.png").astype(int)
    ground = shown[1, 1]
    changed = np.abs(shown - ground).sum(-1) > 20
    rule = changed[2 * (30 + 34) - 2 : 2 * (30 + 34) + 2].any(0)
    assert rule[50:350].all() and not rule[:36].any() and not rule[364:].any()
    text = changed[2 * (60 + 34) - 20 : 2 * (60 + 34), :]
    assert text[:, 198:280].any() and not text[:, :196].any()
    assert {"here", "t"} == set(texts(svg_file(sheet)))
