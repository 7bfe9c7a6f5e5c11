"""Charts are well-formed and say what they draw; numbers and tables read as they should."""

import math
import xml.etree.ElementTree as ET

import pytest

from monolex.pages import html, svg
from monolex.pages.axis import Axis, axis
from monolex.pages.eval_charts import Looks, curves, density_chart, entries
from monolex.pages.histogram import histogram
from monolex.pages.svg import MARKERS, Point, Series, legend, plot
from monolex.pages.tables import Column, table

X = axis("L0", [1, 1000], log=True)
Y = axis("FVU", [0, 1])


def drawn(chart) -> ET.Element:
    """The chart as a tree, parsed strictly."""
    return ET.fromstring(str(chart))


def marks(chart) -> list[ET.Element]:
    return [g for g in drawn(chart).iter("g") if "mark" in (g.get("class") or "")]


def place(mark: ET.Element) -> tuple[float, float]:
    """Where a mark is drawn."""
    moved = next(moved for p in mark.iter("path") if (moved := p.get("transform")))
    across, level = moved.removeprefix("translate(").removesuffix(")").split()
    return float(across), float(level)


def test_a_curve_is_of_one_sweep_model_and_recipe():
    """Dictionaries that differ in anything but their sparsity stand on curves of their own."""
    first = {"model": "subject", "site": "resid_post.1", "kind": "tied", "ratio": 2.0, "seed": 0, "lr": 1e-3}
    changes = {"path": "../train/b/s/x", "model": "random", "kind": "topk", "ratio": 4.0, "seed": 1, "lr": 1e-2}
    heads = [{**first, "path": "../train/a/s/x"}] + [
        {**first, "path": "../train/a/s/x", k: v} for k, v in changes.items()
    ]
    known = {"low": None, "high": None, "n": 1, "over": "documents", "reason": ""}
    rows = [
        {
            **head,
            "path": f"{head['path']}{l0}",
            "name": f"{number}-{l0}",
            "other": "",
            "metric": metric,
            **known,
            "value": l0,
        }
        for number, head in enumerate(heads)
        for l0 in (20.0, 10.0)
        for metric in ("l0", "fvu")
    ]
    shown = entries(rows)
    drawn_curves = curves(shown, "fvu", "FVU", Looks(shown))
    assert [[point.x for point in curve.points] for curve in drawn_curves] == [[10.0, 20.0]] * len(heads)


def test_every_point_is_a_mark_with_its_title_and_interval():
    points = (Point(10, 0.5, "a\nFVU 0.5", (9, 11), (0.4, 0.6)), Point(100, 0.25, "b"))
    chart = plot([Series("tied", points, "blue")], X, Y, "FVU over L0")
    shown = marks(chart)
    assert [m.findtext("title") for m in shown] == ["a\nFVU 0.5", "b"]
    bars = [[p for p in m.iter("path") if p.get("class") == "bar"] for m in shown]
    assert [len(b) for b in bars] == [2, 0]
    assert (drawn(chart).get("role"), drawn(chart).get("aria-label")) == ("img", "FVU over L0")


def test_coordinates_follow_the_scales():
    points = tuple(Point(x, y) for x, y in ((1, 0.0), (10, 0.5), (100, 1.0)))
    wide = Axis("L0", 1, 100, log=True)
    chart = plot([Series("tied", points)], wide, Axis("FVU", 0, 1), "chart")
    (x0, y0), (x1, y1), (x2, y2) = map(place, marks(chart))
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert y0 - y1 == pytest.approx(y1 - y2) and y0 > y1


@pytest.mark.parametrize("series", [[], [Series("none", ())]])
def test_no_data_is_said(series):
    texts = [t.text for t in drawn(plot(series, X, Y, "empty")).iter("text")]
    assert "no data" in texts and marks(plot(series, X, Y, "empty")) == []


def test_single_point_has_no_line():
    chart = plot([Series("one", (Point(5, 0.5),))], axis("x", [5], log=True), axis("y", [0.5]), "one")
    lines = [p for p in drawn(chart).iter("path") if "line" in (p.get("class") or "").split()]
    assert len(marks(chart)) == 1 and lines == []


def test_values_beyond_an_end_become_arrows_on_the_border():
    y = Axis("recovered", 0, 1)
    chart = plot([Series("s", (Point(10, -7.0), Point(10, 0.0), Point(10, 3.0)))], X, y, "arrows")
    shapes = [next(p.get("d") for p in m.iter("path") if p.get("transform")) for m in marks(chart)]
    assert shapes == [MARKERS["down"], MARKERS["circle"], MARKERS["up"]]
    assert place(marks(chart)[0])[1] == place(marks(chart)[1])[1]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1, 1000, ["1", "10", "100", "1000"]),
        (8, 120, ["10", "20", "50", "100"]),
        (1e-6, 1, ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1", "1"]),
    ],
)
def test_log_ticks(low, high, labels):
    assert [label for _, label in Axis("", low, high, log=True).ticks()] == labels


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-0.25, 1, ["−0.2", "0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-4, 0, ["−4", "−3", "−2", "−1", "0"]),
    ],
)
def test_linear_ticks(low, high, labels):
    assert [label for _, label in Axis("", low, high).ticks()] == labels


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [math.nan, 2.0], [-5.0, 1e7], [1e-9, 2e-9]])
@pytest.mark.parametrize("log", [False, True])
def test_axis_holds_what_it_is_given(values, log):
    scale = axis("", values, log=log)
    assert scale.low < scale.high
    assert all(scale.holds(v) for v in values if math.isfinite(v) and (v > 0 or not log))
    assert len(scale.ticks()) < 14


