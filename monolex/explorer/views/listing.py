"""The list of features: of a dictionary, a site, a run or all runs; filtered, sorted, a page at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

from monolex.config import require
from monolex.errors import nearest
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.page import Page
from monolex.explorer.parameters import parsed as read_query
from monolex.explorer.parameters import written
from monolex.explorer.run import ExploredRun
from monolex.features.seeds import ALIKE
from monolex.pages.card import percent
from monolex.pages.eval_charts import density_chart
from monolex.pages.html import number
from monolex.pages.interest import FeatureKind

PAGE = 50
"""Features on a page."""
DEEPEST = 2000
"""Pages that can be turned to: filters are for what lies further down."""


class ListColumn(NamedTuple):
    """A column of the list, and a number to sort by."""

    key: str
    """In addresses; the column of the index."""
    label: str
    """Its head."""
    about: str
    """What it is."""
    down: bool = True
    """Whether the largest come first."""


COLUMNS = (
    ListColumn("interest", "Interest", "a rule of thumb for what to look at first, and no measure of quality"),
    ListColumn("density", "Density", "share of activations in which it is above zero"),
    ListColumn("max", "Maximum", "largest activation"),
    ListColumn("share", "Share", "of its activation that lies on its first token"),
    ListColumn("score", "Score", "of its best scored explanation: correlation of simulated with real activations"),
    ListColumn(
        "reappears",
        "Comes back",
        "in so many of the other seeds' dictionaries a feature is like it: encoder and decoder rows of cosine "
        f"{ALIKE} or more, each the other's nearest",
    ),
    ListColumn("effect", "Effect", "KL of the predictions, in nats, when it is ablated"),
    ListColumn("kurtosis", "Kurtosis", "fourth moment about zero over variance², over all activations"),
    ListColumn("skew", "Skew", "third moment about zero over variance^1.5, over all activations"),
    ListColumn("layer", "Layer", "of the site that its dictionary reads", False),
    ListColumn("number", "Number", "of the feature", False),
)
SHOWN = ("density", "max", "score", "reappears", "effect")
"""Columns that are shown unless others are chosen."""
COLUMN = {column.key: column for column in COLUMNS}
SHARES = ("density", "share", "reappears")
"""Columns that are shown in percent."""
EXACT = {"layer": "dictionary.layer", "number": "feature.number"}
SEEDS = "seeds"
"""Among the numbers of a feature, and no column: how many other seeds it was looked for in."""
STATES = ("alive", "dead", "all")
MARKS = ("", "labelled", "pinned", "explained", "ablated", "member")
"""What a person or an experiment left on a feature."""


@dataclass(frozen=True)
class ListQuery:
    """What a list shows; every field is a parameter of its address."""

    run: str = ""
    """Of one run."""
    dictionary: str = ""
    """Of one dictionary, by its hash."""
    site: str = ""
    """Of one site."""
    kind: str = ""
    """Of one kind of feature: single-token, preceding-token, mixed."""
    state: str = "alive"
    """alive, dead or all."""
    marked: str = ""
    """Only those with a label, a pin, an explanation, an ablation or a place in an experiment."""
    token: str = ""
    """Only those with this token among their first ones, as pages show it."""
    low: float = 0.0
    """Smallest density."""
    high: float = 1.0
    """Largest density."""
    score: float | None = None
    """Smallest score."""
    kurtosis: float | None = None
    """Smallest kurtosis."""
    back: float | None = None
    """Smallest share of other seeds with a like feature."""
    sort: str = "interest"
    """By one of :data:`COLUMNS`."""
    up: bool = False
    """The other way round."""
    columns: tuple[str, ...] = SHOWN
    """What is shown of every feature."""
    page: int = 1
    """Which page."""

    def __post_init__(self) -> None:
        for name, known in (("kind", ("", *get_args(FeatureKind))), ("state", STATES), ("marked", MARKS)):
            value = getattr(self, name)
            require(value in known, f"{name} = {value!r}: {nearest(value, [text for text in known if text])}")
        for key in (self.sort, *self.columns):
            require(key in COLUMN, f"{key!r} is no column of the list; {nearest(key, list(COLUMN))}")
        require(0 <= self.low <= self.high <= 1, f"low = {self.low}, high = {self.high}: densities rise from 0 to 1")
        require(1 <= self.page <= DEEPEST, f"page = {self.page}: give one from 1 to {DEEPEST}")

    @property
    def choice(self) -> dict[str, Any]:
        """Parameters of its address, defaults left out."""
        return written(self)


class ListedFeature(NamedTuple):
    """A row of the list."""

    run: str
    """Its run."""
    dictionary: str
    """Hash of its dictionary, as addresses have it."""
    title: str
    """``SITE/NAME`` of its dictionary."""
    number: int
    """Which feature."""
    top_token: str | None
    """Token with the largest share of its activation."""
    explainer: str | None
    """Of its best explanation."""
    explanation: str | None
    """That, to be shown with its score and chance only."""
    score: float | None
    """Of it."""
    chance: float | None
    """What explanations of other features score on it."""
    label: str | None
    """What a person calls it."""
    pinned: bool
    """By a person."""
    kind: str
    """single-token, preceding-token, mixed or dead."""
    numbers: Mapping[str, float | None]
    """By column."""


HEAD = (
    "dictionary.hash, site || '/' || name, feature.number, top_token, explainer, explanation, score, chance, "
    "label.text, label.pinned, feature.kind"
)
TABLES = (
    "feature JOIN dictionary ON dictionary.id = feature.dictionary "
    "LEFT JOIN label ON label.hash = dictionary.hash AND label.number = feature.number"
)


def parsed(parameters: Mapping[str, str]) -> ListQuery:
    """The query of an address's parameters.

    Raises:
        UserError: one of them is unknown, or says what it cannot.
    """
    return read_query(ListQuery, parameters)


def listing(explorer: Explorer, parameters: Mapping[str, str]) -> Page:
    """A page of the list."""
    query = parsed(parameters)
    runs = scope(explorer, query)
    first = (query.page - 1) * PAGE
    rows = [row for run in runs for row in features(run, query, first + PAGE)]
    total = sum(count(run, query) for run in runs)
    rows = sorted(rows, key=lambda row: order(row, query))[first : first + PAGE] if len(runs) > 1 else rows[first:]
    data = {
        "query": asdict(query),
        "total": total,
        "pages": max(1, -(-total // PAGE)),
        "features": rows,
        "dictionaries": [
            {"run": run.slug, "key": d.key, "site": d.site, "name": d.name, "d_sae": d.d_sae, "alive": d.alive}
            for run in explorer.runs.values()
            for d in run.dictionaries.values()
            if d.gathered
        ],
    }

    def draw(links: Links) -> dict[str, Any]:
        turned = {step: {**query.choice, "page": query.page + step} for step in (-1, 1)}
        heads = [(COLUMN[key], links.features(**_sorted_by(query, key))) for key in query.columns]
        return {
            "chosen": query,
            "columns": COLUMNS,
            "cell": cell,
            "heads": heads,
            "before": links.features(**turned[-1]) if query.page > 1 else None,
            "after": links.features(**turned[1]) if query.page < data["pages"] else None,
            "densities": _densities(runs, query),
            "titles": explorer.titles,
            "sites": dict.fromkeys(each["site"] for each in data["dictionaries"]),
            "random": links.random(**query.choice),
        }

    return Page("list.html", "Features", data, draw)


def scope(explorer: Explorer, query: ListQuery) -> list[ExploredRun]:
    """The runs that a query is about.

    Raises:
        UserError: no such run, dictionary or site.
    """
    if query.dictionary:
        run, dictionary = explorer.place(query.dictionary)
        require(dictionary.gathered, run.why_not_gathered(dictionary.key))
        return [run]
    runs = [explorer.run(query.run)] if query.run else list(explorer.runs.values())
    sites = {d.site for run in runs for d in run.dictionaries.values()}
    require(not query.site or query.site in sites, f"site = {query.site!r}: {nearest(query.site, sorted(sites))}")
    return runs


def features(run: ExploredRun, query: ListQuery, limit: int) -> list[ListedFeature]:
    """The first features of a run that a query keeps."""
    where, values = _where(query)
    numbers = [*(column.key for column in COLUMNS), SEEDS]
    head = f"{HEAD}, {', '.join(EXACT.get(key, key) for key in numbers)}"
    order = EXACT.get(query.sort, query.sort)
    way = "DESC" if COLUMN[query.sort].down != query.up else "ASC"
    ranks = f"{order} IS NULL, {order} {way}, dictionary.id, feature.number"
    rows = run.index.rows(f"SELECT {head} FROM {TABLES} WHERE {where} ORDER BY {ranks} LIMIT ?", (*values, limit))
    return [listed(run, row, numbers) for row in rows]


def drawn_at_random(run: ExploredRun, query: ListQuery) -> tuple[str, int] | None:
    """Hash of the dictionary and number of some feature that a query keeps."""
    where, values = _where(query)
    rows = run.index.rows(
        f"SELECT dictionary.hash, feature.number FROM {TABLES} WHERE {where} ORDER BY random() LIMIT 1", values
    )
    return rows[0] if rows else None


def count(run: ExploredRun, query: ListQuery) -> int:
    """How many features of a run a query keeps."""
    where, values = _where(query)
    ((number,),) = run.index.rows(f"SELECT count(*) FROM {TABLES} WHERE {where}", values)
    return number


def _where(query: ListQuery) -> tuple[str, list[Any]]:
    clauses = [clause for clause in _clauses(query) if clause is not None]
    return " AND ".join(text for text, _ in clauses) or "1", [value for _, values in clauses for value in values]


def _clauses(query: ListQuery) -> Iterator[tuple[str, tuple[Any, ...]] | None]:
    if query.dictionary:
        yield "dictionary.id = (SELECT id FROM dictionary WHERE substr(hash, 1, 12) = ?)", (query.dictionary[:12],)
    if query.site:
        yield "site = ?", (query.site,)
    if query.kind:
        yield "feature.kind = ?", (query.kind,)
    if query.state != "all":
        yield ("n_active > 0" if query.state == "alive" else "n_active = 0"), ()
    if query.low > 0:
        yield "density >= ?", (query.low,)
    if query.high < 1:
        yield "density <= ?", (query.high,)
    if query.score is not None:
        yield "score >= ?", (query.score,)
    if query.kurtosis is not None:
        yield "kurtosis >= ?", (query.kurtosis,)
    if query.back is not None:
        yield "reappears >= ?", (query.back,)
    if query.token:
        of_token = "SELECT dictionary, number FROM token WHERE text = ?"
        yield f"(feature.dictionary, feature.number) IN ({of_token})", (query.token,)
    if query.marked:
        yield MARKED[query.marked], ()


MARKED = {
    "labelled": "label.text != ''",
    "pinned": "label.pinned",
    "explained": "explanation IS NOT NULL",
    "ablated": "effect IS NOT NULL",
    "member": "(feature.dictionary, feature.number) IN (SELECT dictionary, number FROM membership)",
}


def listed(run: ExploredRun, row: tuple[Any, ...], numbers: list[str]) -> ListedFeature:
    """A feature out of a row of :data:`HEAD` and of the columns ``numbers``."""
    head, values = row[:11], row[11:]
    key, title, number, token, explainer, explanation, score, chance, label, pinned, kind = head
    said = (token, explainer, explanation, score, chance, label or None, bool(pinned), kind)
    return ListedFeature(run.slug, key[:12], title, number, *said, dict(zip(numbers, values, strict=True)))


def cell(row: ListedFeature, key: str) -> str | None:
    """A number of a feature as the list shows it; None where there is none."""
    value = row.numbers[key]
    if value is None:
        return None
    if key == "reappears" and (seeds := row.numbers.get(SEEDS)):
        return f"{round(value * seeds)} of {seeds:.0f}"
    return percent(value) if key in SHARES else number(value)


def order(row: ListedFeature, query: ListQuery) -> tuple[bool, float]:
    value = row.numbers[query.sort]
    down = COLUMN[query.sort].down != query.up
    return (value is None, 0.0 if value is None else -value if down else value)


def _sorted_by(query: ListQuery, key: str) -> dict[str, Any]:
    """The same list sorted by a column; the other way round where it is already."""
    again = query.sort == key and not query.up
    return {**query.choice, "sort": key, "up": 1 if again else "", "page": ""}


def _densities(runs: list[ExploredRun], query: ListQuery) -> Any:
    """Histogram of densities of the dictionary that is listed; nothing where there are several."""
    if not query.dictionary:
        return None
    dictionary = runs[0].dictionary(query.dictionary)
    active = runs[0].index.rows("SELECT n_active FROM feature WHERE dictionary = ?", (dictionary.id,))
    return density_chart([n for (n,) in active], dictionary.rows or 1, dictionary.title, "blue")
