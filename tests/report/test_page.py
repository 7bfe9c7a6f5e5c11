"""The report: complete, self-contained, escaped, and equal to metrics.json."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.fake_run import AT_CHANCE, SITES, fake_run
from helpers.page_parser import Page

from monolex.artifact import finish, open_artifact, read_json, write_json
from monolex.errors import UserError
from monolex.pages.html import interval, number
from monolex.report.page import report
from monolex.show.path import show

NOTICE = "The evaluation is not of what lies in this run now"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def text(run) -> str:
    path = report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_page_is_self_contained(text, page):
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")]
    assert all(link.startswith("#") for link in page.links)


def test_links_and_ids_agree(page):
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_page_says_what_was_run(text):
    said = ("tiny-neox", "GPTNeoXForCausalLM", "ab12ab12ab12", "812 documents", "215,040 tokens", "190,000 train")
    assert [
        s for s in (*said, *SITES, "train bos 741", "notes.jsonl:17: not JSON", "20,000", "torch ") if s not in text
    ] == []
    assert "14 dictionaries trained at 2 sites" in text and "12 baselines and 2 control models" in text
    assert "42 s" in text and "model = &#34;demo&#34;" in text


def test_numbers_equal_metrics_json(run, page):
    rows = {(r["model"], r["site"], r["name"], r["metric"]): r for r in read_json(run / "eval" / "metrics.json")}
    columns = ("l0", "fvu", "loss_recovered_zero", "loss_recovered_mean", "ce", "kl", "perplexity")
    for i, site in enumerate(SITES, 1):
        for name in ("topk-k8-r4-s0", "pca-topk-k32", "random", "batchtopk-k32-r4-s0"):
            shown = page.rows[f"site-{i}-fidelity"][name]
            wanted = [rows["subject", site, name, metric] for metric in columns]
            assert shown == [f"{number(r['value'])} {interval(r['low'], r['high'])}" for r in wanted]


def test_alive_fractions_are_shown_as_counts(page):
    features, alive_paper, alive = page.rows["site-1-health"]["topk-k8-r4-s0"][:3]
    assert (features, alive_paper.split()[0], alive.split()[0]) == ("512", str(round(0.855 * 512)), "448")


def test_references_baselines_controls_and_seeds_stand_beside(page):
    shown = page.rows["site-1-fidelity"]
    assert {"Trained", "Baselines", "References", "Control: randomly initialised model"} <= set(shown)
    assert shown["zero-ablation"][4].startswith("7.90") and shown["clean"][5].startswith("0")
    assert page.rows["site-1-seeds"]["tied-a8.6e-4-r4-s*"][0].startswith("0.620")
    assert any("and tied-a8.6e-4-r4-s1" in name for name in page.rows["site-1-similarity"])


def test_equal_l0_holds_only_dictionaries_of_that_l0(page):
    shown = page.rows["equal"]
    assert shown["topk-k32-r4-s0"][0].split()[0] == shown["pca-topk-k32"][0].split()[0] == "32.0"
    assert "topk-k8-r4-s0" not in shown and "random-topk-k32" in shown
    assert any(name.endswith("model with shuffled weights") for name in shown)


def test_every_missing_cell_has_its_reason(text, page):
    cells = re.findall(r"<td([^>]*)>n/a(.{0,80})", text)
    assert len(cells) > 10
    for attributes, rest in cells:
        assert 'title="' in attributes and 'class="na"' in attributes
        target = re.match(r'<a class="note" href="#([^"]+)"', rest)
        assert target and target[1] in page.ids
    assert f">{AT_CHANCE}</li>" in text


def test_names_from_data_are_escaped(tmp_path):
    bad = '<script>alert("x")</script>'
    content = report(fake_run(tmp_path, model=bad)).read_text(encoding="utf-8")
    assert "<script>alert" not in content and "&lt;script&gt;alert(1)" in content
    assert content.count("<script") == 1
    Page(content)


def test_control_and_baselines_may_be_missing(tmp_path):
    content = report(fake_run(tmp_path, controls=False, baselines=False)).read_text(encoding="utf-8")
    assert "no baselines and no control models" in content and "Control:" not in content
    assert "± 10 %" in content
    Page(content)


def test_activations_may_be_gone(tmp_path):
    run = fake_run(tmp_path)
    shutil.rmtree(run / "activations")
    Page(report(run).read_text(encoding="utf-8"))


def again(folder: Path) -> None:
    """Another artefact in the place of one, as a stage that was run again leaves it."""
    manifest = open_artifact(folder)
    parents = {"activations": "another"}
    finish(folder, manifest.kind, manifest.config, parents, manifest.files, manifest.data)


def test_a_source_that_came_to_nothing_is_not_missed_by_the_evaluation(tmp_path):
    run = fake_run(tmp_path)
    given_up = {"members": [], "given_up": [{"name": "ica", "reason": "FastICA had not converged"}]}
    finish(run / "baselines" / "ica", "baselines", {}, {}, {}, given_up)
    assert NOTICE not in report(run).read_text(encoding="utf-8")


def test_an_evaluation_of_something_else_says_so(tmp_path):
    run = fake_run(tmp_path)
    lies = [path.parent.relative_to(run).as_posix() for path in run.rglob("manifest.json")]
    assert NOTICE not in report(run).read_text(encoding="utf-8")
    assert NOTICE not in report(run, lies).read_text(encoding="utf-8")
    again(run / "train" / "residual")
    shutil.copytree(run / "train" / "residual", run / "train" / "new")
    shutil.rmtree(run / "baselines" / "plain")
    said = "made again since: train/residual; no longer there: baselines/plain; not measured: train/new"
    content = report(run).read_text(encoding="utf-8")
    assert f'<p class="notice" role="note">{NOTICE} ({said}): run it again.</p>' in content
    Page(content)
    content = report(run, lies).read_text(encoding="utf-8")
    assert "train/new" not in content and "; no longer there: baselines/plain): run" in content
    content = report(run, ["activations", "eval"]).read_text(encoding="utf-8")
    assert (
        "no longer in run.toml: controls/random/train/small, controls/shuffled/train/small, train/residual)" in content
    )


def test_warnings_stand_where_people_look(tmp_path):
    run = fake_run(tmp_path)
    assert "WARNING" not in show(run / "eval") and "to know before" not in report(run).read_text(encoding="utf-8")
    before = open_artifact(run / "eval")
    data = {**before.data, "warnings": ["resid_post.1/<a>: FVU 1.3 is above 1"]}
    finish(run / "eval", before.kind, before.config, before.parents, before.files, data)
    assert "WARNING  resid_post.1/<a>: FVU 1.3 is above 1" in show(run / "eval")
    text = report(run).read_text(encoding="utf-8")
    said = text.index("1 thing to know before reading the numbers")
    assert said < text.index("resid_post.1/&lt;a&gt;: FVU 1.3 is above 1") < text.index("<svg")


def test_other_activations_beside_the_evaluation_are_said(tmp_path):
    run = fake_run(tmp_path)
    again(run / "activations")
    assert "(made again since: activations): run it again" in report(run).read_text(encoding="utf-8")


def test_dictionaries_without_numbers(tmp_path):
    run = fake_run(tmp_path, controls=False)
    rows = [
        r | {"value": None, "low": None, "high": None, "reason": "lost"}
        for r in read_json(run / "eval" / "metrics.json")
    ]
    replace_metrics(run, rows)
    content = report(run).read_text(encoding="utf-8")
    assert "no data" in content and ">lost</li>" in content
    Page(content)


def test_unknown_metrics_are_shown_too(tmp_path):
    run = fake_run(tmp_path, controls=False)
    rows = read_json(run / "eval" / "metrics.json")
    replace_metrics(run, [*rows, rows[0] | {"metric": "sparse_probing_f1", "value": 0.625}])
    content = report(run).read_text(encoding="utf-8")
    assert "sparse probing f1" in content and "0.625" in content


def replace_metrics(run: Path, rows: list) -> None:
    """Write other rows and the manifest that goes with them."""
    entry = write_json(run / "eval" / "metrics.json", rows)
    manifest = read_json(run / "eval" / "manifest.json")
    manifest["files"]["metrics.json"] = {"bytes": entry.bytes, "sha256": entry.sha256}
    write_json(run / "eval" / "manifest.json", manifest)


def test_several_widths_get_looks_of_their_own(tmp_path):
    run = fake_run(tmp_path, controls=False)
    rows = read_json(run / "eval" / "metrics.json")
    wider = [r | {"name": f"{r['name']}-wide", "ratio": 8.0} for r in rows if r["kind"] == "tied"]
    replace_metrics(run, rows + wider)
    content = report(run).read_text(encoding="utf-8")
    assert "tied R=4" in content and "tied R=8" in content


def test_same_artefacts_give_the_same_page(run, text):
    assert report(run).read_text(encoding="utf-8") == text


def test_not_evaluated(tmp_path):
    with pytest.raises(UserError, match="no finished eval artefact"):
        report(tmp_path)


def test_no_rows(tmp_path):
    run = fake_run(tmp_path)
    replace_metrics(run, [])
    with pytest.raises(UserError, match="holds no rows"):
        report(run)


def test_damaged_densities(tmp_path):
    run = fake_run(tmp_path)
    path = run / "eval" / "densities.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match="is damaged"):
        report(run)


def test_browser_shows_the_page_without_errors(run, text, tmp_path, browser_page):
    assert 'aria-current="true"' in browser_page.open(run / "report.html") and browser_page.said == []
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("const links", "none.such; const links"), encoding="utf-8")
    assert 'aria-current="true"' not in browser_page.open(broken) and browser_page.said == ["none is not defined"]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_boxes_scrolls_sideways(width, tmp_path, browser_page):
    """Names without a break, on a phone and on a screen."""
    long = "x" * 90
    page = report(fake_run(tmp_path / long, model=long))
    page.write_text(page.read_text(encoding="utf-8").replace("over stdlib", f"over {long}"), encoding="utf-8")
    browser_page.open(page, width)
    assert browser_page.scroll_width() == width
