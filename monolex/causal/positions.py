"""At which tokens of a text something is edited, where a forward may be given only the last of them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monolex.config import require
from monolex.errors import UserError

Positions = slice | Sequence[int] | Bool[Tensor, "*batch tokens"] | None
"""Positions counted from the first token that the model was given: a slice, numbers, a mask, or None for all."""


def positions_mask(
    positions: Positions, start: int, length: int, device: torch.device
) -> Bool[Tensor, "*batch length"] | None:
    """Which of ``length`` tokens from ``start`` on are meant; None means all.

    Raises:
        UserError: a mask that is shorter than the tokens, or numbers that may be meant as a mask.
    """
    if positions is None:
        return None
    if not isinstance(positions, slice):
        positions = _numbers_or_mask(positions, start + length)
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        shape = len(positions) if positions.ndim == 2 else 1, length
        return at_tokens(positions[..., None], shape, start, "positions")[..., 0].to(device)
    tokens = torch.arange(start, start + length, device=device)
    if isinstance(positions, slice):
        require(
            positions.step in (None, 1) and min(positions.start or 0, positions.stop or 0) >= 0,
            f"positions = {positions}: count from the first token, without steps (a text that grows has no last one)",
        )
        return (tokens >= (positions.start or 0)) & (
            tokens < (start + length if positions.stop is None else positions.stop)
        )
    chosen = torch.as_tensor(positions, dtype=torch.int64, device=device)
    require(bool((chosen >= 0).all()), "positions holds a negative number: count from the first token")
    return torch.isin(tokens, chosen)


def nowhere(positions: Positions, x: Tensor, start: int) -> str:
    """Why no token of ``x`` is meant; empty if one is."""
    where = positions_mask(positions, start, x.shape[1], x.device)
    if where is None or bool(where.any()):
        return ""
    return f"its positions fit none of the {start + x.shape[1]} tokens"


def _numbers_or_mask(
    positions: Sequence[int] | Tensor, tokens: int
) -> Int[Tensor, "positions"] | Bool[Tensor, "*batch mask"]:
    """``positions`` as a tensor; what could be read as either, or as neither, is refused."""
    try:
        read = torch.as_tensor(positions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "positions are lists of different lengths: give a mask of booleans, [prompts, tokens]"
        ) from error
    if not read.numel():
        return read.flatten().long()
    if read.dtype != torch.bool:
        require(
            read.ndim == 1 and not read.is_floating_point(),
            f"positions are numbers of shape {list(read.shape)}: give whole numbers that hold for all prompts, or a "
            "mask of booleans, [prompts, tokens]",
        )
        return read
    require(
        read.ndim <= 2 and read.shape[-1] >= tokens,
        f"positions are a mask of shape {list(read.shape)} and the text has {tokens} tokens: give [tokens] or "
        "[prompts, tokens]",
    )
    return read


def added_where(
    positions: Positions, x: Tensor, start: int, delta: Callable[[Float[Tensor, "batch tokens d_in"]], Tensor]
) -> Tensor:
    """``x`` with ``delta`` added where ``positions`` say; it is asked for no token behind the last of them, of which a
    donor may know nothing."""
    where = positions_mask(positions, start, x.shape[1], x.device)
    if where is None:
        return x + delta(x)
    prompts = len(where) if where.ndim == 2 else 1
    require(
        prompts in (1, len(x)),
        f"positions are of {prompts} prompts and the forward has {len(x)} rows: give a mask for each",
    )
    meant = where.reshape(-1, where.shape[-1]).any(0).nonzero()
    if not len(meant):
        return x
    last = int(meant[-1]) + 1
    part = x[:, :last]
    edited = torch.where(where[..., :last, None], part + delta(part), part)
    return torch.cat([edited, x[:, last:]], 1)


def at_tokens(value: Tensor, shape: Sequence[int], start: int, name: str) -> Tensor:
    """The part of ``[*batch, tokens, width]`` that belongs to the tokens at hand, of so many rows and tokens; what has
    one row only serves all."""
    rows, text = shape[0], start + shape[1]
    require(
        value.ndim < 3 or len(value) in (1, rows),
        f"{name} is of {len(value)} prompts and the forward has {rows} rows: give one for each of them",
    )
    if value.ndim < 2 or value.shape[-2] == 1:
        return value
    require(
        value.shape[-2] >= text,
        f"{name} is of {value.shape[-2]} tokens and the text has {text}: give one value for all tokens",
    )
    return value[..., start:text, :]
