"""A prompt in a real browser: read, ablated, swapped, steered, continued, and sent as an address."""

from collections.abc import Iterator

import pytest
from helpers.browser import BrowserPage
from helpers.explored import NAME, SITES, Served

TITLE = f"{SITES[1]}/{NAME}"


@pytest.fixture
def visit(server: Served, browser_page: BrowserPage) -> Iterator[BrowserPage]:
    """A page of the browser, of which nothing may be said and which may ask the server alone."""
    yield browser_page
    assert browser_page.said == []
    assert {address for address in browser_page.requests if not address.startswith(f"{server.address}/")} == set()


@pytest.fixture(scope="module")
def key(server: Served) -> str:
    return next(d.key for d in server.explorer.runs["run"].dictionaries.values() if d.title == TITLE)


def written(visit: BrowserPage, side: int = 1) -> list[str]:
    return visit.page.locator(f"#written figure:nth-child({side}) .written").all_inner_texts()


def chances(visit: BrowserPage) -> list[str]:
    """Probabilities of the next token as it is."""
    return visit.page.locator("table.chances").first.locator("td:nth-child(3)").all_inner_texts()


def write(visit: BrowserPage, tokens: int = 6) -> None:
    visit.page.fill("[data-continue] [name=max_new_tokens]", str(tokens))
    visit.page.click("[data-continue] button >> text=Write")
    last = "#written figure:last-child .cost a"
    visit.page.wait_for_selector(last)
    visit.page.wait_for_selector("[data-stop]", state="hidden")


def test_a_text_is_read_edited_and_continued(server, visit, key):
    visit.open(f"{server.address}/prompt?dictionaries={key}&high=1")
    visit.page.fill("[name=text]", "the cat sat on a mat")
    visit.page.click("button >> text=Read")
    visit.page.wait_for_url("**ids=*")
    assert "on" in visit.page.inner_text("table.tokens") and visit.page.locator(".fires").count() > 3
    permanent = visit.page.get_attribute("text=Address of exactly", "href")
    before = chances(visit)

    visit.page.locator("table.tokens tr:last-child [data-edit]").first.click()  # offers an ablation of it
    visit.page.click("button >> text=Apply")
    visit.page.wait_for_url("**edits=*ablate*")
    assert visit.page.locator("table.chances").count() == 2 and "KL of the prediction" in visit.page.inner_text("#next")
    assert chances(visit) == before

    visit.page.select_option(".edits > .edit [data-part=how]", "add")
    visit.page.fill(".edits > .edit [data-part=value]", "200")
    visit.page.click("button >> text=Apply")
    visit.page.wait_for_url("**add%3A200*")
    write(visit)
    base, edited = written(visit), written(visit, 2)
    assert len(base) == len(edited) == 6 and base != edited
    assert visit.page.locator("#written .differs").count() > 0

    visit.page.click("#written figure:last-child .cost a")  # what was written is read, told apart from the prompt
    visit.page.wait_for_url("**generated=*")
    assert visit.page.locator("table.tokens tr.written").count() == 6

    visit.open(f"{server.address}{permanent}")
    assert chances(visit) == before


def test_two_features_are_swapped(server, visit, key):
    visit.open(f"{server.address}/prompt?ids=0.40.41.42&dictionaries={key}&high=1")
    first = visit.page.locator("table.tokens tr:last-child .fires a").first.inner_text().split()[0]
    visit.page.click("button >> text=Add an edit")
    other = "0" if first != "0" else "1"
    visit.page.fill(".edits > .edit [data-part=feature]", first)
    visit.page.select_option(".edits > .edit [data-part=how]", "swap")
    visit.page.fill(".edits > .edit [data-part=value]", other)
    visit.page.click("button >> text=Apply")
    visit.page.wait_for_url(f"**swap%3A{other}*")
    assert visit.page.locator("[role=alert]").count() == 0 and visit.page.locator("table.chances").count() == 2


def test_an_edit_that_is_no_number_is_a_sentence(server, visit, key):
    visit.open(f"{server.address}/prompt?ids=0.40.41&edits={key}/3:clamp:inf")
    assert "finite number" in visit.page.inner_text("[role=alert]")
    assert visit.page.input_value(".edits > .edit [data-part=value]") == "inf"


def test_a_chat_and_special_tokens_hidden_and_shown(server, visit):
    visit.open(f"{server.address}/prompt")
    visit.page.check("[name=mode][value=chat]")
    visit.page.fill(".message textarea", "the cat sat")
    visit.page.click("button >> text=Read")
    visit.page.wait_for_url("**ids=*")
    special = visit.page.locator("table.tokens tr.special").count()
    visit.page.click("summary >> text=What is shown")
    visit.page.uncheck("[name=special]")
    visit.page.wait_for_url("**special=0*")
    assert special > 1 and visit.page.locator("table.tokens tr.special").count() == 0


def test_layers_by_tokens_from_a_prompt(server, visit):
    visit.open(f"{server.address}/prompt?ids=0.40.41.42")
    visit.page.click("text=Layers by tokens")
    visit.page.wait_for_url("**/grid?*")
    assert visit.page.locator("table.grid tbody tr").count() == 3


@pytest.mark.parametrize("path", ["/prompt?ids=0.40.41.42.43.44", "/grid?ids=0.40.41.42.43.44", "/find?prompt=the+cat"])
def test_a_telephone_scrolls_down_only(server, visit, path):
    visit.open(f"{server.address}{path}", width=390)
    assert visit.scroll_width() <= 390
