"""Decoder directions of dictionaries, of unit length, kept in memory as far as there is room for them."""

import threading
from collections import OrderedDict
from typing import final

from jaxtyping import Float
from torch import Tensor

from monolex.dictionaries.base import DictionaryConfig
from monolex.evals.similarity import unit_rows
from monolex.explorer.run import ExploredRun

ROOM = 2**29
"""Bytes that are kept; a dictionary that is larger is read each time."""


def space(config: DictionaryConfig) -> str:
    """Where its directions lie: the residual stream is one space over all layers, of other sites each is its own.

    A transcoder's lie where it writes, not where it reads.
    """
    place = config.target or config.site
    return "the residual stream" if place.startswith("resid") else place


@final
class Directions:
    """Decoder rows of dictionaries by run and hash, those that were asked for last kept."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: ExploredRun, key: str) -> Float[Tensor, "d_sae d_out"]:
        """Unit rows of the decoder of a dictionary.

        Raises:
            UserError: its weights are gone or damaged.
        """
        place = run.slug, run.dictionary(key).hash
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        rows = unit_rows(run.record(key).weights().W_dec)
        with self._lock:
            self._kept[place] = rows
            while sum(held.nbytes for held in self._kept.values()) > self._room:
                self._kept.popitem(last=False)
        return rows
