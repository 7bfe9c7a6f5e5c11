"""An export: the same as the server's pages, whole, harmless, and never in place of anything else."""

import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from helpers.explored import NAME, SITES
from helpers.fake_store import HOSTILE
from helpers.page_parser import Page

from monolex.artifact import MANIFEST, read_json, verify
from monolex.cli import main
from monolex.errors import UserError
from monolex.explorer.explorer import Explorer
from monolex.explorer.export import write as writing
from monolex.explorer.export.config import ExportConfig
from monolex.explorer.export.drawing import TOGETHER
from monolex.explorer.export.shards import unpacked
from monolex.explorer.export.short_marks import shortened, whole
from monolex.explorer.export.words import beginning, word_shards
from monolex.explorer.export.write import export
from monolex.explorer.fill import SHIFT
from monolex.explorer.index import FILE
from monolex.explorer.labels import Label
from monolex.explorer.links import Links
from monolex.explorer.views import listing
from monolex.explorer.views.feature import feature
from monolex.explorer.views.listing import COLUMNS, ListQuery
from monolex.explorer.views.marks import keep
from monolex.explorer.views.overview import worth_seeing
from monolex.features.evidence import Context
from monolex.pages.tokens import context
from monolex.workers import Work

TITLE = f"{SITES[1]}/{NAME}"
LABELLED = 3


