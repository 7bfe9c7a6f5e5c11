"""All figures of a run: whole files, one page that opens from disk, and what is missing said with what makes it."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest
from helpers import causal_json, fake_scores
from helpers.causal_json import HOSTILE, SITES
from helpers.fake_run import fake_run
from helpers.page_parser import Page
from helpers.paper_run import paper_run
from PIL import Image

from monolex.artifact import finish, open_artifact, read_json, write_json
from monolex.cli import main
from monolex.errors import UserError
from monolex.interp.config import FIGURES, FigureConfig
from monolex.pages import html
from monolex.pages.picture import svg_file
from monolex.pages.png import legible
from monolex.report.paper import make
from monolex.report.paper.catalog import CATALOG
from monolex.report.paper.figure import VERDICTS

NAMESPACE = "{http://www.w3.org/2000/svg}"
VECTORS = {".svg": svg_file}
"""No PNGs, which take most of the time, where a test does not look at them."""
OF_SCORES = ("fig2", "fig8", "fig9", "fig10", "fig18", "table1", "table2", "training")
OF_EVALUATION = ("fig6", "fig16", "perplexity", "biases", "densities", "similarity")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return paper_run(tmp_path_factory.mktemp("run") / "a-run")


@pytest.fixture(scope="module")
def gallery(run) -> make.Gallery:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(make, "ENDINGS", VECTORS)
        return make.gallery(run, FigureConfig())


@pytest.fixture(scope="module")
def text(gallery) -> str:
    return gallery.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


@pytest.fixture
def vectors(monkeypatch) -> None:
    monkeypatch.setattr(make, "ENDINGS", VECTORS)


def texts(path: Path) -> list[str]:
    return [node.text or "" for node in ET.fromstring(path.read_text(encoding="utf-8")).iter(f"{NAMESPACE}text")]


def section(text: str, name: str) -> str:
    return re.split(r"<section id=", text.split(f'<section id="{name}"', 1)[1])[0]


def test_every_name_of_the_command_is_a_row():
    assert [row.name for row in CATALOG] == sorted(FIGURES, key=[row.name for row in CATALOG].index)
    assert {row.name for row in CATALOG} == set(FIGURES) and len(CATALOG) == len(FIGURES)
    for row in CATALOG:
        assert row.title and row.number and row.claim.endswith(".") and row.needs and row.way


def test_everything_can_be_drawn_of_a_run_that_has_everything(run, gallery):
    assert gallery.missing == {} and list(gallery.drawn) == [row.name for row in CATALOG]
    folder = run / "figures"
    assert gallery.page == folder / "index.html"
    assert {*gallery.paths, gallery.page} == set(folder.iterdir())
    for name in FIGURES:
        content = read_json(folder / f"{name}.json")
        json.dumps(content, allow_nan=False)
        assert content["figure"] == name and content["reading"]["verdict"] in VERDICTS and content["reading"]["said"]
        assert not re.search(r"var\(|<script|url\(", (folder / f"{name}.svg").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["fig4", "fig5", "densities", "table1"])
def test_pixels_are_of_the_same_size(name, run, tmp_path):
    numbers, vector, pixel = make.figure(run, name, FigureConfig(), tmp_path)
    assert [path.name for path in (numbers, vector, pixel)] == [f"{name}{end}" for end in (".json", ".svg", ".png")]
    size = ET.fromstring(vector.read_text(encoding="utf-8"))
    with Image.open(pixel) as image:
        assert image.size == (2 * int(size.get("width", 0)), 2 * int(size.get("height", 0)))
        assert len(image.convert("RGB").getcolors(2**20) or ()) > 20


def test_figures_of_scores_have_their_panels_and_titles(run, gallery):
    for name in OF_SCORES:
        content, said = read_json(run / "figures" / f"{name}.json"), texts(run / "figures" / f"{name}.svg")
        assert legible(content["title"]) in said
        for panel in content.get("panels", ()):
            assert panel["title"] in said and {series["label"] for series in panel["series"]} <= set(said)


def test_the_page_is_self_contained(run, text, page):
    assert "://" not in text and "@import" not in text and "url(" not in text and "<script" not in text
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")]
    assert len(page.ids) == len(set(page.ids)) and set(FIGURES) <= set(page.ids)
    for link in page.links:
        known = page.ids if link.startswith("#") else [path.name for path in (run / "figures").iterdir()]
        assert link.removeprefix("#").replace(".png", ".svg") in known


def test_every_section_says_what_the_paper_says_and_what_the_run_shows(run, gallery, text):
    for row in CATALOG:
        part = html_text(section(text, row.name))
        assert row.claim in part and row.title in part and VERDICTS[gallery.drawn[row.name].verdict] in part
        for sentence in gallery.drawn[row.name].said[:3]:
            assert re.sub(r"\s", "", sentence) in re.sub(r"\s", "", part)
        assert row.tested in part and bool(row.tested) == (gallery.drawn[row.name].verdict != "no claim")
        assert "<svg" in section(text, row.name) or row.name.startswith("table")


def test_the_long_runs_of_the_paper_are_of_their_chunks():
    (row,) = (row for row in CATALOG if row.name == "fig7")
    for chunks in (20, 64):
        assert f"{chunks} chunks" in row.setting and f"{chunks * 2_098_176 / 1e6:.0f} million" in row.setting


def html_text(part: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", part))


def test_tokens_of_data_are_escaped_and_visible(text, page, run):
    assert HOSTILE not in text and "&lt;script&gt;" in section(text, "fig4")
    assert "\u202e" not in text and "\x00" not in text
    assert HOSTILE in json.dumps(read_json(run / "figures" / "table1.json"))
    assert "&lt;script&gt;alert(1)" in section(text, "table1")
    assert {"␣self", "↵␣×4", "∅"} <= set(texts(run / "figures" / "fig4.svg"))


def test_the_contents_list_every_figure_with_its_verdict(text, gallery):
    listed = section(text, "contents")
    for row in CATALOG:
        line = listed.split(f'href="#{row.name}"', 1)[1].split("</li>")[0]
        assert html_text(line).strip().endswith(VERDICTS[gallery.drawn[row.name].verdict])


def test_an_evaluation_is_enough_for_a_page(vectors, tmp_path):
    gallery = make.gallery(fake_run(tmp_path), FigureConfig())
    assert set(gallery.drawn) == set(OF_EVALUATION)
    assert set(gallery.missing) == set(FIGURES) - set(OF_EVALUATION)
    text = gallery.page.read_text(encoding="utf-8")
    Page(text)
    for row in CATALOG:
        part = html_text(section(text, row.name))
        said = f"This run cannot say: {gallery.missing.get(row.name)}."
        assert (said in part and f"To get it: {row.way}" in part) == (row.name in gallery.missing)
    assert f"{len(OF_EVALUATION)} of {len(FIGURES)} figures" in text


@pytest.mark.parametrize("kind", ["patch", "ablate", "tree"])
def test_an_experiment_is_enough_for_a_page(kind, vectors, tmp_path):
    content = {"patch": causal_json.patch(), "ablate": causal_json.ablate(), "tree": causal_json.tree()}[kind]
    causal_json.artifact(tmp_path / kind / "a", kind, content)
    gallery = make.gallery(tmp_path, FigureConfig())
    assert set(gallery.drawn) == {"patch": {"fig3", "fig17"}, "ablate": {"fig4"}, "tree": {"fig5"}}[kind]
    Page(gallery.page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FIGURES)
def test_one_figure_that_lacks_everything_says_what_makes_it(name, tmp_path):
    with pytest.raises(UserError) as refused:
        make.figure(tmp_path, name, FigureConfig())
    if name in OF_SCORES:
        assert "has no scores; run `monolex explain" in str(refused.value)
    else:
        way = next(row.way for row in CATALOG if row.name == name)
        assert str(refused.value).startswith(f"{name}: of {tmp_path} ") and str(refused.value).endswith(way)


def test_a_run_with_nothing_is_refused(tmp_path, capsys):
    assert main(["figure", str(tmp_path)]) == 2
    assert "holds nothing that a figure of the paper is made of" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_what_is_damaged_takes_no_other_figure_away(vectors, tmp_path):
    causal_json.artifact(tmp_path / "patch" / "a", "patch", causal_json.patch())
    (tmp_path / "patch" / "a" / "patch.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="instead of"):
        make.gallery(tmp_path, FigureConfig())
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", causal_json.ablate())
    gallery = make.gallery(tmp_path, FigureConfig())
    assert set(gallery.drawn) == {"fig4"} and "instead of" in gallery.missing["fig3"]
    part = html_text(section(gallery.page.read_text(encoding="utf-8"), "fig3"))
    assert gallery.missing["fig3"] in part and "not drawn" in part


def test_an_older_artefact_takes_no_other_figure_away(vectors, run, tmp_path):
    older = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    for folder in ("features", "score/paper", "tree/self"):
        manifest = older / folder / "manifest.json"
        write_json(manifest, read_json(manifest) | {"schema": 0})
    gallery = make.gallery(older, FigureConfig())
    assert set(gallery.missing) == {*OF_SCORES, "fig4", "fig5", "fig11"}
    assert all("schema 0" in gallery.missing[name] for name in ("fig2", "fig4", "fig5"))


def test_a_name_of_nothing_that_was_scored_is_refused(tmp_path):
    fake_scores.fake_scores(tmp_path, planned=fake_scores.plan(SITES[:1]))
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", causal_json.ablate())
    with pytest.raises(UserError, match="explainers = 'tokens': nothing of it was scored"):
        make.gallery(tmp_path, FigureConfig(explainers=("tokens",)))
    with pytest.raises(UserError, match="scores = 'mine'"):
        make.gallery(tmp_path, FigureConfig(scores=("mine",)))


def test_the_command_ends_by_naming_the_page(vectors, tmp_path, capsys):
    fake_scores.fake_scores(tmp_path, planned=fake_scores.plan(SITES[:1], fake_scores.METHODS[:3]))
    assert main(["figure", str(tmp_path), "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"open {tmp_path / 'figures' / 'index.html'}") and len(lines) == len(FIGURES) + 1
    assert "fig10       not drawn: it has no scores of this kind" in lines
    assert re.search(r"^fig2 +(undecided|confirmed|contradicted)$", "\n".join(lines), re.MULTILINE)


def test_one_figure_elsewhere(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    fake_scores.fake_scores(run, "exact", fake_scores.plan(SITES), simulator=fake_scores.EXACT)
    fake_scores.fake_scores(run, "paper", fake_scores.plan(SITES))
    assert main(["figure", str(run), "fig9", "--out", str(out), "--scores", "exact", "--together"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["fig9.json", "fig9.png", "fig9.svg"]
    assert [panel["simulator"] for panel in read_json(out / "fig9.json")["panels"]] == [fake_scores.EXACT]
    assert capsys.readouterr().out.count("look at ") == 3


def test_the_page_links_the_report_where_it_lies_beside(vectors, tmp_path):
    run = fake_run(tmp_path / "run")
    (run / "report.html").write_text("a report", encoding="utf-8")
    assert 'href="../report.html"' in make.gallery(run, FigureConfig()).page.read_text(encoding="utf-8")
    assert "report.html" not in make.gallery(run, FigureConfig(), tmp_path / "out").page.read_text(encoding="utf-8")


def test_what_was_drawn_before_and_is_no_more_goes(tmp_path):
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", causal_json.ablate(features=2))
    causal_json.artifact(tmp_path / "tree" / "a", "tree", causal_json.tree())
    make.gallery(tmp_path, FigureConfig())
    folder = tmp_path / "figures"
    assert (folder / "fig4-2.svg").exists() and (folder / "fig5.png").exists()
    (folder / "fig4-mine.svg").write_text("mine", encoding="utf-8")
    causal_json.artifact(tmp_path / "ablate" / "a", "ablate", causal_json.ablate())
    (tmp_path / "tree" / "a" / "manifest.json").unlink()
    make.gallery(tmp_path, FigureConfig())
    left = {path.name for path in folder.iterdir()}
    assert left == {"index.html", "fig4.json", "fig4.svg", "fig4.png", "fig4-mine.svg"}


def test_the_same_run_gives_the_same_page(vectors, run, text, tmp_path):
    again = make.gallery(run, FigureConfig(), tmp_path / "figures")
    assert again.page.read_text(encoding="utf-8") == text


def test_stale_artefacts_are_said_beside_their_figure(vectors, run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    text = make.gallery(run, FigureConfig()).page.read_text(encoding="utf-8")
    stale = [name for name in FIGURES if 'class="notice"' in section(text, name)]
    assert set(stale) <= {*OF_EVALUATION}  # the sweep with a log was not evaluated
    parents = {"subject.train.residual": "another"}
    causal_json.artifact(run / "patch" / "ioi", "patch", causal_json.patch(), parents)
    finish(run / "explain" / "paper", "explain", open_artifact(run / "explain" / "paper").config, {"a": "b"}, {}, {})
    text = make.gallery(run, FigureConfig()).page.read_text(encoding="utf-8")
    assert "train/residual was made again since" in section(text, "fig3")
    assert "score/paper is of explanations that were made anew since" in section(text, "fig2")


def test_numbers_of_the_page_are_those_of_the_files(run, text):
    content = read_json(run / "figures" / "fig2.json")
    point = next(p for p in content["panels"][0]["series"][0]["points"] if p["value"] is not None)
    assert f"score {html.number(point['value'])} {html.interval(point['low'], point['high'])}" in section(text, "fig2")


@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_opens_it_quietly(width, run, gallery, browser_page):
    browser_page.open(gallery.page, width)
    assert browser_page.said == [] and browser_page.requests == []
    assert browser_page.scroll_width() == width
    shown = "document.getElementById('fig3').querySelector('svg').getBoundingClientRect().width"
    assert browser_page.page.evaluate(shown) > 300
