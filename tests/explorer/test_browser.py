"""The explorer in a real browser: keys, filters, search, labels, comparisons; nothing said, nobody else asked."""

from collections.abc import Iterator

import pytest
from helpers.browser import BrowserPage
from helpers.explored import NAME, SITES, Served
from helpers.fake_store import HOSTILE


@pytest.fixture
def visit(server: Served, browser_page: BrowserPage) -> Iterator[BrowserPage]:
    """A page of the browser, of which nothing may be said and which may ask the server alone."""
    yield browser_page
    assert browser_page.said == []
    assert {address for address in browser_page.requests if not address.startswith(f"{server.address}/")} == set()


@pytest.fixture(scope="module")
def key(server: Served) -> str:
    run = server.explorer.runs["run"]
    return next(d.key for d in run.dictionaries.values() if d.title == f"{SITES[1]}/{NAME}")


def test_from_the_front_page_to_a_feature_by_keys(server, visit):
    visit.open(f"{server.address}/")
    assert "worth seeing" in visit.page.inner_text("main").lower()
    visit.page.click("nav >> text=Features")
    visit.page.wait_for_url("**/features")
    first, second = (row.get_attribute("data-row") for row in visit.page.query_selector_all("tr[data-row]")[:2])
    visit.page.keyboard.press("j")
    visit.page.keyboard.press("j")
    assert visit.page.get_attribute("tr.at", "data-row") == second
    visit.page.keyboard.press("k")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(f"**/feature/{first}")
    visit.page.keyboard.press("j")  # the next of the list, not the next number
    visit.page.wait_for_url(f"**/feature/{second}")
    visit.page.keyboard.press("k")
    visit.page.wait_for_url(f"**/feature/{first}")


def test_filters_stand_in_the_address(server, visit, key):
    visit.open(f"{server.address}/features")
    visit.page.select_option("select[name=dictionary]", key)
    visit.page.wait_for_url(f"**/features?dictionary={key}")
    visit.page.evaluate(
        """() => { const range = document.querySelector("[data-of=low]"); range.value = -1;
                   range.dispatchEvent(new Event("input", {bubbles: true}));
                   range.dispatchEvent(new Event("change", {bubbles: true})); }"""
    )
    visit.page.wait_for_url("**low=0.100*")
    densities = [float(cell.split()[0]) for cell in visit.page.locator("td:nth-child(3)").all_inner_texts()]
    assert densities and min(densities) >= 10
    visit.page.click("summary >> text=Columns")
    visit.page.uncheck("[data-column=max]")
    visit.page.wait_for_url("**columns=density*")
    assert "Maximum" not in visit.page.inner_text("table.list thead")
    visit.page.click("table.list thead >> text=Density")
    visit.page.wait_for_url("**sort=density*")
    shown = [float(cell.split()[0]) for cell in visit.page.locator("td:nth-child(3)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)


def test_a_search_by_the_slash_key(server, visit):
    visit.open(f"{server.address}/labels")
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("cat")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/search?q=cat")
    assert "cat" in visit.page.inner_text("tr[data-row]:first-child")


def test_a_label_is_kept_and_is_text(server, visit, key):
    visit.open(f"{server.address}/feature/{key}/2")
    visit.page.fill("[name=text]", HOSTILE)
    visit.page.click("#label button")
    visit.page.wait_for_selector("#label output:text-is('kept')")
    visit.page.check("[name=pinned]")
    visit.open(f"{server.address}/features?marked=pinned")
    assert HOSTILE in visit.page.inner_text("tr[data-row]")
    visit.open(f"{server.address}/feature/{key}/2")
    assert visit.page.input_value("[name=text]") == HOSTILE and visit.page.is_checked("[name=pinned]")
    server.ask(f"/label/{key}/2", body={})


def test_what_is_like_a_feature_comes_into_view(server, visit, key):
    visit.open(f"{server.address}/feature/{key}/2")
    visit.page.wait_for_selector("#matches table")
    assert f"{SITES[0]}/{NAME}" in visit.page.inner_text("#matches")


def test_two_dictionaries_beside_each_other(server, visit, key):
    other = next(d.key for d in server.explorer.runs["run"].dictionaries.values() if d.title == f"{SITES[0]}/{NAME}")
    visit.open(f"{server.address}/compare")
    visit.page.select_option("[name=a]", key)
    visit.page.select_option("[name=b]", other)
    visit.page.wait_for_url(f"**/compare?a={key}&b={other}")
    assert "MMCS" in visit.page.inner_text("main")


def test_boxes_of_a_tree_lead_to_features(server, visit):
    visit.open(f"{server.address}/causes/run/tree/root")
    visit.page.click(".box.root")
    visit.page.wait_for_url("**/feature/*/*")


@pytest.mark.parametrize(
    "path", ["/run/run", "/features", "/search?q=cat", "/compare", "/causes/run/tree/root", "/labels"]
)
def test_a_telephone_scrolls_down_only(server, visit, path):
    visit.open(f"{server.address}{path}", width=390)
    assert visit.scroll_width() <= 390


def test_a_feature_on_a_telephone(server, visit, key):
    visit.open(f"{server.address}/feature/{key}/2", width=390)
    visit.page.wait_for_selector("#matches table")
    assert visit.scroll_width() <= 390


def test_a_wrong_address_is_a_page(server, browser_page):
    browser_page.open(f"{server.address}/feature/000000000000/1")
    assert "hash of no dictionary" in browser_page.page.inner_text("[role=alert]")
