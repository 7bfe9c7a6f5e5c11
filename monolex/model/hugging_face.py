"""How transformers is called: without its bars, its errors in one sentence, and nothing left to random numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from monolex.errors import UserError


def require_all_weights(model: str, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights; transformers fills them with random numbers and only logs it.

    Args:
        info: what `from_pretrained` gives with `output_loading_info`.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise UserError(f"model = {model!r}: its weights lack or do not fit {', '.join(lacking[:3])}")


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn what transformers raises about files, names and configurations into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model = {model!r} cannot be loaded: {first}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and log inside; a download from the hub keeps its own bar."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    if bars:
        transformers_logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not hub_bars:
            disable_progress_bars()