@pytest.fixture(scope="module")
def run(explored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own, with a label."""
    ignored = shutil.ignore_patterns(f"{FILE}*")
    folder = Path(shutil.copytree(explored, tmp_path_factory.mktemp("labelled") / "run", ignore=ignored))
    explorer = Explorer([folder])
    keep(explorer, key_of(explorer), LABELLED, {"text": HOSTILE, "note": "seen", "pinned": True})
    return folder


@pytest.fixture(scope="module")
def explorer(run: Path) -> Explorer:
    return Explorer([run])


@pytest.fixture(scope="module")
def key(explorer: Explorer) -> str:
    return key_of(explorer)


@pytest.fixture(scope="module")
def site(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, tmp_path_factory.mktemp("exported") / "site", ExportConfig()).folder


def key_of(explorer: Explorer) -> str:
    return next(d.key for d in explorer.runs["run"].dictionaries.values() if d.title == TITLE)


def contents(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}


def shards(site: Path) -> dict[str, Any]:
    return dict(unpacked(path.read_bytes()) for path in sorted((site / "data").rglob("*.js")))


def feature_pages(site: Path) -> dict[str, str]:
    """Markup of the page of every feature, by the address behind ``feature.html#``."""
    return {
        f"{name.split('/')[1]}/{number}": whole(page["html"], *page["bounds"])
        for name, value in shards(site).items()
        if name.startswith("feature/")
        for number, page in value.items()
    }


def exported(text: str) -> str:
    """What the server's links to features are in an export."""
    return text.replace('href="/feature/', 'href="feature.html#')


def test_a_card_is_the_server_s(site, explorer):
    pages = feature_pages(site)
    gathered = [d for d in explorer.runs["run"].dictionaries.values() if d.gathered]
    assert len(pages) == sum(d.d_sae for d in gathered)
    for d in gathered:
        for number in range(0, d.d_sae, 3):
            card = feature(explorer, d.key, number).draw(Links())["card"]
            assert exported(str(card)) in pages[f"{d.key}/{number}"]


@pytest.mark.parametrize(("largest", "smallest"), [(4.0, 0.0), (3.0, -2.0), (1234.5, -1e-5)])
def test_short_marks_say_the_same(largest, smallest):
    drawn = np.random.default_rng(0)
    texts = [" the", "<b>", "\\xe2", "=>", " 3 < 4"] * 3
    markup, kept = "", 0
    for bound in (largest, smallest or largest):
        values = (drawn.uniform(-0.2, 1, len(texts)) * bound).tolist()
        ids = tuple(range(len(texts)))
        shown = Context(0, 0, 0, 7, ids, tuple(texts), tuple(values), "top", 0, 0)
        markup += str(context(shown, bound))
        kept += sum(value * bound > 0 for value in values)
    short = shortened(markup, largest, smallest)
    assert whole(short, largest, smallest) == markup
    # only what has no colour stays as it was, and a mark that follows another needs no position
    assert markup.count("<mark") - short.count("<mark") == kept and len(short) < 0.7 * len(markup)


def test_a_feature_s_page_has_its_label_and_what_is_like_it_and_no_form(site, key):
    page = feature_pages(site)[f"{key}/{LABELLED}"]
    assert "&lt;/script&gt;" in page and "seen" in page and "<form" not in page and "prompt" not in page
    assert f"{SITES[0]}/{NAME}" in page.split('id="matches"')[1]


@pytest.mark.parametrize("column", COLUMNS)
def test_ranks_sort_as_the_server_does(site, explorer, column):
    run, known = explorer.runs["run"], shards(site)
    for up in (False, True):
        expected = listing.features(run, ListQuery(sort=column.key, up=up, state="all"), -1)
        rows = []
        for d in run.dictionaries.values():
            if d.gathered:
                table = known[f"list/{d.key}"]
                ranks = table["ranks"][column.key]
                rows += [(r, d.id, n, d.key) for r, n in zip(ranks, table["numbers"], strict=True)]
        sign = -1 if column.down != up else 1
        rows.sort(key=lambda row: (row[0] is None, sign * (row[0] or 0), row[1], row[2]))
        assert [(row[3], row[2]) for row in rows] == [(row.dictionary, row.number) for row in expected]


def test_every_link_leads_to_what_there_is(site):
    links_lead(site, every=3)


def links_lead(site: Path, every: int = 1) -> None:
    """``every`` how manyth page of a feature is looked at."""
    pages = feature_pages(site)
    drawn = [(path, content.decode()) for path, content in contents(site).items() if path.endswith(".html")]
    seen = set()
    for path, text in [*drawn, *(("feature.html", page) for page in list(pages.values())[::every])]:
        parsed = Page(text)
        for address in [*parsed.links, *(value for name, value in parsed.attributes if name in ("src", "action"))]:
            page, _, place = unquote(address).partition("#")
            if address in ("data:,", "#main"):
                continue
            if not page:
                assert place in parsed.ids, (path, address)
                continue
            file = Path(os.path.normpath(site / Path(path).parent / page))
            assert file.is_file() and file.is_relative_to(site), (path, address)
            if file.name == "feature.html" and place:
                assert place in pages, (path, address)
            elif place and not place.count("=") and file.suffix == ".html":
                assert place in Page(file.read_text()).ids, (path, address)
            seen.add(file.name)
    assert {"index.html", "features.html", "feature.html", "search.html", "labels.html", "compare.html"} <= seen


def test_pages_may_do_what_they_need_and_no_more(site):
    for path, content in contents(site).items():
        text = content.decode()
        if path.endswith(".html"):
            policy = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', text)
            assert policy and policy[1].startswith("default-src &#39;none&#39;"), path
            assert "connect-src" not in policy[1] and "eval" not in policy[1]
            assert not re.search(r"<script(?![^>]*(?: src=| type=\"application/json\"))", text), path
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", path)
        assert not re.search(r"https?://(?!www\.w3\.org/)", text) or path.startswith("data/"), path


def test_markup_of_tokens_and_labels_is_text(site):
    texts = [content.decode() for path, content in contents(site).items() if path.endswith(".html")]
    texts += list(feature_pages(site).values())
    for name, value in shards(site).items():
        texts += value["words"] if name.startswith("list/") else []
        texts += [said[0] for said in value["tokens"].values()] if name.startswith("words/") else []
    assert sum("&lt;/script&gt;" in text or "\\u003c/script" in text for text in texts) > 3
    assert not any("<img" in text or 'onerror="' in text for text in texts)


def test_processes_beside_each_other_write_the_same_bytes(site, run, tmp_path, monkeypatch):
    """They are sent work as :mod:`monolex.workers` sends it, without the seconds that a process takes to start."""

    def sent(work: Sequence[Work], *_rest: object) -> Iterator[tuple[int, Any]]:
        yield from ((number, pickle.loads(pickle.dumps(each))()) for number, each in reversed(list(enumerate(work))))

    monkeypatch.setattr(writing, "done", sent)
    assert contents(export(run, tmp_path / "beside", ExportConfig()).folder) == contents(site)


def test_the_manifest_says_what_is_there(site, explorer):
    manifest = verify(site)
    assert manifest.kind == "export" and manifest.data["count"] == len(manifest.files)
    assert set(manifest.files) | {MANIFEST} == set(contents(site))
    listed = {d["title"]: d["hash"] for d in manifest.data["dictionaries"]}
    assert listed == {d.title: d.hash for d in explorer.runs["run"].dictionaries.values() if d.gathered}
    assert manifest.parents["features"] == verify(explorer.runs["run"].folder / "features").content


def test_a_feature_is_small(site):
    sizes = {path: len(content) for path, content in contents(site).items()}
    assert max(size for path, size in sizes.items() if path.startswith("data/feature/")) < 40_000 * TOGETHER
    assert all(len(page.encode()) < 100_000 for page in feature_pages(site).values())


def test_tokens_and_words_are_those_of_the_index(site, explorer):
    run, known = explorer.runs["run"], shards(site)
    place = {d.id: i for i, d in enumerate(d for d in run.dictionaries.values() if d.gathered)}
    for text, count in run.index.rows("SELECT text, count(*) FROM token GROUP BY text"):
        _, *postings = known[f"words/{beginning(text)}"]["tokens"][text]
        triples = [tuple(postings[i : i + 3]) for i in range(0, len(postings), 3)]
        rows = run.index.rows("SELECT dictionary, number, share FROM token WHERE text = ?", (text,))
        assert len(triples) == count
        assert sorted((d, n) for d, n, _ in triples) == sorted((place[d], n) for d, n, _ in rows)
        assert sorted(s for _, _, s in triples) == pytest.approx(sorted(s for _, _, s in rows))
    words = {w for name, value in known.items() if name.startswith("words/") for w in value["words"]}
    for word in words:
        hits = run.index.rows("SELECT count(*) FROM words WHERE words MATCH ?", (f'"{word}"',))
        assert len(known[f"words/{beginning(word)}"]["words"][word]) // 4 == hits[0][0]


def test_words_weigh_what_sqlite_weighs_them_where_features_are_dead(explored, tmp_path):
    folder = shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns(f"{FILE}*"))
    (run,) = Explorer([Path(folder)]).runs.values()
    number = f"(rowid & {(1 << SHIFT) - 1})"
    with run.index.writing() as db:
        db.execute("UPDATE feature SET n_active = 0 WHERE number % 3 = 0")
        db.execute("DELETE FROM token WHERE number % 3 = 0")
        db.execute(f"DELETE FROM words WHERE {number} % 3 = 0")
        db.execute(f"UPDATE words SET tokens = '+=', explanations = '' WHERE {number} = 1")
    gathered = [d for d in run.dictionaries.values() if d.gathered]
    known = word_shards(run, gathered, {d.key: range(d.d_sae) for d in gathered})
    corpus = known["documents"]
    (rows,) = run.index.rows("SELECT count(*) FROM words")[0]
    assert corpus["rows"] == rows > 0
    checked = 0
    for name, shard in known.items():
        for word, flat in shard["words"].items() if name.startswith("words/") else ():
            postings = [flat[i : i + 4] for i in range(0, len(flat), 4)]
            query = "SELECT rowid, -bm25(words, 2.0, 1.0) FROM words WHERE words MATCH ?"
            weights = dict(run.index.rows(query, (f'"{word}"',)))
            for d, which, explained, told in postings:
                count, length = 2 * explained + told, corpus["dictionaries"][d]["lengths"][which]
                inverse = max(1e-6, math.log((rows - len(postings) + 0.5) / (len(postings) + 0.5)))
                weight = inverse * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / corpus["mean"]))
                assert weight == pytest.approx(weights[gathered[d].id << SHIFT | which])
                checked += 1
    assert checked > 100


