"""Addresses within an export: relative, so that they hold on a disk, under any folder of any server."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from monolex.explorer.links import Links, query

POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file: 'unsafe-inline'; img-src data:; "
    "form-action 'none'; base-uri 'none'"
)
"""What a page of an export may do: load its own scripts and styles, and nothing else. A browser that takes every file
for an origin of its own would find no ``'self'`` on a disk; pages of a server cannot load ``file:`` in any browser."""


@dataclass(frozen=True)
class ExportLinks(Links):
    """Where pages of an export are, seen from one of them; what was not exported has an empty address."""

    live: bool = False
    """There is no server."""
    root: str = ""
    """The way from the page to the root of the export: ``../`` for each folder that it lies in."""
    numbers: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Features that are exported, by the key of their dictionary."""
    pages: Collection[str] = ()
    """Pages that only some exports have, by their path from the root."""

    @property
    def policy(self) -> str:
        """The content security policy of its pages."""
        return POLICY

    def seen_from(self, page: str) -> "ExportLinks":
        """The same as seen from a page, whose path from the root is ``page``."""
        return replace(self, root="../" * page.count("/"))

    def home(self) -> str:
        """The front page of the run."""
        return f"{self.root}index.html"

    def static(self, name: str) -> str:
        """A script or a style sheet."""
        return f"{self.root}static/{name}"

    def run(self, slug: str) -> str:  # noqa: ARG002 (there is one run)
        """The same as :meth:`home`."""
        return self.home()

    def report(self, slug: str, anchor: str = "") -> str:  # noqa: ARG002
        """A report is no part of an export: it is one page already."""
        return ""

    def features(self, **choice: Any) -> str:
        """A list of features."""
        if choice.get("dictionary") and choice["dictionary"] not in self.numbers:
            return ""
        return f"{self.root}features.html{query(choice, '#')}"

    def random(self, **choice: Any) -> str:
        """A list of which one at random is opened."""
        return self.features(**choice, random=1)

    def feature(self, key: str, number: int) -> str:
        """One feature."""
        return f"{self.root}feature.html#{key}/{number}" if number in self.numbers.get(key, ()) else ""

    def matches(self, key: str, number: int) -> str:
        """They stand on the feature's page."""
        return self.feature(key, number)

    def label(self, key: str, number: int) -> str:  # noqa: ARG002
        """Nobody takes labels."""
        return ""

    def labels(self) -> str:
        """All labels, as they were when the export was made."""
        return f"{self.root}labels.html"

    def labels_file(self) -> str:
        """The same as a file."""
        return f"{self.root}labels.jsonl"

    def search(self, text: str = "", **choice: Any) -> str:
        """What a search finds."""
        return f"{self.root}search.html{query({'q': text, **choice}, '#')}"

    def compare(self, first: str = "", second: str = "") -> str:
        """Two dictionaries beside each other, or a list of those pairs."""
        return self._page(f"compare/{first}-{second}.html") if first or second else f"{self.root}compare.html"

    def beside(self, first: tuple[str, int], second: tuple[str, int]) -> str:  # noqa: ARG002
        """Two features are drawn side by side on the server only."""
        return ""

    def causes(self, slug: str, path: str = "", place: int = 0) -> str:  # noqa: ARG002
        """The experiments of the run, or one of them, or a part of it."""
        if not path:
            return f"{self.root}causes.html"
        page = self._page(f"causes/{path}.html")
        return f"{page}#part-{place}" if page and place else page

    def claims(self, slug: str) -> str:  # noqa: ARG002
        """The paper's claims, decided by the run."""
        return f"{self.root}claims.html"

    def find(self, **choice: Any) -> str:  # noqa: ARG002
        """Nothing runs the model."""
        return ""

    def prompt(self, **choice: Any) -> str:  # noqa: ARG002
        """Nothing runs the model."""
        return ""

    def _page(self, path: str) -> str:
        return self.root + quote(path) if path in self.pages else ""
