"""What stored activations are of: their model, loaded again, and the packed rows of tokens that it read."""

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from monolex.activations.reader import Split
from monolex.artifact import open_artifact
from monolex.config import ModelConfig, located
from monolex.errors import UserError
from monolex.model.language_model import DTYPES, LanguageModel
from monolex.model.load import load, precision
from monolex.model.precision import Precision
from monolex.tables import from_table
from monolex.text.rows import Rows
from monolex.text.separator import use_separator


def stored_model(activations: Path, device: str = "auto") -> LanguageModel:
    """The very model that stored activations are of, which encodes texts behind the separator that they were read with.

    Raises:
        UserError: no finished activations, or the model of that name has other weights than it had.
    """
    data = open_artifact(activations, "activations").data
    facts = data["model"]
    config = from_table(ModelConfig, facts["model_config"], str(activations))
    lm = load(dataclasses.replace(config, device=device))
    if lm.fingerprint != facts["fingerprint"]:
        raise UserError(f"the model {config.model!r} is no longer the one in {activations}; harvest again")
    assert lm.tokenizer is not None, "only a model with a tokenizer can be harvested"
    use_separator(lm.tokenizer, data["corpus"]["separator"]["token"])
    return lm


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
    """All packed rows of a split, memory-mapped.

    Raises:
        UserError: the file is damaged.
    """
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
