"""How a local model is named where scores are compared: two may have one name."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # clients of endpoints do not wait for torch
    from monolex.model.language_model import LanguageModel


def precision(lm: "LanguageModel") -> str:
    """``fp32``, ``bf16``, ``fp16``, or what torch calls another one."""
    name = str(lm.dtype).removeprefix("torch.")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name, name)


def named(name: str, dtype: str, weights: str) -> str:
    """Name, precision unless it is fp32, and the beginning of the hash of the weights.

    >>> named("demo", "bf16", "0123456789"), named("demo", "fp32", "0123456789")
    ('demo (bf16, 01234567)', 'demo (01234567)')
    """
    return f"{name} ({'' if dtype == 'fp32' else f'{dtype}, '}{weights[:8]})"
