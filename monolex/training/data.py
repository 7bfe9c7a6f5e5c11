"""Where the activations of a sweep come from: stored ones, the model itself, or any stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.activations.constant import constant_sites
from monolex.activations.norms import SAMPLE_ROWS, Usual, centre
from monolex.activations.reader import Reader, stored_sites
from monolex.activations.rule import USUAL, RowFilter
from monolex.activations.stream import ModelStream, Stream
from monolex.artifact import open_artifact
from monolex.config import TrainConfig, require
from monolex.dictionaries.axes import sample
from monolex.model.language_model import LanguageModel
from monolex.model.verify import require_unhooked
from monolex.text.rows import Rows


class Batches(Protocol):
    """What training needs of a stream: batch number i is a pure function of i."""

    steps_per_epoch: int

    def batches(self, start_step: int = 0) -> Iterator[Mapping[str, Float[Tensor, "batch d_in"]]]: ...


class NoBatches:
    """The stream of no site."""

    steps_per_epoch = 0

    def batches(self, start_step: int = 0) -> Iterator[Mapping[str, Float[Tensor, "batch d_in"]]]:  # noqa: ARG002
        return iter(())


@dataclass(frozen=True)
class TrainingData:
    """Where the activations of a sweep come from."""

    stream: Batches
    """Serves all sites in step."""
    sites: Mapping[str, int]
    """Every site with its d_in."""
    content: str
    """Content hash of what the stream reads; changes when the batches do."""
    model: str = ""
    """Name of the language model."""
    fingerprint: str = ""
    """Hash of its weights."""
    usual: Mapping[str, Usual] = field(default_factory=dict)
    """What is usual of every site: the unit and the centre that training begins with; none: the first batch's."""
    mixing: Mapping[str, float] = field(default_factory=dict)
    """How many documents a batch draws from beside the ideal, for the manifest."""
    warnings: Sequence[str] = ()
    """Which sites are left out and why, a sentence each, for the manifest."""


def stored_source(activations: Path, config: TrainConfig) -> TrainingData:
    """What :func:`~monolex.training.trainer.train_from` needs to train ``config`` on stored activations.

    Constant sites are left out; where no other is asked for, there is nothing to train at.

    Raises:
        UserError: an unknown site, or fewer rows than a batch.
    """
    constant = constant_sites(activations, config.sites)
    sites = [site for site in stored_sites(activations, config.sites) if site not in constant]
    warnings = list(constant.values())
    if not sites:
        content = open_artifact(activations, "activations").content
        return TrainingData(NoBatches(), {}, content, warnings=warnings)
    readers = {site: Reader(activations, site, "train") for site in sites}
    first = readers[sites[0]]
    require(
        first.n_rows >= config.batch_size,
        f"batch_size = {config.batch_size} but {activations} has {first.n_rows} training rows; "
        "lower batch_size or harvest more text",
    )
    stream = Stream(readers, config.batch_size, config.data_seed, config.buffer_rows)
    widths = {site: reader.d_in for site, reader in readers.items()}
    model = first.model
    samples = {site: sample(reader, SAMPLE_ROWS, config.data_seed) for site, reader in readers.items()}
    usual = {site: Usual(readers[site].median_norm, centre(rows)) for site, rows in samples.items()}
    of_model = model["name"], model["fingerprint"]
    return TrainingData(stream, widths, first.content, *of_model, usual, _mixing(stream, config), warnings)


def model_source(
    lm: LanguageModel,
    rows: Rows,
    config: TrainConfig,
    *,
    batch_rows: int = 16,
    row_filter: RowFilter = USUAL,
) -> TrainingData:
    """What :func:`~monolex.training.trainer.train_from` needs to train ``config`` from the model: nothing is stored.

    ``config.sites`` must name sites; ``batch_rows`` packed rows are in a forward pass, of which those that
    ``row_filter`` says do not count are left out.

    Raises:
        UserError: no site or one that the model does not have, fewer kept tokens than a batch, or hooks that change
            what the model computes.
    """
    require_unhooked(lm)
    shape = (config.batch_size, config.data_seed, config.buffer_rows)
    stream = ModelStream(lm, rows, config.sites, *shape, batch_rows=batch_rows, row_filter=row_filter)
    widths = {site: lm.width(site) for site in stream.sites}
    mixing = _mixing(stream, config)
    return TrainingData(stream, widths, stream.content, lm.name, lm.fingerprint, stream.usual, mixing)


def _mixing(stream: Stream | ModelStream, config: TrainConfig) -> dict[str, float]:
    mixing = stream.mixing()
    runtime.log.info(
        "a batch of %d rows draws from %.0f documents, an ideal one from %.0f",
        config.batch_size, mixing.distinct, mixing.ideal,
    )  # fmt: skip
    return mixing._asdict()
