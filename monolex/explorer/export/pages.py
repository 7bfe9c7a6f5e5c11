"""The single pages of an export: the front page, shells of the list, the search and a feature, labels, experiments."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from monolex.explorer import assets
from monolex.explorer.draw import drawn
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.choice import marked, named
from monolex.explorer.export.drawing import TOGETHER
from monolex.explorer.export.links import ExportLinks
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views import causes, claims, compare, listing, marks, overview, search
from monolex.explorer.views.listing import COLUMNS, PAGE
from monolex.explorer.views.listing import SHOWN as SHOWN_COLUMNS
from monolex.pages import html, tokens
from monolex.pages.card import card

EMBED_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
"""What a page that stands in another may do: nothing."""


def single_pages(
    explorer: Explorer,
    run: ExploredRun,
    chosen: Sequence[IndexedDictionary],
    links: ExportLinks,
    search_facts: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """Path and HTML of every page that is one of its kind."""
    known = {"dictionaries": [{"key": d.key, "title": d.title, "site": d.site, "id": d.id} for d in chosen]}
    columns = [{"key": c.key, "label": c.label, "about": c.about, "down": c.down} for c in COLUMNS]
    shards = search_facts["shards"]
    shell = {"facts": {"together": TOGETHER}, "style": Markup(assets.ASSETS["explorer.css"].content.decode())}
    of_list = known | {"columns": columns, "shown": SHOWN_COLUMNS, "page": PAGE, "shards": shards}
    pages = {
        "index.html": overview.overview(explorer, run.slug),
        "features.html": _with(listing.listing(explorer, {}), {"facts": of_list, **_titles(chosen)}),
        "feature.html": Page("shell.html", "Features", {"run": run.slug, **shell}),
        "search.html": _with(search.search(explorer, {}), {"facts": known | dict(search_facts)}),
        "labels.html": marks.marks(explorer, {d.hash for d in chosen}),
        "compare.html": _with(compare.compare(explorer, {}), {"pairs": _pairs(chosen, links)}),
        "claims.html": claims.claims(explorer, run.slug),
        "causes.html": causes.causes(explorer, run.slug),
        **{f"causes/{path}.html": causes.experiment(explorer, run.slug, path) for path in experiments(run)},
    }
    for path, page in pages.items():
        yield path, drawn(explorer, page, path, links.seen_from(path))


def experiments(run: ExploredRun) -> list[str]:
    """Paths in the run of the experiments that have a page."""
    return [path for kind in causes.KINDS for path in run.experiments(kind)]


def embedded(run: ExploredRun, links: ExportLinks, features: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Path and HTML of features that stand alone; by default those that are labelled, pinned or on the front page."""
    chosen = list(named(run, features)) or [(k, n) for k, n in marked(run) if n in links.numbers.get(k, ())]
    for key, number in chosen:
        dictionary, store = run.dictionary(key), run.store(key)
        scored = run.scored(key).get(number, ())
        title = f"Feature {number} of {dictionary.title}"
        yield (
            f"embed/{key}-{number}.html",
            html.page(
                "explorer/embed.html",
                title=title,
                dictionary=dictionary,
                label=run.label(key, number),
                card=card(store.feature(number), store.meta, text=store.text, scored=scored),
                lead=f"gathered of {store.meta['model']} by monolex",
                line=tokens.line,
                policy=EMBED_POLICY,
            ),
        )


def _pairs(chosen: Sequence[IndexedDictionary], links: ExportLinks) -> list[tuple[str, str, str]]:
    """Address and titles of the pairs that are exported."""
    return [(address, a.title, b.title) for a in chosen for b in chosen if (address := links.compare(a.key, b.key))]


def _titles(chosen: Sequence[IndexedDictionary]) -> dict[str, Any]:
    """What the form of the list offers: dictionaries and sites that are exported."""
    return {"titles": {d.key: d.title for d in chosen}, "sites": dict.fromkeys(d.site for d in chosen)}


def _with(page: Page, more: Mapping[str, Any]) -> Page:
    """A page whose template is given more than its view gives."""
    draw: Callable[[Links], Mapping[str, Any]] = page.draw
    return page._replace(draw=lambda links: {**draw(links), **more})