def test_histogram_heights_are_proportional_and_empty_bins_draw_nothing():
    chart = histogram([0, 2, 4], Axis("log density", -3, 0), "densities", (1, "−∞", "never active"))
    heights = [float(r.get("height", 0)) for r in drawn(chart).iter("rect")]
    assert len(heights) == 3
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.05)
    assert "1 never active" in [t.text for t in drawn(chart).iter("title")]
    assert len(list(drawn(histogram([], Axis("", 0, 1), "none")).iter("rect"))) == 0


def test_density_chart_counts_every_feature_once():
    counts = [0, 0, 1, 10, 10, 1000]
    titles = [t.text or "" for t in drawn(density_chart(counts, 1000, "d", "blue")).iter("title")]
    assert sum(int(t.split()[0]) for t in titles) == len(counts)
    assert "2 never active" in titles and "1 from -0.25 to 0" in titles and "2 from -2 to -1.75" in titles


def test_names_from_data_are_escaped():
    bad = '<script>"&'
    series = Series(bad, (Point(10, 0.5, bad),))
    chart = plot([series], axis(bad, [10], log=True), Y, bad)
    assert "<script>" not in str(chart) + str(legend([series]))
    assert drawn(chart).get("aria-label") == bad and marks(chart)[0].findtext("title") == bad


def test_legend_names_each_look_once_in_order():
    series = [Series("b", ()), Series("a", (), variant="dashed"), Series("b", ())]
    assert [li[0].tail for li in ET.fromstring(str(legend(series)))] == ["b", "a"]
    assert legend([]) == ""


def test_every_marker_and_colour_has_a_style():
    sheet = html.asset("chart.css")
    assert all(f".c-{colour} " in sheet for colour in svg.COLOURS)
    assert all(f".{variant} path" in sheet for variant in ("open", "dashed", "dotted"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (0.0, "0"),
        (1.0, "1.00"),
        (0.012345, "0.0123"),
        (-0.5, "−0.500"),
        (999.7, "1,000"),
        (0.9996, "1.00"),
        (0.0009999, "0.00100"),
        (12345.6, "12,346"),
        (0.00042, "4.20e-04"),
        (1204, "1,204"),
        (7, "7"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert html.number(value) == text


def test_interval():
    assert html.interval(0.12, 0.127) == "[0.120, 0.127]"
    assert html.interval(None, 0.1) == html.interval(None, None) == ""


def row(value, low=None, high=None, over="documents", reason=""):
    return {"value": value, "low": low, "high": high, "n": 8, "over": over, "reason": reason}


def test_head_names_the_usual_unit_and_cells_their_own():
    rows = [row(0.5, 0.4, 0.6), row(0.4, 0.3, 0.5), row(0.45, 0.4, 0.5, over="seeds")]
    shown = table(
        "t", "All", "Name", [Column("fvu", "FVU")], [("G", [(str(i), {"fvu": r}.get) for i, r in enumerate(rows)])]
    )
    assert shown.heads[0].unit == "over documents"
    assert [line.cells[0].title for line in shown.groups[0].lines][1:] == [
        "interval over 8 documents",
        "interval over 8 seeds",
    ]


def test_table_numbers_distinct_reasons_and_names_units():
    chance, top = row(None, reason="at chance"), row(0.9, reason="a maximum")
    rows = {
        "a": {"fvu": row(0.5, 0.4, 0.6), "ce": chance, "top": top},
        "b": {"fvu": row(None, reason="no data"), "ce": chance, "top": top},
        "c": {"fvu": row(0.1, reason="one of documents only"), "top": top},
    }
    columns = [Column("fvu", "FVU"), Column("ce", "CE"), Column("top", "Top")]
    shown = table("t", "All", "Name", columns, [("G", [(n, r.get) for n, r in rows.items()]), ("empty", [])])
    assert shown.notes == ["at chance", "no data", "one of documents only", "not measured"]
    assert [head.unit for head in shown.heads] == ["over documents", "", "a maximum"]
    assert [group.label for group in shown.groups] == ["G"]
    a, b, c = shown.groups[0].lines
    assert (a.cells[0].text, a.cells[0].interval, a.cells[0].note) == ("0.500", "[0.400, 0.600]", 0)
    assert [cell.note for cell in b.cells] == [2, 1, 0] and b.cells[0].title == "no data"
    assert [cell.text for cell in c.cells] == ["0.100", "n/a", "0.900"]
