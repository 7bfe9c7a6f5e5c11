"""An export in a real browser, from a disk and from a plain server of files: nothing said, nobody else asked."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.browser import BrowserPage
from helpers.explored import NAME, SITES
from helpers.fake_store import HOSTILE
from helpers.static_site import static_site

from monolex.explorer.draw import drawn
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.config import ExportConfig
from monolex.explorer.export.write import export
from monolex.explorer.index import FILE
from monolex.explorer.links import Links
from monolex.explorer.views.feature import feature
from monolex.explorer.views.listing import listing
from monolex.explorer.views.marks import keep
from monolex.explorer.views.search import HITS, Hit, search

LABELLED = 3
PARSED = "new DOMParser().parseFromString(html, 'text/html')"
ROWS = f"""(html) => [...{PARSED}.querySelectorAll("tr[data-row], table.list thead")]
    .map((row) => row.outerHTML.replaceAll(/href="[^"]*"/g, "").replaceAll(/\\s+/g, " "))"""


BARE = 'outerHTML.replaceAll(/href="[^"]*"/g, "")'
CARD = f"document.querySelector('article.feature').{BARE}"
CARD_OF = f"{PARSED}.querySelector('article.feature').{BARE}"


class Exported(NamedTuple):
    """A run, its export, and where that is."""

    explorer: Explorer
    folder: Path
    key: str
    address: str


@pytest.fixture(scope="module")
def written(explored: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Explorer, Path, str]:
    ignored = shutil.ignore_patterns(f"{FILE}*")
    run = Path(shutil.copytree(explored, tmp_path_factory.mktemp("labelled") / "run", ignore=ignored))
    explorer = Explorer([run])
    dictionaries = explorer.runs["run"].dictionaries.values()
    key = next(d.key for d in dictionaries if d.title == f"{SITES[1]}/{NAME}")
    keep(explorer, key, LABELLED, {"text": HOSTILE, "note": "seen", "pinned": True})
    # a name with what an address has to escape
    return explorer, export(run, tmp_path_factory.mktemp("exported") / "a site #1", ExportConfig()).folder, key


@pytest.fixture(scope="module", params=["file", pytest.param("http", marks=pytest.mark.slow)])
def site(written: tuple[Explorer, Path, str], request: pytest.FixtureRequest) -> Iterator[Exported]:
    explorer, folder, key = written
    if request.param == "file":
        yield Exported(explorer, folder, key, folder.as_uri())
    else:
        with static_site(folder) as address:
            yield Exported(explorer, folder, key, address)


@pytest.fixture
def visit(site: Exported, browser_page: BrowserPage) -> Iterator[BrowserPage]:
    """A page of the browser, of which nothing may be said and which may ask the export alone."""
    yield browser_page
    assert browser_page.said == []
    assert [address for address in browser_page.requests if not address.startswith(f"{site.address}/")] == []


def rows(visit: BrowserPage) -> list[str]:
    visit.page.wait_for_selector("#listed table, #listed .lead:not([role])")
    return visit.page.evaluate(ROWS, visit.page.inner_html("#listed"))


def names(visit: BrowserPage) -> list[str]:
    return visit.page.eval_on_selector_all("tr[data-row]", "rows => rows.map(row => row.dataset.row)")


LISTS = (
    {},
    {"sort": "density", "page": "2"},
    {"sort": "layer", "up": "1", "state": "all"},
    {"kind": "mixed", "low": "0.01", "high": "0.2", "sort": "number"},
    {"state": "dead"},
    {"marked": "explained", "sort": "score", "columns": "score,share,kurtosis"},
    {"marked": "member"},
    {"marked": "pinned"},
    {"token": " cat"},
    {"token": "constructor"},
    {"back": "0.5", "sort": "reappears"},
    {"dictionary": "KEY", "score": "0.2"},
    {"dictionary": "KEY", "sort": "skew", "up": "1"},
    {"site": SITES[0], "sort": "max"},
)


def test_lists_are_the_server_s(site, visit):
    visit.open(f"{site.address}/features.html")
    before = rows(visit)
    count = f"(html) => {PARSED}.querySelector('.count').textContent"
    for template in LISTS:
        query = {name: value.replace("KEY", site.key) for name, value in template.items()}
        page = drawn(site.explorer, listing(site.explorer, query), "/features")
        visit.page.evaluate("document.getElementById('listed').replaceChildren()")
        visit.page.evaluate(
            "(query) => { location.hash = new URLSearchParams({...query, page: query.page ?? 1}); }", query
        )
        assert rows(visit) == visit.page.evaluate(ROWS, page), query
        assert visit.page.inner_text(".count") == visit.page.evaluate(count, page)
        form = visit.page.evaluate("[...new FormData(document.getElementById('choose'))].toString()")
        assert all(value in form for name, value in query.items() if name not in ("page", "columns"))
    visit.open(f"{site.address}/features.html")
    assert rows(visit) == before


def test_filters_stand_in_the_address_and_keys_go_through_the_list(site, visit):
    visit.open(f"{site.address}/index.html")
    visit.page.click("nav >> text=Features")
    rows(visit)
    visit.page.select_option("select[name=dictionary]", site.key)
    visit.page.wait_for_url(f"**/features.html#dictionary={site.key}")
    visit.page.wait_for_function("() => document.querySelector('h1').textContent.includes('/')")
    visit.page.click("table.list thead >> text=Density")
    visit.page.wait_for_url("**sort=density*")
    visit.page.wait_for_selector("[aria-sort=descending]")
    first, second, *_ = names(visit)
    visit.page.keyboard.press("j")
    visit.page.keyboard.press("j")
    assert visit.page.get_attribute("tr.at", "data-row") == second
    visit.page.keyboard.press("k")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector(f"[data-feature='{first}']")
    visit.page.keyboard.press("j")
    visit.page.wait_for_selector(f"[data-feature='{second}']")
    visit.page.go_back()
    visit.page.wait_for_selector(f"[data-feature='{first}']")
    visit.page.keyboard.press("r")
    visit.page.wait_for_url("**/feature.html#**")
    visit.page.wait_for_selector("[data-feature]")
    visit.page.go_back()


def test_a_feature_is_drawn_as_text(site, visit):
    visit.open(f"{site.address}/feature.html#{site.key}/{LABELLED}")
    visit.page.wait_for_selector("article.feature")
    assert HOSTILE in visit.page.inner_text(".kept") and visit.page.locator("main img").count() == 0
    assert f"Feature {LABELLED} of" in visit.page.title()
    assert f"{SITES[0]}/{NAME}" in visit.page.inner_text("#matches")
    visit.page.click("[rel=next]")
    visit.page.wait_for_selector(f"[data-feature='{site.key}/{LABELLED + 1}']")
    for place in (".skip", "main [href^='#']"):
        visit.page.evaluate("(place) => document.querySelector(place)?.click()", place)
        assert visit.page.url.endswith(f"{site.key}/{LABELLED + 1}")


def test_every_feature_of_a_dictionary_is_shown(site, visit):
    d_sae = site.explorer.place(site.key).dictionary.d_sae
    visit.open(f"{site.address}/feature.html")
    assert "by a script" in visit.page.inner_text("main")
    for number in range(d_sae):
        visit.page.evaluate(f"location.hash = '{site.key}/{number}'")
        visit.page.wait_for_selector(f"[data-feature='{site.key}/{number}']")
        card = str(feature(site.explorer, site.key, number).draw(Links())["card"])
        assert visit.page.evaluate(CARD) == visit.page.evaluate(f"(html) => {CARD_OF}", card)


def weights(hits: list[Hit]) -> dict[str, tuple[str, ...]]:
    return {f"{hit.feature.dictionary}/{hit.feature.number}": hit.reasons for hit in hits}


def test_searches_are_the_server_s(site, visit):
    visit.open(f"{site.address}/labels.html")
    for text in ("cat", "the", "sat on", "ma", "␣cat", "token", HOSTILE[10:13], "zzz"):
        visit.page.keyboard.press("/")
        visit.page.fill(".seek input", text)
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector(f"h1:has-text('“{text}”')")
        visit.page.evaluate("document.activeElement.blur()")
        same_hits(visit, text, search(site.explorer, {"q": text}).data["hits"])


def same_hits(visit: BrowserPage, text: str, hits: list[Hit]) -> None:
    """The same features for the same reasons, and one that is better than all others first."""
    expected, shown = weights(hits), names(visit)
    if len(hits) < HITS:  # of more than that equal ones may be others
        assert sorted(shown) == sorted(expected), text
        assert visit.page.inner_text("h1") == f"{len(hits)} features for “{text}”"
    if hits and len({hit.weight for hit in hits[:2]}) == 2:
        assert shown[0] == next(iter(expected))
    said = visit.page.eval_on_selector_all("tr[data-row]", "rows => rows.map(row => row.children[2].textContent)")
    for name, reasons in zip(shown, said, strict=True):
        for reason in expected.get(name, ()):
            # pages draw what is invisible
            assert reason.replace(" ", "") in re.sub("[ ␣]", "", reasons)


def test_a_label_is_found_and_listed(site, visit):
    visit.open(f"{site.address}/search.html#q=img src")
    visit.page.wait_for_selector("tr[data-row]")
    assert f"{site.key}/{LABELLED}" in names(visit) and "you call it" in visit.page.inner_text("#listed")
    visit.page.click("nav >> text=Labels")
    assert HOSTILE in visit.page.inner_text("tr[data-row]")
    assert visit.page.locator("main form, main textarea").count() == 0


def test_experiments_and_pairs_lead_to_features(site, visit):
    visit.open(f"{site.address}/causes.html")
    visit.page.click("h2 >> text=Trees")
    visit.page.click(".box.root")
    visit.page.wait_for_selector("[data-feature]")
    visit.page.click("nav >> text=Compare")
    visit.page.click("main ul a")
    assert "MMCS" in visit.page.inner_text("main")
    visit.page.click("table.beside a")
    visit.page.wait_for_selector("[data-feature]")


def test_a_feature_stands_in_a_page_of_somebody_else(site, visit, tmp_path):
    (tmp_path / "mine.html").write_text(
        f"<!doctype html><link rel=icon href=data:,><h1>mine</h1>"
        f'<iframe sandbox width=900 height=600 src="{site.address}/embed/{site.key}-{LABELLED}.html"></iframe>'
    )
    visit.open(tmp_path / "mine.html")
    frame = visit.page.frames[1]
    frame.wait_for_selector("article.feature")
    assert HOSTILE in frame.inner_text("main") and f"Feature {LABELLED} of" in frame.inner_text("footer")
    assert frame.locator("script, a").count() == 0


def test_a_telephone_scrolls_down_only(site, visit):
    for page in ("index.html", "features.html", "search.html#q=cat", "compare.html", "labels.html", "claims.html"):
        visit.open(f"{site.address}/{page}", width=390)
        if page[0] in "fs":
            visit.page.wait_for_selector("tr[data-row]")
        assert visit.scroll_width() <= 390, page


def test_what_an_address_says_is_never_markup_and_what_is_not_there_is_said(site, browser_page):
    wrong = "%3Cimg src=x onerror=alert(1)%3E"
    for page in (f"features.html#site={wrong}", f"features.html#sort={wrong}", "features.html#dictionary=abc"):
        browser_page.open(f"{site.address}/{page}")
        browser_page.page.wait_for_selector("[role=alert]")
    for page in (f"feature.html#{site.key}/99999", "feature.html#000000000000/1"):
        browser_page.open(f"{site.address}/{page}")
        assert "not in this export" in browser_page.page.inner_text("[role=alert]")
    browser_page.open(f"{site.address}/search.html#q={wrong}")
    browser_page.page.wait_for_function("() => document.querySelector('h1').textContent.includes('<img')")
    assert browser_page.page.locator("main img").count() == 0
    browser_page.open(f"{site.address}/feature.html#../../{wrong}/1")
    assert browser_page.page.locator("main img").count() == 0
    assert all("ERR_FILE_NOT_FOUND" in said or "404" in said for said in browser_page.said)
