"""Explanations on disk: examples as arrays, explanations as lines of JSON, the texts of all tokens once."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from monolex.artifact import MANIFEST, Manifest, open_artifact, placed, read_json
from monolex.errors import UserError
from monolex.interp.examples.drawn import DrawnExamples, FeatureMoments
from monolex.interp.examples.fragments import CorpusFragments
from monolex.interp.records import Examples, Explanation, Failure, dictionary_of
from monolex.interp.rules import from_json

KIND = "explain"
FACTS, LINES, ARRAYS, TEXTS = "explain.json", "explanations.jsonl", "examples.safetensors", "vocabulary.json"
Arrays = dict[str, NDArray[Any]]
DRAWN = ("features", "owner", "group", "fragment", "activations")
"""Arrays of a dictionary's examples, as fields of :class:`~monolex.interp.examples.drawn.DrawnExamples`."""


def fragment_arrays(fragments: CorpusFragments) -> Arrays:
    """A model's fragments as arrays."""
    return {"start": fragments.start, "doc": fragments.doc, "tokens": fragments.tokens}


def drawn_arrays(drawn: DrawnExamples) -> Arrays:
    """The examples of a dictionary's features as arrays."""
    return {name: getattr(drawn, name) for name in DRAWN} | {"moments": np.stack(drawn.moments)}


def prefixed(prefix: str, arrays: Mapping[str, NDArray]) -> Arrays:
    """The same under longer names."""
    return {f"{prefix}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}


def line(feature: int, explanation: Explanation | Failure, explainer: str) -> dict[str, Any]:
    """An explanation, or why there is none, as plain values."""
    head = {"feature": feature, "explainer": explainer}
    if isinstance(explanation, Failure):
        return {**head, "text": None, "rule": None, "failure": explanation.reason}
    rule = None if explanation.rule is None else explanation.rule.to_json()
    return {**head, "text": explanation.text, "rule": rule, "failure": None}


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
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and run its stage again") from error


def explanations_folder(run: Path, name: str) -> Path:
    """The folder of the explanations called ``name`` in a run, or of the only ones there.

    Raises:
        UserError: there are none, several and no name, or none of that name.
    """
    folders = {path.parent.name: path.parent for path in sorted((run / KIND).glob(f"*/{MANIFEST}"))}
    if not folders:
        raise UserError(f"{run} holds no explanations; run monolex explain first")
    if not name and len(folders) > 1:
        raise UserError(f"{run} holds explanations {', '.join(folders)}: say which by --explanations")
    if name and name not in folders:
        raise UserError(f"explanations = {name!r}: {run} holds {', '.join(folders)}")
    return folders[name or next(iter(folders))]


def unchanged(scores: Path, place: str) -> bool:
    """Whether what the score artefact ``scores`` was made of still lies at ``place``, a path relative to it.

    Other fragments may lie there since, so that predictions must not be paired with them.

    Raises:
        UserError: either artefact is damaged.
    """
    folder = placed(scores, place)
    if not (folder / MANIFEST).exists():
        return False
    return open_artifact(folder).content == open_artifact(scores).parents["explanations"]


@dataclass(frozen=True, eq=False)
class ExplainedDictionary:
    """One dictionary with its examples and explanations."""

    facts: Mapping[str, Any]
    """Its row in ``explain.json``."""
    examples: list[Examples]
    """Of every feature."""
    moments: FeatureMoments
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
        self._fragments: dict[str, CorpusFragments] = {}

    def examples(self, key: str) -> list[Examples]:
        """The examples of every feature of the dictionary ``MODEL/SITE/NAME``."""
        return self._drawn(key).spelled_out(self._fragments[self.facts[key]["model"]], self._texts)

    def read(self, key: str) -> ExplainedDictionary:
        """The dictionary ``MODEL/SITE/NAME``."""
        facts, drawn = self.facts[key], self._drawn(key)
        rows = self._lines(key)
        # not those of its lines: a dictionary without a feature that could be explained has none
        explainers = list(facts["failures"])
        return ExplainedDictionary(
            facts,
            drawn.spelled_out(self._fragments[facts["model"]], self._texts),
            drawn.moments,
            {name: [from_line(row) for row in rows if row["explainer"] == name] for name in explainers},
            [row["output"] for row in rows if row["explainer"] == "output"],
        )

    def _drawn(self, key: str) -> DrawnExamples:
        facts, arrays = self.facts[key], self._arrays(key)
        model = facts["model"]
        if model not in self._fragments:
            self._fragments[model] = CorpusFragments(**self._arrays(f"{model}/fragments"), left_out={})
        moments = FeatureMoments(*arrays.pop("moments"))
        columns = {name: arrays[name] for name in DRAWN}
        return DrawnExamples(facts["asked"], facts["skipped"], moments=moments, rare=facts["rare"], **columns)  # pyright: ignore[reportArgumentType]

    def _lines(self, key: str) -> list[dict[str, Any]]:
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
