"""Explanations on disk: examples as arrays, explanations as lines of JSON, the texts of all tokens once."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from monolex.artifact import MANIFEST, Manifest, open_artifact, read_json
from monolex.errors import UserError
from monolex.interp.examples.draw import Drawn, Moments
from monolex.interp.examples.fragments import Windows
from monolex.interp.records import Examples, Explanation, Failure, dictionary_of
from monolex.interp.rules import from_json

KIND = "explain"
FACTS, LINES, ARRAYS, TEXTS = "explain.json", "explanations.jsonl", "examples.safetensors", "vocabulary.json"
Arrays = dict[str, NDArray[Any]]
DRAWN = ("features", "owner", "group", "fragment", "activations")
"""Arrays of a dictionary's examples, as fields of :class:`~monolex.interp.examples.draw.Drawn`."""


def windows_arrays(windows: Windows) -> Arrays:
    """A model's fragments as arrays."""
    return {"start": windows.start, "doc": windows.doc, "tokens": windows.tokens}


def drawn_arrays(drawn: Drawn) -> Arrays:
    """The examples of a dictionary's features as arrays."""
    return {name: getattr(drawn, name) for name in DRAWN} | {"moments": np.stack(drawn.moments)}


def prefixed(prefix: str, arrays: Mapping[str, NDArray]) -> Arrays:
    """The same under longer names."""
    return {f"{prefix}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}


def line(feature: int, made: Explanation | Failure, explainer: str) -> dict[str, Any]:
    """An explanation, or why there is none, as plain values."""
    if isinstance(made, Failure):
        return {"feature": feature, "explainer": explainer, "text": None, "rule": None, "failure": made.reason}
    rule = None if made.rule is None else made.rule.to_json()
    return {"feature": feature, "explainer": explainer, "text": made.text, "rule": rule, "failure": None}


def from_line(row: Mapping[str, Any]) -> Explanation | Failure:
    """Out of :func:`line`."""
    if row["failure"] is not None:
        return Failure(row["failure"])
    return Explanation(row["explainer"], row["text"], None if row["rule"] is None else from_json(row["rule"]))


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as lines of JSON."""
    texts = (json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in rows)
    return "".join(text + "\n" for text in texts).encode()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows out of :func:`lines`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                yield json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and run its stage again") from error


def chosen(run: Path, name: str) -> Path:
    """The folder of the explanations called ``name`` in a run, or of the only ones there.

    Raises:
        UserError: there are none, several and no name, or none of that name.
    """
    there = sorted(path.parent for path in (run / KIND).glob(f"*/{MANIFEST}"))
    if not there:
        raise UserError(f"{run} holds no explanations; run monolex explain first")
    if not name and len(there) > 1:
        raise UserError(f"{run} holds explanations {', '.join(p.name for p in there)}: say which by --explanations")
    found = [path for path in there if path.name == (name or path.name)]
    if not found:
        raise UserError(f"explanations = {name!r}: {run} holds {', '.join(path.name for path in there)}")
    return found[0]


def unchanged(scores: Path, place: str) -> bool:
    """Whether what the score artefact ``scores`` was made of still lies at ``place``, a path relative to it.

    Other fragments may lie there since, so that predictions must not be paired with them.

    Raises:
        UserError: either artefact is damaged.
    """
    folder = (scores / place).resolve()
    if not (folder / MANIFEST).exists():
        return False
    return open_artifact(folder).content == open_artifact(scores).parents["explanations"]


@dataclass(frozen=True, eq=False)
class Explained:
    """One dictionary with its examples and explanations."""

    facts: Mapping[str, Any]
    """Its row in ``explain.json``."""
    examples: list[Examples]
    """Of every feature."""
    moments: Moments
    """Of every feature."""
    explanations: Mapping[str, list[Explanation | Failure]]
    """By explainer, a feature each."""
    output: list[dict[str, Any]]
    """What every feature's direction promotes and suppresses."""


class Explanations:
    """A finished explanations artefact.

    Raises:
        UserError: not finished, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = open_artifact(folder, KIND)
        content = read_json(folder / FACTS)
        self.mode: str = content["mode"]
        self.facts: dict[str, dict[str, Any]] = {"/".join(dictionary_of(row)): row for row in content["dictionaries"]}
        self._texts = {int(token): text for token, text in read_json(folder / TEXTS).items()}
        self._rows: dict[str, list[dict[str, Any]]] | None = None
        self._windows: dict[str, Windows] = {}

    def examples(self, key: str) -> list[Examples]:
        """The examples of every feature of the dictionary ``MODEL/SITE/NAME``."""
        return self._drawn(key).of(self._windows[self.facts[key]["model"]], self._texts)

    def read(self, key: str) -> Explained:
        """The dictionary ``MODEL/SITE/NAME``."""
        facts, drawn = self.facts[key], self._drawn(key)
        rows = self._of(key)
        # not those of its lines: a dictionary without a feature that could be explained has none
        explainers = list(facts["failures"])
        return Explained(
            facts,
            drawn.of(self._windows[facts["model"]], self._texts),
            drawn.moments,
            {name: [from_line(row) for row in rows if row["explainer"] == name] for name in explainers},
            [row["output"] for row in rows if row["explainer"] == "output"],
        )

    def _drawn(self, key: str) -> Drawn:
        facts, arrays = self.facts[key], self._arrays(key)
        model = facts["model"]
        if model not in self._windows:
            self._windows[model] = Windows(**self._arrays(f"{model}/fragments"), left_out={})
        moments = Moments(*arrays.pop("moments"))
        columns = {name: arrays[name] for name in DRAWN}
        return Drawn(facts["asked"], facts["skipped"], moments=moments, rare=facts["rare"], **columns)  # pyright: ignore[reportArgumentType]

    def _of(self, key: str) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = {known: [] for known in self.facts}
            for row in read_lines(self.folder / LINES):
                self._rows["/".join(dictionary_of(row))].append(row)
        return self._rows[key]

    def _arrays(self, prefix: str) -> Arrays:
        path = self.folder / ARRAYS
        try:
            with safe_open(path, framework="np") as file:
                names = [name for name in file.keys() if name.rpartition("/")[0] == prefix]  # noqa: SIM118
                return {name.rpartition("/")[2]: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); delete its manifest and explain again") from error
