"""What was explained and scored in a run, by dictionary and feature, for cards and notebooks."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from monolex.artifact import MANIFEST, placed, read_json
from monolex.errors import UserError
from monolex.interp.explain import saved
from monolex.interp.records import Examples, Key, Overlay, Scored, dictionary_of
from monolex.interp.score.stage import KIND, LINES, MEANS, PREDICTIONS

OVERLAYS = {"top": 2, "random": 1}
"""Scored fragments that are shown of every group."""
ScoredByDictionary = dict[Key, dict[int, list[Scored]]]


def artefacts(run: Path) -> list[Path]:
    """The finished score artefacts of a run, by name."""
    return sorted(path.parent for path in (run / KIND).glob(f"*/{MANIFEST}"))


def scored(
    run: Path, names: Iterable[str] | None = None, *, only: Key | None = None, whole: bool = False
) -> ScoredByDictionary:
    """All scored explanations by (model, site, name) and feature; of the score artefacts ``names``, or all of them.

    Scores of explanations that are gone or were made anew since have no overlays: other fragments may lie there now.

    Args:
        only: the one dictionary that is wanted; nothing is read of artefacts that do not score it.
        whole: with all scored fragments as overlays, not the few that are shown (:data:`OVERLAYS`).

    Raises:
        UserError: an artefact is damaged.
    """
    by_dictionary: ScoredByDictionary = {}
    wanted = None if names is None else set(names)
    for folder in artefacts(run):
        if wanted is None or folder.name in wanted:
            _read(folder, by_dictionary, only, None if whole else OVERLAYS)
    return by_dictionary


def _read(folder: Path, by_dictionary: ScoredByDictionary, only: Key | None, most: Mapping[str, int] | None) -> None:
    content = read_json(folder / MEANS)
    listed = [dictionary_of(facts) for facts in content["dictionaries"]]
    keys = listed if only is None else [key for key in listed if key == only]
    if not keys:
        return
    examples: dict[Key, dict[int, Examples]] = {}
    predictions: dict[str, np.ndarray] = {}
    if saved.unchanged(folder, content["explanations"]):
        explanations = saved.Explanations(placed(folder, content["explanations"]))
        examples = {key: {example.feature: example for example in explanations.examples("/".join(key))} for key in keys}
        predictions = _predictions(folder / PREDICTIONS, keys)
    rows: Counter[str] = Counter()
    for row in saved.read_lines(folder / LINES):
        key = dictionary_of(row)
        if only not in (None, key):
            continue
        name = f"{'/'.join(key)}/{row['explainer']}"
        guesses = predictions[name][rows[name]] if examples else None
        overlays = () if guesses is None else _overlays(examples[key][row["feature"]], guesses, most)
        rows[name] += 1
        by_dictionary.setdefault(key, {}).setdefault(row["feature"], []).append(Scored(row, overlays))


def _predictions(path: Path, keys: Iterable[Key]) -> dict[str, np.ndarray]:
    """What was predicted of some dictionaries' features, by `MODEL/SITE/NAME/EXPLAINER`."""
    wanted = {"/".join(key) for key in keys}
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.rpartition("/")[0] in wanted]  # noqa: SIM118 (no mapping)
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and score again") from error


def _overlays(example: Examples, predictions: np.ndarray, most: Mapping[str, int] | None) -> tuple[Overlay, ...]:
    """Scored fragments, at most so many of a group, with what was predicted; the predictions of top ones come first."""
    shown = []
    for group, first in (("top", 0), ("random", len(example.top))):
        for i, fragment in enumerate(getattr(example, group)[: None if most is None else most[group]]):
            guess = predictions[first + i][: len(fragment.texts)]
            known = tuple(float(number) if np.isfinite(number) else None for number in guess)
            predicted = None if set(known) == {None} else known
            actual = tuple(map(float, fragment.activations))
            shown.append(Overlay(group, fragment.doc, fragment.texts, actual, predicted))
    return tuple(shown)