def test_features_that_stand_alone(site, explorer, key):
    pages = {path: text.decode() for path, text in contents(site).items() if path.startswith("embed/")}
    shown = {f"embed/{d.key}-{number}.html" for d, number in worth_seeing(explorer.runs["run"])}
    assert set(pages) == shown | {f"embed/{key}-{LABELLED}.html"}
    for text in pages.values():
        parsed = Page(text)
        assert set(parsed.links) == {"data:,"} and "<script" not in text and ' src="' not in text


def test_what_is_not_exported_has_no_link(run, explorer, tmp_path):
    few = ExportConfig(dictionaries=(NAME,), features=1, embed=(f"{TITLE}:5",))
    site = export(run, tmp_path / "few", few).folder
    listed = read_json(site / MANIFEST)["data"]["dictionaries"]
    assert {each["title"] for each in listed} == {f"{site}/{NAME}" for site in SITES}
    pages, key = feature_pages(site), key_of(explorer)
    assert {f"{key}/{LABELLED}", f"{key}/5"} <= set(pages) and len(pages) < sum(each["d_sae"] for each in listed)
    assert [path.name for path in (site / "embed").iterdir()] == [f"{key}-5.html"]
    links_lead(site)


def test_what_is_said_of_other_dictionaries_stays_at_home(explored, tmp_path):
    ignored = shutil.ignore_patterns(f"{FILE}*")
    folder = Path(shutil.copytree(explored, tmp_path / "run", ignore=ignored))
    explorer = Explorer([folder])
    for d in explorer.runs["run"].dictionaries.values():
        said = {"text": f"label of {d.hash}", "note": f"note of {d.hash}", "pinned": True}
        for number in range(3):
            keep(explorer, d.key, number, said)
    gone = Label("f" * 64, 0, "label of nothing", "note", False, "2026-01-01T00:00:00+00:00")
    with explorer.runs["run"].index.writing() as db:
        db.execute("INSERT INTO label VALUES (?, ?, ?, ?, ?, ?)", gone)
    chosen = {d.hash for d in explorer.runs["run"].dictionaries.values() if d.name == NAME}
    site = export(folder, tmp_path / "site", ExportConfig(dictionaries=(NAME,), features=1)).folder
    texts = [json.dumps(value) for value in shards(site).values()]
    texts += [content.decode() for path, content in contents(site).items() if not path.startswith("data/")]
    said = {each for text in texts for each in re.findall(r"(?:label|note) of (\w+)", text)}
    assert said == chosen
    kept = [json.loads(line) for line in (site / "labels.jsonl").read_text().splitlines()]
    assert len(kept) == 3 * len(chosen) and {line["hash"] for line in kept} == chosen


