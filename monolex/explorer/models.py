"""The models of the open runs, loaded when a prompt is first tried, and kept."""

import threading
from typing import final

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from monolex.activations.stored import stored_model
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.live.session import LiveModel


@final
class LiveRuns:
    """A :class:`LiveModel` a run."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[tuple[str, ...], LiveModel]] = {}
        self._lock = threading.Lock()

    def of(self, run: ExploredRun) -> LiveModel:
        """The model of a run with all of its dictionaries; loaded once, and anew where a dictionary was made anew.

        Raises:
            UserError: the model is gone, or has other weights than it had.
        """
        with self._lock:
            hashes = tuple(dictionary.hash for dictionary in run.dictionaries.values())
            if run.slug not in self._models or self._models[run.slug][0] != hashes:
                records = [run.record(key) for key in run.dictionaries]
                self._models[run.slug] = hashes, LiveModel(stored_model(run.folder / "activations"), records)
            return self._models[run.slug][1]


def rare(run: ExploredRun, dictionary: IndexedDictionary, high: float) -> Bool[NDArray, "d_sae"]:
    """The features of a dictionary whose density is at most ``high``; all where nothing was gathered."""
    kept = np.ones(dictionary.d_sae, bool)
    if high < 1 and dictionary.gathered:
        query = "SELECT number FROM feature WHERE dictionary = ? AND density > ?"
        kept[[number for (number,) in run.index.rows(query, (dictionary.id, high))]] = False
    return kept
