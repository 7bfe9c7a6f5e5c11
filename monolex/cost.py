"""What a stage takes, and what the functions that estimate it (``cost`` in every room) are told of a plan."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monolex.config import CorpusConfig, HarvestConfig
from monolex.model.sites import expand, select
from monolex.speed import Speed


@dataclass(frozen=True)
class Cost:
    """What one stage takes."""

    disk: int
    """Bytes it has on disk at most; the state of a sweep goes when the sweep is done."""
    memory: int
    """Bytes it holds at its peak, mapped pages of stored activations among them, beside what a process holds that has
    done nothing yet (interpreter and libraries, about 0.5 GB), which :mod:`monolex.estimate` adds."""
    flops: float
    """Floating-point operations of forward passes of the model through its blocks, 2 a parameter and token."""
    seconds: float = 0.0
    """What is none of that, here (:class:`~monolex.speed.Speed`)."""
    traffic: int = 0
    """Bytes that a rank sends to others, where there are any."""


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

    def share(self, site: str) -> float:
        """Of the blocks, those that a forward runs that resumes at ``site``."""
        kind, _, layer = site.rpartition(".")
        return (self.layers - int(layer) - (kind == "resid_post")) / self.layers


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
    speed: Speed = field(default_factory=lambda: Speed(measured=False))
    """How long pieces of work take here."""
    item: int = 4
    """Bytes of a parameter of the model."""
    ranks: int = 1
    """Processes of torchrun that share the step; memory and traffic are those of one."""

    @property
    def training_rows(self) -> int:
        """Activations to train on, a site."""
        return int(self.corpus.max_tokens * (1 - self.corpus.held_out))

    @property
    def rows(self) -> int:
        """Those of them that are stored."""
        return self.training_rows if self.harvest.store else min(self.training_rows, self.harvest.sample_tokens)

    @property
    def stored(self) -> int:
        """Bytes of a stored number."""
        return 4 if self.harvest.dtype == "fp32" else 2

    def mapped(self, sites: Iterable[str], rows: int) -> int:
        """Bytes of stored activations of ``rows`` rows at ``sites`` that are read, and so mapped into memory."""
        return rows * self.stored * sum(self.shape.widths[site] for site in dict.fromkeys(sites))

    @property
    def used(self) -> list[PlannedDictionary]:
        """The dictionaries of the steps it is made of."""
        return [dictionary for path in self.needs for dictionary in self.dictionaries.get(path, [])]

    def sites(self, names: Sequence[str] = ()) -> list[str]:
        """Of the harvested sites those that ``names`` mean; all for none."""
        harvested = tuple(map(str, expand(self.harvest.sites, self.shape.layers)))
        return list(select(names, harvested, "the harvest"))
