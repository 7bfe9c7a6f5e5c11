"""The artefact ``toy``: what dictionaries recover of known features, cell by cell, so that a killed one goes on.

Ranks that torchrun starts share the cells.

Writes ``toy.json``: the worlds with their hashes, the cells of the grid, every kind with intervals over seeds, and the
curves of superposition.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import WARNINGS, Manifest, json_bytes, read_json
from monolex.kinds import KINDS
from monolex.lock import alone
from monolex.pieces import Piece, Work
from monolex.stats import Estimate, not_applicable, small_mean
from monolex.toy import grid, learn
from monolex.toy.config import ToyConfig
from monolex.toy.recovery import METRICS, known_dictionary, recovery
from monolex.toy.world import World

KIND = "toy"
KNOWN = "known"
"""The control that is handed the known features."""
OFF = 0.15
"""Distance of an L0 from the one that was wanted, over that, from which on it is said."""
EVEN_DECAY = 1.0
"""Of superposition: all features are alike."""
FIRST = ("world/", "ladder/")
"""How pieces begin that others read."""
Entries = Mapping[str, Any]


@alone
def toy(folder: str | Path, config: ToyConfig) -> Manifest:
    """Make known features, learn them, and say what comes back.

    Raises:
        UserError: settings that no world can have.
    """
    folder = Path(folder)
    work = Work(folder, KIND, config, {})
    if manifest := work.answer():
        return manifest
    pieces = dict(_pieces(config, work))
    # dictionaries are trained where a ladder has led, which some other rank may have climbed
    first = {key: piece for key, piece in pieces.items() if key.startswith(FIRST)}
    entries = work.done(first) | work.done({key: piece for key, piece in pieces.items() if key not in first})
    content = {
        "worlds": [entries[key] for key in pieces if key.startswith("world/")],
        "grid": list(_grid(config, work, entries)),
        "kinds": list(_compared(entries, "kinds/")),
        "superposition": list(_compared(entries, "superposition/")),
        "ladders": [entries[key] for key in pieces if key.startswith("ladder/")],
    }
    facts = {"worlds": {world["data"]: world["hash"] for world in content["worlds"]}, WARNINGS: _elsewhere(content)}
    return work.finish({f"{KIND}.json": json_bytes(content)}, facts)


def _elsewhere(content: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """A sentence for every trained dictionary that is not at the L0 of the others."""
    sentences = []
    for row in (*content["kinds"], *content["superposition"]):
        l0 = row["metrics"]["l0"]["value"]
        if row["alpha"] is not None and abs(l0 / row["k"] - 1) > OFF:
            where = row["data"] if row["crowding"] is None else f"{row['crowding']:g} features a dimension"
            sentences.append(
                f"{row['name']} on {where} has an L0 of {l0:.3g} where the others have {row['k']}: no coefficient that "
                "was tried led nearer, and its numbers are not to be ranked beside theirs"
            )
    return sentences


def _pieces(config: ToyConfig, work: Work) -> Iterator[tuple[str, Piece]]:
    """All that is to be done, in an order in which each finds what it needs."""
    parts, seeds = config.must("parts"), config.must("seeds")
    for data in config.must("data"):
        yield f"world/{data}", _world(config, data)
    if "grid" in parts:
        for data, kind, size in _rows(config):
            yield _row_key(data, kind, size), _row(config, data, kind, size)
    if "kinds" in parts:
        for data in config.must("data"):
            yield from _of_world(config, work, f"kinds/{data}", {"data": data}, config.kinds, seeds)
    if "superposition" in parts:
        for crowding in config.must("crowding"):
            features = max(2, round(crowding * config.must("crowded_width")))
            crowded = dataclasses.replace(
                config, d_in=config.crowded_width, features=features, decay=EVEN_DECAY, size=1.0, controls=(),
                active=min(config.must("active"), features / 4), k=None, truth_seed=None,
            )  # fmt: skip
            about = {"data": "independent", "crowding": crowding, "features": features}
            home, kinds = f"superposition/{crowding:g}", config.must("crowded_kinds")
            yield from _of_world(crowded, work, home, about, kinds, seeds)


def _of_world(
    config: ToyConfig, work: Work, home: str, about: Mapping[str, Any], kinds: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, Piece]]:
    """Kinds and controls of one sort of data, seed by seed; those that take an alpha after the search for it."""
    for kind in kinds:
        rungs = f"ladder/{home}/{kind}"
        if KINDS[kind].sparsity == "alpha":
            yield rungs, _ladder(config, about, kind)
        for seed in seeds:
            climbed = functools.partial(_entry, work, rungs)
            yield f"{home}/{kind}/{seed}", _trained(config, about, kind, seed, climbed)
    for seed in seeds:
        yield f"{home}/controls/{seed}", _controls(config, about, seed)


def _entry(work: Work, key: str) -> dict[str, Any]:
    """Of a piece that is done."""
    return read_json(work.place(key))


def _world(config: ToyConfig, data: str) -> Piece:
    def described(_path: Path) -> dict[str, Any]:
        world = learn.world_of(config, data, 0)
        children = int((world.parent >= 0).sum())
        d_sae, k = _learned(config, world)
        return {
            "data": data, "features": world.features, "d_in": world.directions.shape[1], "children": children,
            "present": float(world.frequency.sum()), "most": float(world.frequency[0]),
            "least": float(world.frequency[-1]), "d_sae": d_sae, "k": k, "hash": world.digest(),
        }  # fmt: skip

    return described


def _rows(config: ToyConfig) -> Iterator[tuple[str, str, float]]:
    for data in config.must("data"):
        for kind in config.grid_kinds:
            for size in sorted(config.must("grid_sizes")):
                yield data, kind, size


def _row_key(data: str, kind: str, size: float) -> str:
    return f"grid/{data}/{kind}/{size:g}"


def _row(config: ToyConfig, data: str, kind: str, size: float) -> Piece:
    return lambda path: {"cells": grid.row(config, data, kind, size, _decoders(path))}


def _decoders(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _grid(config: ToyConfig, work: Work, entries: Entries) -> Iterator[dict[str, Any]]:
    if "grid" not in config.must("parts"):
        return
    for data in config.must("data"):
        for kind in config.grid_kinds:
            keys = [_row_key(data, kind, size) for size in sorted(config.must("grid_sizes"))]
            yield from grid.with_larger(
                [entries[key]["cells"] for key in keys], [_decoders(work.place(k)) for k in keys]
            )


def _learned(config: ToyConfig, world: World) -> tuple[int, int]:
    """Learned features, and at which L0."""
    d_sae = max(1, round(config.must("size") * world.features))
    return d_sae, min(d_sae, config.k or learn.reachable(world, d_sae))


def _ladder(config: ToyConfig, about: Mapping[str, Any], kind: str) -> Piece:
    def tried(_path: Path) -> dict[str, Any]:
        world = learn.world_of(config, about["data"], 0)
        d_sae, k = _learned(config, world)
        rungs = learn.ladder(kind, world, d_sae, k, config)
        return {**about, "kind": kind, "k": k, "tried": rungs, "alpha": learn.alpha_at(rungs, k)}

    return tried


def _trained(
    config: ToyConfig, about: Mapping[str, Any], kind: str, seed: int, rungs: Callable[[], dict[str, Any]]
) -> Piece:
    def measured(_path: Path) -> list[dict[str, Any]]:
        world = learn.world_of(config, about["data"], seed)
        d_sae, k = _learned(config, world)
        sparsity = k if KINDS[kind].sparsity == "k" else rungs()["alpha"]
        recipe = learn.recipe_of(kind, world, d_sae, sparsity, seed, config)
        ((_, dictionary),) = learn.trained(world, recipe, seed, config.toy_device)
        alpha = None if KINDS[kind].sparsity == "k" else sparsity
        return [{**about, "name": kind, "k": k, "alpha": alpha, **_numbers(config, dictionary, world, seed)}]

    return measured


def _controls(config: ToyConfig, about: Mapping[str, Any], seed: int) -> Piece:
    def measured(_path: Path) -> list[dict[str, Any]]:
        world = learn.world_of(config, about["data"], seed)
        d_sae, k = _learned(config, world)
        fitted = {KNOWN: known_dictionary(world, d_sae, k), **learn.controls(world, seed, d_sae, k, config)}
        return [
            {**about, "name": name, "k": k, "alpha": None, **_numbers(config, dictionary, world, seed)}
            for name, dictionary in fitted.items()
        ]

    return measured


def _numbers(config: ToyConfig, dictionary: Any, world: World, seed: int) -> dict[str, Any]:
    learned = {"d_sae": dictionary.d_sae, "seed": seed}
    return learned | recovery(dictionary, world, learn.stream(seed, learn.TEST), config.must("test_rows"))


def _compared(entries: Entries, home: str) -> Iterator[dict[str, Any]]:
    """Every dictionary that has seeds, with estimates over them."""
    by_name: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, rows in entries.items():
        if key.startswith(home):
            for row in rows:
                by_name.setdefault((row["data"], row.get("crowding"), row["name"]), []).append(row)
    for rows in by_name.values():
        shared = {name: rows[0].get(name) for name in ("data", "crowding", "name", "k", "alpha", "d_sae")}
        yield {
            **shared,
            "seeds": [row["seed"] for row in rows],
            "metrics": {name: _over_seeds([row[name] for row in rows])._asdict() for name in METRICS},
        }


def _over_seeds(values: Sequence[float | None]) -> Estimate:
    numbers = [value for value in values if value is not None]
    return small_mean(numbers, "seeds") if numbers else not_applicable("these data have none")
