"""What an evaluation is about: a model's stored activations and the dictionaries made from them.

The same shape serves the subject and its control models, so that both go through the same code.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from monolex.artifact import Manifest, open_artifact, read_json
from monolex.config import ModelConfig, require
from monolex.corpus import Rows
from monolex.errors import UserError
from monolex.model import LanguageModel
from monolex.model import load as load_model
from monolex.reader import Split
from monolex.tables import from_table

RECIPE = ("kind", "d_sae", "alpha", "k", "ratio", "seed", "lr")
AXES = ("kind", "alpha", "k", "ratio", "seed", "lr")


@dataclass(frozen=True)
class Entry:
    """One dictionary to evaluate."""

    row: dict[str, Any]
    """What identifies it in every row of metrics.json: model, site, name, :data:`RECIPE` and path."""
    folder: Path
    """Where it lies."""
    source: int
    """Which of the given sources it is from."""
    trained: bool
    """Whether it is a member of a sweep (else a baseline)."""

    @property
    def name(self) -> str:
        """Unique within model and site."""
        return self.row["name"]


@dataclass(frozen=True)
class Inputs:
    """One model's activations and dictionaries."""

    model: str
    """`subject`, or the control's name."""
    activations: Path
    """The artefact the dictionaries were made from."""
    manifest: Manifest
    """Its manifest."""
    entries: dict[str, list[Entry]]
    """Dictionaries by site."""
    parents: dict[str, str]
    """Content hashes of all artefacts read."""


def open_inputs(model: str, activations: Path, sources: Sequence[Path], folder: Path) -> Inputs:
    """Find the dictionaries that lie in ``sources`` (sweeps and baselines); paths are kept relative to ``folder``.

    A name that two sources share gets the later source's folder in front.

    Raises:
        UserError: an artefact is not finished, or a source was made from other activations.
    """
    manifest = open_artifact(activations, "activations")
    parents = {f"{model}.activations": manifest.content}
    entries: dict[str, list[Entry]] = {}
    for number, source in enumerate(sources):
        made = open_artifact(source)
        if made.kind not in ("sweep", "baselines"):
            raise UserError(f"{source} is an artefact of kind {made.kind}; give folders of sweeps or baselines")
        if made.parents.get("activations") != manifest.content:
            raise UserError(f"{source} was not made from {activations}; give the activations it was made from")
        parents[f"{model}.source.{number}"] = made.content
        members = read_json(source / "members.json") if made.kind == "sweep" else made.data["members"]
        for member in members:
            site = entries.setdefault(member["site"], [])
            name = member.get("name") or Path(member["path"]).name
            name = f"{source.name}/{name}" if any(entry.name == name for entry in site) else name
            require(all(e.name != name for e in site), f"{source} is given twice, or two sources share its name")
            row = {"model": model, "site": member["site"], "name": name} | {key: member.get(key) for key in RECIPE}
            row["path"] = os.path.relpath(source / member["path"], folder)
            site.append(Entry(row, source / member["path"], number, made.kind == "sweep"))
    if not entries:
        raise UserError(f"no dictionaries to evaluate on {activations}; give a folder of a sweep or of baselines")
    return Inputs(model, activations, manifest, entries, parents)


def stored_model(activations: Path, device: str = "auto") -> LanguageModel:
    """The very model that stored activations are of.

    Raises:
        UserError: no finished activations, or the model of that name has other weights than it had.
    """
    stored = open_artifact(activations, "activations").data["model"]
    asked = from_table(ModelConfig, stored["model_config"], str(activations))
    lm = load_model(dataclasses.replace(asked, device=device))
    if lm.fingerprint != stored["fingerprint"]:
        raise UserError(f"the model {asked.model!r} is no longer the one in {activations}; harvest again")
    return lm


def packed_rows(activations: Path, split: Split) -> Rows:
    """All packed rows of a split, memory-mapped.

    Raises:
        UserError: the file is damaged.
    """
    path = activations / "corpus.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and harvest again") from error
    return Rows(*(tensors[f"{split}.{name}"] for name in ("tokens", "docs", "keep")))


def held_out_rows(inputs: Inputs, contexts: int) -> Rows:
    """``contexts`` held-out packed rows of tokens, spread evenly so that they come from many documents."""
    rows = packed_rows(inputs.activations, "held_out")
    count = min(contexts, len(rows))
    chosen = torch.arange(count) * len(rows) // max(count, 1)
    return Rows(rows.tokens[chosen], rows.docs[chosen], rows.keep[chosen])


def neighbours(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Pairs of trained dictionaries of one source that differ along one axis, at consecutive values of it."""
    trained = [entry for entry in entries if entry.trained]
    axes = {(id(a), id(b)): _axis(a, b) for a, b in itertools.permutations(trained, 2)}
    for a, b in itertools.combinations(trained, 2):
        axis = axes[id(a), id(b)]
        if axis is None:
            continue
        between = [
            c
            for c in trained
            if c is not a
            and c is not b
            and axes[id(a), id(c)] == axes[id(b), id(c)] == axis
            and axis not in ("kind", "seed")
            and min(a.row[axis], b.row[axis]) < c.row[axis] < max(a.row[axis], b.row[axis])
        ]
        if not between:
            yield a, b


def seed_groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Trained dictionaries that differ in nothing but their seed, in groups."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        if entry.trained:
            key = (entry.source, *(entry.row[key] for key in RECIPE if key != "seed"))
            groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _axis(a: Entry, b: Entry) -> str | None:
    """The one axis along which two dictionaries differ; presets tie the learning rate to width and kind."""
    if a.source != b.source:
        return None
    differing = [axis for axis in AXES if a.row[axis] != b.row[axis]]
    if len(differing) == 2 and differing[0] in ("kind", "ratio") and differing[1] == "lr":
        differing.pop()
    return differing[0] if len(differing) == 1 else None


def describe(inputs: Sequence[Inputs]) -> Mapping[str, Any]:
    """Counts for the manifest."""
    return {
        "models": [one.model for one in inputs],
        "sites": {one.model: list(one.entries) for one in inputs},
        "dictionaries": sum(len(entries) for one in inputs for entries in one.entries.values()),
    }
