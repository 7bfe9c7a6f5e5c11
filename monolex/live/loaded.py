"""Dictionaries of a run in memory: loaded when they are first used, the longest unused given up beyond a bound."""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch

from monolex.activations.rule import RowRule
from monolex.config import require
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError, nearest


class LoadedDictionary(NamedTuple):
    """A dictionary, and which rows it is for."""

    title: str
    """``SITE/NAME``."""
    site: str
    """Where it reads."""
    weights: Dictionary
    """Itself, on the model's device."""
    rule: RowRule
    """Rows that count; at others it is neither read nor edited."""

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for tensor in self.weights.weights.values())


@final
class LoadedDictionaries:
    """Those of ``records`` that were used last, of at most ``bound`` bytes together (and always the last)."""

    def __init__(self, records: Sequence[RunDictionary], device: torch.device, bound: int) -> None:
        self.records = {record.title: record for record in records}
        require(len(self.records) == len(records), "dictionaries: two have one title; give those of a single model")
        self._device, self._bound = device, bound
        self._held: dict[str, LoadedDictionary] = {}

    def get(self, title: str) -> LoadedDictionary:
        """The dictionary of that title.

        Raises:
            UserError: there is none, or its files are damaged.
        """
        if title not in self.records:
            raise UserError(f"dictionary {title!r}: there is none; {nearest(title, list(self.records))}")
        loaded = self._held.pop(title, None)
        if loaded is None:
            record = self.records[title]
            loaded = LoadedDictionary(title, record.site, record.weights(self._device), record.rule)
        self._held[title] = loaded
        excess = sum(other.bytes for other in self._held.values()) - self._bound
        for other in list(self._held.values())[:-1]:
            if excess > 0:
                excess -= other.bytes
                del self._held[other.title]
        return loaded
