"""Addresses of the explorer's pages, made here and nowhere else: templates ask for a link by what it shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from monolex.explorer import assets

JSON = ".json"
"""Ending of a page's twin."""


@dataclass(frozen=True)
class Links:
    """Where pages are, seen from any page of the server; where an address is empty there is no link."""

    live: bool = True
    """Whether there is a server that can run the model and keep labels."""

    def home(self) -> str:
        """The first page."""
        return "/"

    def static(self, name: str) -> str:
        """A script or a style sheet."""
        return f"/static/{name}?{assets.VERSION}"

    def run(self, slug: str) -> str:
        """The front page of a run."""
        return f"/run/{quote(slug)}"

    def report(self, slug: str, anchor: str = "") -> str:
        """The report of a run, or a section of it."""
        return f"/run/{quote(slug)}/report.html" + (f"#{quote(anchor)}" if anchor else "")

    def features(self, **choice: Any) -> str:
        """A list of features."""
        return "/features" + query(choice)

    def random(self, **choice: Any) -> str:
        """A feature at random, of those that a list shows."""
        return "/random" + query(choice)

    def feature(self, key: str, number: int) -> str:
        """One feature."""
        return f"/feature/{key}/{number}"

    def matches(self, key: str, number: int) -> str:
        """What is like a feature elsewhere."""
        return f"/matches/{key}/{number}"

    def label(self, key: str, number: int) -> str:
        """Where the label of a feature is sent."""
        return f"/label/{key}/{number}"

    def labels(self) -> str:
        """All labels."""
        return "/labels"

    def labels_file(self) -> str:
        """The same as a file."""
        return "/labels.jsonl"

    def search(self, text: str = "", **choice: Any) -> str:
        """What a search finds."""
        return "/search" + query({"q": text, **choice})

    def compare(self, first: str = "", second: str = "") -> str:
        """Two dictionaries beside each other."""
        return "/compare" + query({"a": first, "b": second})

    def beside(self, first: tuple[str, int], second: tuple[str, int]) -> str:
        """Two features side by side, each by key and number."""
        return "/beside" + query({"a": "/".join(map(str, first)), "b": "/".join(map(str, second))})

    def causes(self, slug: str, path: str = "", place: int = 0) -> str:
        """The experiments of a run, or one of them, or a part of it."""
        return f"/causes/{quote(slug)}" + (f"/{quote(path)}" if path else "") + (f"#part-{place}" if place else "")

    def prompt(self, **choice: Any) -> str:
        """A prompt tried live."""
        return "/prompt" + query(choice)

    def claims(self, slug: str) -> str:
        """The paper's claims, decided by a run."""
        return f"/claims/{quote(slug)}"

    def find(self, **choice: Any) -> str:
        """Features by a prompt, or by two sets of texts."""
        return "/find" + query(choice)

    def grid(self, **choice: Any) -> str:
        """Layers by tokens of a prompt."""
        return "/grid" + query(choice)


def query(choice: Mapping[str, Any], mark: str = "?") -> str:
    """``?name=value…`` of what is not empty."""
    # a zero is said: only what is nothing is left out
    said = [(n, v) for n, v in choice.items() if v is not None and v is not False and v != "" and v != ()]
    return mark + urlencode(said, doseq=True) if said else ""
