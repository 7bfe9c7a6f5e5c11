"""What a stage takes, and what the functions that estimate it (``cost`` in every room) are told of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from monolex.config import CorpusConfig, HarvestConfig
from monolex.model.sites import expand, select


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    disk: int
    """Bytes it has on disk at most; the state of a sweep goes when the sweep is done."""
    memory: int
    """Bytes it holds at its peak, beside the interpreter and libraries (about 0.6 GB) and the mapped pages of stored
    activations, which the system takes back when it needs them."""
    flops: float
    """Floating-point operations."""
    seconds: float = 0.0
    """What is no arithmetic."""


class PlannedDictionary(NamedTuple):
    """A dictionary that is going to be trained or fitted."""

    site: str
    """Where."""
    name: str
    """Its name; of a baseline of top-k kind with a number in place of its k."""
    features: int
    """How many it has."""
    home: Path
    """The run's folder, or the control model's in it."""
    trained: bool
    """Whether it is of a sweep."""
    checkpoints: int = 0
    """Dictionaries that are kept along its training."""


@dataclass(frozen=True)
class Shape:
    """What the estimate needs to know of the model; taken from its configuration, no weights are read."""

    parameters: int
    """All parameters."""
    block: int
    """Parameters that every token passes through before the unembedding."""
    vocab: int
    """Number of logits."""
    widths: dict[str, int]
    """``d_in`` of every site of every layer."""
    layers: int
    """Number of blocks."""


@dataclass(frozen=True)
class Planned:
    """A step of a plan, and what stands before it."""

    folder: Path
    """Of its artefact."""
    config: Any
    """Its configuration."""
    inputs: Mapping[str, Any]
    """What it is given beside."""
    needs: Sequence[Path]
    """Folders of the steps it is made of."""
    corpus: CorpusConfig
    """The text of the run."""
    harvest: HarvestConfig
    """What is stored of it."""
    shape: Shape
    """The model's."""
    dictionaries: dict[Path, list[PlannedDictionary]]
    """Those of earlier steps by the folder of their step; a step that makes some adds its own."""
    earlier: Mapping[Path, "Planned"]
    """Earlier steps by folder."""

    @property
    def rows(self) -> int:
        """Activations to train on, a site."""
        return int(self.corpus.max_tokens * (1 - self.corpus.held_out))

    @property
    def used(self) -> list[PlannedDictionary]:
        """The dictionaries of the steps it is made of."""
        return [dictionary for path in self.needs for dictionary in self.dictionaries.get(path, [])]

    def sites(self, names: Sequence[str] = ()) -> list[str]:
        """Of the harvested sites those that ``names`` mean; all for none."""
        harvested = tuple(map(str, expand(self.harvest.sites, self.shape.layers)))
        return list(select(names, harvested, "the harvest"))
