"""Where the activations of a sweep come from: stored ones, the model itself, or any stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.activations.constant import constant_sites
from monolex.activations.norms import SAMPLE_ROWS, Usual, usual
from monolex.activations.reader import Reader, stored_sites
from monolex.activations.rule import USUAL, RowFilter
from monolex.activations.stored import stored_model, training_rows
from monolex.activations.stream import ModelStream, Stream
from monolex.artifact import open_artifact
from monolex.config import require
from monolex.dictionaries.axes import sample
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site, expand
from monolex.model.verify import require_unhooked
from monolex.text.rows import Rows
from monolex.train_config import TrainConfig
from monolex.training.check import read_of
from monolex.training.optim import recipe


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
    """Every site that is read, with its width."""
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
    targets: Mapping[str, int] = field(default_factory=dict)
    """The sites that transcoders reconstruct, with their widths."""


def stored_source(activations: Path, config: TrainConfig) -> TrainingData:
    """What :func:`~monolex.training.trainer.train_from` needs to train ``config`` on stored activations.

    Where a harvest stored a sample alone, all rows come from its model, and what is usual of them from the sample.
    Constant sites are left out; where no other is asked for, there is nothing to train at.

    Raises:
        UserError: an unknown site, or fewer rows than a batch.
    """
    read, targets = _read_and_reconstructed(config, stored_sites(activations, config.sites), activations)
    constant = constant_sites(activations, (*read, *targets))
    read = [site for site in read if site not in constant and config.target_of(site) not in constant]
    targets = [site for site in targets if site in {config.target_of(site) for site in read}]
    warnings = list(constant.values())
    if not read:
        content = open_artifact(activations, "activations").content
        return TrainingData(NoBatches(), {}, content, warnings=warnings)
    readers = {site: Reader(activations, site, "train") for site in dict.fromkeys((*read, *targets))}
    first = readers[read[0]]
    widths = {site: reader.d_in for site, reader in readers.items()}
    model = first.model
    known = {site: _usual(sample(reader, SAMPLE_ROWS, config.data_seed), config) for site, reader in readers.items()}
    known = {site: of_sample._replace(norm=readers[site].median_norm) for site, of_sample in known.items()}
    of_model = model["name"], model["fingerprint"]
    if open_artifact(activations).data.get("streamed"):
        stream: Stream | ModelStream = _through_the_model(activations, list(readers), config, known)
    else:
        require(
            first.n_rows >= config.batch_size,
            f"batch_size = {config.batch_size} but {activations} has {first.n_rows} training rows; "
            "lower batch_size or harvest more text",
        )
        stream = Stream(readers, config.batch_size, config.data_seed, config.buffer_rows)
    return TrainingData(
        stream, {site: widths[site] for site in read}, first.content, *of_model, known, _mixing(stream, config),
        warnings, {site: widths[site] for site in targets},
    )  # fmt: skip


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
    available = tuple(map(str, expand(config.sites, lm.n_layers)))
    require(len(available) > 0, "sites is empty: a stream from the model needs at least one, such as resid_post.3")
    read, targets = _read_and_reconstructed(config, available, None)
    shape = (config.batch_size, config.data_seed, config.buffer_rows)
    stream = ModelStream(lm, rows, (*read, *targets), *shape, batch_rows=batch_rows, row_filter=row_filter)
    widths = {site: lm.width(site) for site in stream.sites}
    known = stream.usual
    if _whitens(config):
        known = {site: _usual(sample, config) for site, sample in stream.sample().items()}
    return TrainingData(
        stream, {site: widths[site] for site in read}, stream.content, lm.name, lm.fingerprint, known,
        _mixing(stream, config), (), {site: widths[site] for site in targets},
    )  # fmt: skip


def _through_the_model(
    activations: Path, sites: Sequence[str], config: TrainConfig, known: Mapping[str, Usual]
) -> ModelStream:
    """All training rows of a harvest that stored some, by its model and by its rule of what is left out."""
    lm, harvested = stored_model(activations, config.train_device), open_artifact(activations).config
    row_filter = RowFilter(harvested["drop_bos"], harvested["max_norm"])
    shape = (config.batch_size, config.data_seed, config.buffer_rows)
    stream = ModelStream(lm, training_rows(activations), sites, *shape, row_filter=row_filter)
    stream.usual = dict(known)
    return stream


def _read_and_reconstructed(
    config: TrainConfig, sites: Sequence[str], stored: Path | None
) -> tuple[list[str], list[str]]:
    """Which of ``sites`` are read, and what transcoders reconstruct from them, which ``stored`` must hold.

    Of sites that nobody named, those that are reconstructed are not read.
    """
    if stored is not None and not config.sites:
        sites = read_of(sites, config)
        require(len(sites) > 0, f"target = {config.target!r}: {stored} holds no site that it could be read from")
    targets = list(dict.fromkeys(config.target_of(site) for site in sites if config.target))
    for target in targets:
        Site.parse(target)
        if stored is not None:
            stored_sites(stored, (target,))
        require(target not in sites, f"target = {config.target!r} is {target}, which is read too; take it out of sites")
    return list(sites), targets


def _whitens(config: TrainConfig) -> bool:
    return recipe(config, config.kinds[0]).preprocess == "whiten"


def _usual(rows: Float[Tensor, "rows d_in"], config: TrainConfig) -> Usual:
    whitens = _whitens(config)
    require(
        not whitens or len(rows) >= 2 * rows.shape[1],
        f"preprocess = 'whiten' needs {2 * rows.shape[1]} rows of width {rows.shape[1]} and has {len(rows)}; harvest "
        "more text or choose scale",
    )
    return usual(rows, covariance=whitens)


def _mixing(stream: Stream | ModelStream, config: TrainConfig) -> dict[str, float]:
    mixing = stream.mixing()
    runtime.log.info(
        "a batch of %d rows draws from %.0f documents, an ideal one from %.0f",
        config.batch_size, mixing.distinct, mixing.ideal,
    )  # fmt: skip
    return mixing._asdict()
