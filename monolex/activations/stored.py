"""What stored activations are of: their model, loaded again, and the packed rows of tokens that it read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from monolex.activations.reader import Reader, Split
from monolex.activations.writer import SPLITS, STREAMED
from monolex.artifact import open_artifact
from monolex.config import ModelConfig, located
from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import DTYPES, LanguageModel
from monolex.model.load import load, precision
from monolex.model.precision import Precision
from monolex.tables import from_table
from monolex.text.rows import Rows
from monolex.text.separator import use_separator

COMPARED: Final = 16
"""Rows at each end of a split that are computed anew when their model is loaded."""
FAR, ROUNDED = 0.25, 1e-4
"""Shares of the squared distance from the mean, and of the squares, by which they may differ: other devices,
batches and stored precisions differ by less, and rows of other tokens by more."""


def stored_model(activations: Path, device: str = "auto") -> LanguageModel:
    """The very model that stored activations are of, which encodes texts behind the separator that they were read with.

    Raises:
        UserError: no finished activations, the model of that name has other weights than it had, or stored rows are not
            what it gives.
    """
    data = open_artifact(activations, "activations").data
    facts = data["model"]
    config = from_table(ModelConfig, facts["model_config"], str(activations))
    lm = load(dataclasses.replace(config, device=device))
    if lm.fingerprint != facts["fingerprint"]:
        raise UserError(f"the model {config.model!r} is no longer the one in {activations}; harvest again")
    assert lm.tokenizer is not None, "only a model with a tokenizer can be harvested"
    use_separator(lm.tokenizer, data["corpus"]["separator"]["token"])
    for split in SPLITS:
        if data["rows"][split]:
            _require_same(activations, lm, {site: Reader(activations, site, split) for site in data["sites"]})
    return lm


def _require_same(activations: Path, lm: LanguageModel, readers: Mapping[str, Reader]) -> None:
    """Refuse stored rows of a split that are others than their tokens give, by the first and the last few of them."""
    reader = next(iter(readers.values()))
    packed = packed_rows(activations, reader.split).tokens
    for start in {0, max(reader.n_rows - COMPARED, 0)}:
        stop = min(start + COMPARED, reader.n_rows)
        contexts, positions = reader.contexts(start, stop).long(), reader.positions(start, stop).long()
        fault = None if torch.equal(packed[contexts, positions], reader.tokens(start, stop)) else "rows"
        compared = (contexts == contexts[-1 if start else 0]).nonzero()[:, 0]
        contexts, positions = contexts[compared], positions[compared]
        tokens = packed[contexts[:1], : int(positions.max()) + 1].long()
        seen = capture(lm, tokens, list(readers), mask=torch.ones_like(tokens)).activations
        for site, other in readers.items():
            x = seen[site][0, positions.to(lm.device)].double().cpu()
            error = (other.gather(start + compared).double() - x).square().sum()
            if error > FAR * (x - x.mean(0)).square().sum() + ROUNDED * x.square().sum():
                fault = fault or site
        if fault:
            raise UserError(
                f"{activations / fault}: the {reader.split} rows {start} to {stop} are not what the model gives on "
                f"their tokens; look with `monolex show {activations} --verify`, and harvest again"
            )


def settled(model: ModelConfig, activations: Path) -> tuple[ModelConfig, Precision | None]:
    """``model`` with a precision in place of `auto`, and what is known of that choice; None where it was no choice.

    What finished ``activations`` of this model were made in stays, wherever they are looked at again: a processor of
    another kind, or a later version, would choose otherwise, and two precisions must not meet in a run.

    Raises:
        UserError: as :func:`monolex.model.load.precision`.
    """
    model = located(model)
    if model.model_dtype != "auto":
        return model, None
    chosen = _chosen_before(model, activations) or precision(model)
    return dataclasses.replace(model, model_dtype=chosen.dtype), chosen


def _chosen_before(model: ModelConfig, activations: Path) -> Precision | None:
    try:
        facts = open_artifact(activations, "activations").data["model"]
    except UserError:
        return None
    before = facts["model_config"]
    same = (before["model"], before["revision"]) == (model.model, model.revision)
    return Precision(**facts["precision"]) if same and facts.get("precision") else None


def require_measured(lm: LanguageModel, config: ModelConfig, chosen: Precision | None) -> None:
    """Refuse weights that `auto` did not measure.

    Raises:
        UserError: what was measured were other weights of that name.
    """
    measured = chosen.fingerprint if chosen is not None and config.control == "none" else None
    if measured is not None and measured != lm.fingerprint:
        raise UserError(
            f"model = {config.model!r} has other weights than those for which model_dtype = 'auto' chose "
            f"{config.model_dtype}: set model_dtype = {config.model_dtype!r}, or harvest into another folder"
        )


def in_precision_of(lm: LanguageModel, model: ModelConfig) -> ModelConfig:
    """``model`` in the precision that a loaded model has; in fp32 where that has no name here."""
    named = {dtype: name for name, dtype in DTYPES.items()}
    return dataclasses.replace(model, model_dtype=named.get(lm.dtype, "fp32"))


def packed_rows(activations: Path, split: Split) -> Rows:
    """All packed rows of a split whose activations are stored, memory-mapped.

    Raises:
        UserError: the file is damaged.
    """
    return _packed(activations, split)


def training_rows(activations: Path) -> Rows:
    """All packed rows to train on, those first whose activations are stored.

    Raises:
        UserError: the file is damaged.
    """
    streamed = bool(open_artifact(activations, "activations").data.get("streamed"))
    parts = [_packed(activations, part) for part in ("train", STREAMED)[: 1 + streamed]]
    return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "docs", "keep")))


def _packed(activations: Path, split: str) -> Rows:
    path = activations / "corpus.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its manifest and harvest again") from error
    return Rows(*(tensors[f"{split}.{name}"] for name in ("tokens", "docs", "keep")))


def held_out_rows(activations: Path, contexts: int) -> Rows:
    """``contexts`` held-out packed rows of tokens, spread evenly so that they come from many documents."""
    rows = packed_rows(activations, "held_out")
    count = min(contexts, len(rows))
    chosen = torch.arange(count) * len(rows) // max(count, 1)
    return Rows(rows.tokens[chosen], rows.docs[chosen], rows.keep[chosen])