def test_an_export_takes_the_place_of_an_export_alone(run, tmp_path, monkeypatch):
    config = ExportConfig(dictionaries=("pca",), features=1)
    folder = export(run, tmp_path / "site", config).folder
    (folder / "stray.html").write_text("of before")
    before = contents(folder)

    def broken(*_arguments: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="disk is full"):
        patched.setattr(writing, "_finish", broken)
        export(run, folder, config)
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["site"]
    export(run, folder, config)
    assert set(contents(folder)) == set(before) - {"stray.html"} and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "mine", tmp_path / "file", run, run / "features"):
        with pytest.raises(UserError, match="no export|is a file"):
            export(run, place, config)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"dictionaries": ("topk-k5*",)}, "dictionaries = 'topk-k5\\*' fits none; "),
        ({"embed": ("resid_post.2",)}, "write SITE/NAME:NUMBER"),
        ({"embed": (f"{TITLE}:99999",)}, "has features 0 to"),
        ({"embed": ("resid_post.9/x:1",)}, "embed = 'resid_post.9/x:1'"),
    ],
)
def test_what_does_not_exist_is_refused_at_once(run, tmp_path, config, said):
    with pytest.raises(UserError, match=said):
        export(run, tmp_path / "site", ExportConfig(**config))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="features = 0"):
        ExportConfig(features=0)


def test_the_verb(run, tmp_path, capsys):
    arguments = ["export", str(run), str(tmp_path / "site"), "--dictionaries", "pca", "--features", "2", "--jobs", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "site" / "index.html") in said and "features in" in said
    assert main(["show", str(tmp_path / "site"), "--verify"]) == 0 and "whole" in capsys.readouterr().out
    assert json.loads((tmp_path / "site" / MANIFEST).read_text())["kind"] == "export"
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
