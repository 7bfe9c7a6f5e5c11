"""Pictures of scores and the report's section on them: as true as the artefacts, escaped, kinds kept apart."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.fake_run import fake_run
from helpers.fake_scores import (
    EXACT,
    FAILED,
    HOSTILE,
    METHODS,
    REASON,
    SKIPPED,
    UNSAID,
    dictionary,
    estimate,
    fake_scores,
    plan,
    scored,
    sizes,
    steps,
)
from helpers.fake_store import fake_features
from helpers.page_parser import Page

from monolex.artifact import finish, open_artifact, read_json, write_json
from monolex.interp.config import FigureConfig
from monolex.interp.score import cards
from monolex.interp.score.figures import figure
from monolex.interp.score.tables import table
from monolex.pages import html, score_charts, sheets, svg
from monolex.pages.html import interval, number
from monolex.pages.png import legible
from monolex.pages.tokens import plain
from monolex.report.page import report
from monolex.report.score_section import SCORES
from monolex.show.path import show

SITES = ("resid_post.1", "resid_post.2")
STORES = {"resid_post.1/tied-a1e-3-r2-s0": "tied", "resid_post.1/neurons": "neurons"}
ONE = FigureConfig(scores=("paper",), explainers=("token",))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = fake_run(tmp_path_factory.mktemp("run"))
    fake_features(folder, STORES)
    rows = fake_scores(folder, "paper", plan(SITES) + sizes(SITES[0]) + steps(SITES[0]))
    rows += fake_scores(folder, "exact", plan(SITES[:1], METHODS[:4]), simulator=EXACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "scored", lambda *_: scored(rows))
        report(folder)
    return folder


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def section(text: str) -> str:
    return text[text.index('<section id="interpretation"') : text.index('<section id="made">')]


def drawn(panel) -> dict[str, list[svg.Point]]:
    """Points by label; the pieces of a series joined."""
    by_label: dict[str, list[svg.Point]] = {}
    for series in panel.series:
        by_label.setdefault(series.label, []).extend(series.points)
    return by_label


@pytest.mark.parametrize("which", ["fig2", "fig9", "fig8", "training"])
def test_marks_are_the_numbers_of_the_figure(run, which):
    content = figure(run, which, FigureConfig())
    picture = score_charts.picture(content)
    assert len(picture.panels) == len(content["panels"])
    for panel, data in zip(picture.panels, content["panels"], strict=True):
        points = drawn(panel)
        chance = points.pop(score_charts.CHANCE)
        assert {p.y for p in chance} == {level["value"] for level in data["chance"]}
        assert set(points) == {series["label"] for series in data["series"]} and panel.title == data["title"]
        for series in data["series"]:
            known = [p for p in series["points"] if p["value"] is not None and p["x"] is not None]
            assert [p.y for p in points[series["label"]]] == [p["value"] for p in known]
            assert [p.y_interval for p in points[series["label"]]] == [(p["low"], p["high"]) for p in known]
            across = [p.x - q["x"] for p, q in zip(points[series["label"]], known, strict=True)]
            assert all(abs(shift) < 0.5 * (data["x"] == "layer") + 1e-9 for shift in across)
            for mark, p in zip(points[series["label"]], known, strict=True):
                assert f"score {number(p['value'])} {interval(p['low'], p['high'])}" in mark.title
                assert f"skipped 2 ({SKIPPED})" in mark.title and f"{REASON}: 1, {UNSAID}: 1" in mark.title


def test_all_marks_lie_within_their_panel(run):
    for which in ("fig2", "fig8", "training"):
        for panel in score_charts.picture(figure(run, which, FigureConfig())).panels:
            for series in panel.series:
                for p in series.points:
                    assert panel.x.holds(p.x) and panel.y.holds(p.y)
                    assert all(panel.y.holds(end) for end in p.y_interval or ())


def test_dictionaries_of_a_layer_stand_side_by_side(run):
    (panel,) = score_charts.picture(figure(run, "fig2", ONE)).panels
    marks = [p.x for label, points in drawn(panel).items() if label != score_charts.CHANCE for p in points]
    assert len(marks) == len(set(marks)) > 20


def test_looks_differ_and_tell_kind_and_model():
    many = [dictionary("subject", "s.0", f"tied-a{i}", "tied", i, None, 2.0, step=None) for i in range(1, 20)]
    many += [each for each, _ in plan(("s.0",))]
    looks = score_charts.looks({**each, "label": f"{each['model']} {each['name']}"} for each in many)
    assert len(set(looks.values())) == len(looks) == 30
    assert looks["subject tied-a1"] == ("blue", "circle", "") and looks["subject tied-a2"].colour == "blue"
    assert looks["subject neurons"].colour == "olive" and looks["subject pca-topk-k24"].marker == "cross"
    assert looks["random batchtopk-k24-r2-s0"].variant == "dashed"
    assert looks["shuffled batchtopk-k24-r2-s0"].variant == "dotted"


def test_a_line_breaks_where_a_layer_has_no_score():
    lost = plan(tuple(f"resid_post.{i}" for i in range(4)), METHODS[2:3])
    listed = [d | {"explainers": {"token": {"top_and_random": estimate([])}}} for d, _ in lost]
    for i in (0, 1, 3):
        listed[i]["explainers"]["token"]["top_and_random"] = estimate([{"value": 0.1 * i, "reason": ""}])
    panel = {
        **{"title": "t", "x": "layer", "metric": "top_and_random", "chance": []},
        "series": [{"label": "neurons", "kind": "neurons", "model": "subject", "trained": False, "points": []}],
    }
    for i, each in enumerate(listed):
        counts = {name: each[name] for name in ("site", "name", "asked", "explained", "skipped")}
        panel["series"][0]["points"].append({"x": i, **counts, **each["explainers"]["token"]["top_and_random"]})
        panel["series"][0]["points"][-1]["chance"] = None
    (chart,) = score_charts.panels([panel])
    assert [len(each.points) for each in chart.series] == [2, 1] and {each.label for each in chart.series} == {
        "neurons"
    }


@pytest.mark.parametrize("planned", [plan(SITES[:1]), plan(SITES, METHODS[:1]), plan(SITES[:1], METHODS[3:4])])
def test_one_layer_or_one_method_is_enough(tmp_path, planned):
    fake_scores(tmp_path, planned=planned)
    for panel in score_charts.picture(figure(tmp_path, "fig2", FigureConfig())).panels:
        assert len(panel.x.ticks()) == len({d["layer"] for d, _ in planned}) and panel.chart()


def test_nothing_but_missing_scores_says_no_data(tmp_path):
    fake_scores(tmp_path, planned=plan(SITES), lost=True)
    for panel in score_charts.picture(figure(tmp_path, "fig2", FigureConfig())).panels:
        assert svg.NO_DATA in str(panel.chart()) and not any(series.points for series in panel.series)


def test_a_model_of_many_layers_names_some(tmp_path):
    fake_scores(tmp_path, planned=plan(tuple(f"resid_post.{i}" for i in range(48)), METHODS[:1]), features=2)
    (panel, _) = score_charts.picture(figure(tmp_path, "fig2", FigureConfig())).panels
    assert 8 <= len(panel.x.ticks()) <= score_charts.TICKS and panel.x.ticks()[0] == (0.0, "0")


@pytest.mark.parametrize("which", ["table1", "table2"])
def test_a_sheet_holds_every_number_in_its_place(run, which):
    content = table(run, which, ONE)
    sheet = sheets.sheet(content)
    said = [line.text for line in sheet.writings]
    for row in content["tables"][0]["rows"]:
        if which == "table2" and row["name"] is not None and row["method"] != "tied-a1e-3-r0.5-s0":
            continue  # is in the row of all layers
        cells = [c for m in row["moments"].values() for c in m.values()] if which == "table2" else [row["score"]]
        for cell in cells:
            assert f"{number(cell['value'])} {interval(cell['low'], cell['high'])}".rstrip() in said
    assert all(line.x >= 0 and line.y <= sheet.height for line in sheet.writings)
    for a in sheet.writings:
        right = a.x + (sheets.LETTER - 0.4) * len(a.text)
        assert right <= sheet.width
        level = [b for b in sheet.writings if b.y == a.y and b.x > a.x]
        assert all(right <= b.x for b in level), a


def test_texts_of_a_sheet_are_legible_and_wrapped(run):
    long = table(run, "table1", ONE)
    long["tables"][0]["rows"][0]["text"] = "word " * 60 + "\n\u202e中" + "x" * 200
    sheet = sheets.sheet(long)
    said = [line.text for line in sheet.writings]
    assert all(len(line) <= 120 for line in said) and not any(c in line for line in said for c in "\n\u202e中")
    assert "x" * 30 in "".join(said) and legible(plain("\n")) in "".join(said)
    assert "(no explanation)" in [w.text for w in sheets.sheet(table(run, "table1", FigureConfig(rows=8))).writings]


@pytest.mark.parametrize(
    ("ends", "text", "span"),
    [
        ((0.12, 0.08, 0.16), "above by 0.120", "[0.0800, 0.160]"),
        ((-0.12, -0.16, -0.08), "below by 0.120", "[0.0800, 0.160]"),
        ((0.12, 0.0, 0.2), "no clear difference", "0.120 [0, 0.200]"),
        ((-0.12, -0.2, 0.01), "no clear difference", "−0.120 [−0.200, 0.0100]"),
        ((0.12, None, None), "+0.120", ""),
        ((-0.12, None, None), "−0.120", ""),
        ((None, None, None), "n/a", ""),
    ],
)
def test_words_say_what_the_interval_does(ends, text, span):
    difference = dict(zip(("value", "low", "high"), ends, strict=True)) | {"reason": "r"}
    assert score_charts.words(difference) == (text, span)
    kind = "above" if text.startswith("above") else "below" if text.startswith("below") else None
    kind = kind or ("no clear difference" if span else "without an interval")
    assert score_charts.tally([difference]) == {name: int(name == kind) for name in score_charts.tally([])}


def test_report_stays_self_contained(text):
    page = Page(text)
    assert "://" not in text and "url(" not in text and text.count("<script") == 1
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")]
    assert len(page.ids) == len(set(page.ids)) and "#interpretation" in page.links
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_explanations_are_escaped(run, text):
    assert HOSTILE not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in section(text)
    page = (run / "gallery" / "resid_post.1" / "tied-a1e-3-r2-s0.html").read_text(encoding="utf-8")
    assert HOSTILE not in page and page.count("<script") == page.count("</script>") == 1
    assert "\u202e" not in page and "\x00" not in page and "\u202e" not in section(text)


def test_every_kind_of_score_has_a_part_of_its_own(run, text):
    parts = re.split(r'<h3 id="interpretation-\d+">', section(text))[1:]
    assert [part.partition("<")[0] for part in parts] == ["Scores: exact", "Scores: paper"]
    assert f"the simulator: {EXACT}" in parts[0] and "no language model was asked" in parts[1]
    assert "no language model" not in parts[0] and EXACT not in parts[1] and "pca-topk" not in parts[0]


def test_tables_hold_every_mean_with_what_is_missing(run, text):
    rows = Page(text).rows
    listed = read_json(run / "score" / "paper" / "score.json")["dictionaries"]
    (key,) = [k for k in rows if k.startswith("interpretation-2-site-1")]
    columns = [column.metric for column in SCORES]
    for measured in (d for d in listed if d["site"] == SITES[0] and d["model"] == "subject"):
        cells = rows[key][measured["name"]]
        means = measured["explainers"]["token"]  # the first row of this name
        for cell, metric in zip(cells, columns, strict=False):
            if metric in means:
                assert cell.startswith(number(means[metric]["value"]))
        assert [re.match(r"\d+", cell)[0] for cell in cells[len(columns) :]] == ["8", "2", "2", "12"]  # type: ignore[index]
    notes = re.findall(rf'<li id="{key}-\d+">(.*?)</li>', text)
    assert SKIPPED in notes and f"{FAILED}: 2, {UNSAID}: 10" in notes and f"{REASON}: 1, {UNSAID}: 1" in notes


def test_differences_are_said_in_words(run, text):
    content = read_json(run / "score" / "paper" / "score.json")
    shown = section(text)[section(text).index('id="interpretation-2"') :]
    assert "above by 0.120" in shown and "below by 0.200" in shown and "no clear difference" in shown
    assert "no feature in common" in shown and "too few documents" in shown
    rows = Page(text).rows["interpretation-2-tally"]
    beside_neurons = [d for d in content["differences"] if d["explainer"] == "pattern" and d["against"] == "neurons"]
    assert [int(cell) for cell in rows["neurons"]] == list(score_charts.tally(beside_neurons).values()) and sum(
        map(int, rows["neurons"])
    )


def test_first_features_are_shown_with_a_way_to_their_cards(run, text):
    links = re.findall(r'<li><b><a href="(gallery/[^"]*)">(\d+)</a></b>', section(text))
    assert {int(feature) for _, feature in links} == set(range(5))
    for link, _ in links:
        path, _, anchor = link.partition("#")
        assert f'id="{anchor}"' in (run / path).read_text(encoding="utf-8")
    assert "As they come, not the best ones; 8 of 10 features explained, skipped 2 (fewer than 20 fragments)" in text


def test_scores_of_older_explanations_are_said(tmp_path):
    run = fake_run(tmp_path)
    fake_scores(run, planned=plan(SITES[:1], METHODS[:3]))
    anew = "score/paper is of explanations that were made anew since, in explain/paper: score again."
    gone = "score/paper is of explanations that are no longer in explain/paper: explain and score again."
    text = report(run).read_text(encoding="utf-8")
    assert anew not in text and gone not in text
    finish(run / "explain" / "paper", "explain", {"features": 9}, {}, {}, {})
    assert anew in report(run).read_text(encoding="utf-8")
    shutil.rmtree(run / "explain" / "paper")
    text = report(run).read_text(encoding="utf-8")
    assert gone in text and anew not in text and "Scores: paper" in text


def test_missing_tokens_are_said(tmp_path):
    run = fake_run(tmp_path)
    fake_scores(run, planned=plan(SITES[:1], METHODS[:3]), explainers=("token",), missing=2)
    said = "named no number at 6 of 1,920 tokens (0.3 %), in 6 fragments: these are scored on their other tokens"
    assert said in report(run).read_text(encoding="utf-8") and said in show(run / "score" / "paper")
    fake_scores(run, planned=plan(SITES[:1], METHODS[:3]), explainers=("token",))
    assert "named no number" not in report(run).read_text(encoding="utf-8") + show(run / "score" / "paper")


def test_a_run_without_scores_has_no_section(tmp_path):
    shown = report(fake_run(tmp_path)).read_text(encoding="utf-8")
    assert "interpretation" not in shown and "Explanations" not in shown


@pytest.mark.parametrize(
    "options", [{"features": 0}, {"lost": True}, {"planned": []}, {"planned": plan(("attn_out.1",))}]
)
def test_scores_may_be_of_nothing(tmp_path, options):
    run = fake_run(tmp_path)
    fake_scores(run, **{"planned": plan(SITES[:1], METHODS[:3]), **options})
    shown = report(run).read_text(encoding="utf-8")
    Page(shown)
    assert 'id="interpretation"' in shown and "nan" not in section(shown)


def test_scores_without_differences_have_no_tally(tmp_path):
    run = fake_run(tmp_path)
    fake_scores(run, planned=plan(SITES[:1], METHODS[2:4]))
    assert "in how many pairs" not in report(run).read_text(encoding="utf-8")


def test_scores_that_run_toml_does_not_list_are_shown_and_said(run, tmp_path, monkeypatch):
    copy, names_read = tmp_path / "run", []
    shutil.copytree(run, copy)
    monkeypatch.setattr(cards, "scored", lambda _run, names: names_read.extend(names) or {})
    listed = ["activations", "eval", "features", "explain/exact", "score/exact"]
    shown = report(copy, listed).read_text(encoding="utf-8")
    assert "Scores: exact" in shown and "Scores: paper" in shown
    assert names_read == ["exact", "paper"]
    said = "Made apart from run.toml, which does not list it: explain/paper, score/paper."
    assert shown.count("Made apart from") == 1 and said in shown[shown.index("Scores: paper") :]
    assert "Made apart from" not in report(copy).read_text(encoding="utf-8")


def test_a_mean_of_few_features_says_so(tmp_path):
    run = fake_run(tmp_path)
    fake_scores(run, planned=plan(SITES[:1], METHODS[:2]))
    folder = run / "score" / "paper"
    content, old = read_json(folder / "score.json"), open_artifact(folder)
    assert content["dictionaries"][0]["explainers"]["token"]["top_and_random"]["n"] == 6
    content["dictionaries"][0]["explainers"]["token"]["detection"] |= {"value": 0.967, "n": 1}
    content["dictionaries"][1]["explainers"]["token"]["detection"] |= {"n": 6}
    content["dictionaries"][1]["explainers"]["token"]["fuzz"] |= {"value": None, "n": 0, "reason": "lost"}
    files = old.files | {"score.json": write_json(folder / "score.json", content)}
    finish(folder, "score", old.config, old.parents, files, {})
    rows = Page(report(run).read_text(encoding="utf-8")).rows["interpretation-1-site-1"]
    few, same = rows["tied-a1e-3-r2-s0"], rows["batchtopk-k24-r2-s0"]
    assert "(n 1)" in few[4] and "(n" not in few[0] and "(n 8)" in few[5]
    assert "(n" not in same[4] and "(n" not in same[5] and same[5].startswith("n/a")
    printed = show(folder)
    assert re.search(r"0\.967 \[[^]]*\] \(n 1\)", printed) and "n/a: lost" in printed and "n/a: lost (n" not in printed


def test_a_page_is_made_again_when_its_scores_change(tmp_path, monkeypatch):
    run = fake_run(tmp_path)
    fake_features(run, STORES)
    rows = fake_scores(run, planned=plan(SITES[:1], METHODS[:1]))
    monkeypatch.setattr(cards, "scored", lambda *_: scored(rows))
    report(run)
    pages = {path: path.stat().st_mtime_ns for path in (run / "gallery").rglob("*.html")}
    report(run)
    assert {path: path.stat().st_mtime_ns for path in pages} == pages
    other = [row | {"scores": row["scores"] | {"top": row["scores"]["random"]}} for row in rows]
    monkeypatch.setattr(cards, "scored", lambda *_: scored(other))
    report(run)
    changed = {path.stem for path, before in pages.items() if path.stat().st_mtime_ns != before}
    assert changed == {"tied-a1e-3-r2-s0"}


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_boxes_scrolls_sideways(run, width, browser_page):
    for name in ("report.html", "gallery/resid_post.1/tied-a1e-3-r2-s0.html"):
        browser_page.open(run / name, width)
        assert browser_page.scroll_width() == width, name


def test_every_strip_has_a_style():
    sheet = html.asset("card.css")
    assert all(f".feature .{side}{step} " in sheet for side in "rs" for step in range(11))


def test_numbers_survive_json(run, tmp_path):
    content = figure(run, "fig2", FigureConfig())
    write_json(tmp_path / "a.json", content)
    assert score_charts.picture(read_json(tmp_path / "a.json")) == score_charts.picture(content)
