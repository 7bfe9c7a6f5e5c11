"""How a page is drawn: a view's values in its template, within what all pages share."""

from collections.abc import Mapping
from typing import Any

from monolex.explorer.explorer import Explorer
from monolex.explorer.links import JSON, Links
from monolex.explorer.page import Page
from monolex.pages import html, tokens
from monolex.pages.card import percent


def drawn(explorer: Explorer, page: Page, address: str, links: Links = Links()) -> str:  # noqa: B008 (a value)
    """The page as HTML; ``address`` is where it is asked for."""
    run = page.data.get("run") or (next(iter(explorer.runs)) if len(explorer.runs) == 1 else "")
    shell = {"title": page.title, "address": address, "twin": twin(address), "slug": run, "q": page.data.get("q", "")}
    context = {**page.data, **page.draw(links), "shell": shell, "explorer": explorer, **tools(links)}
    return html.page(f"explorer/{page.template}", **context)


def tools(links: Links) -> Mapping[str, Any]:
    """What every template of the explorer draws with."""
    return {"links": links, "token": tokens.token, "line": tokens.line, "percent": percent}


def twin(address: str) -> str:
    """The address of a page's values as JSON."""
    path, mark, query = address.partition("?")
    return f"{path}{JSON}{mark}{query}"
