"""A language model whose one block copies the tokens one and two places back: features of bigrams known by hand."""

import torch
from helpers.wired import blank
from torch import Tensor

from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap

SITE = "resid_post.0"
POSITIONS = 24
SHARP = 400.0


def looking_back(embedding: Tensor) -> LanguageModel:
    """The stream that leaves the block: the token's ``embedding`` row, that of the token before it, that of the one
    before that, and the position. At the first tokens, what lies before them reads as themselves or their neighbours.
    """
    vocab, size = embedding.shape
    width = max(2 * max(size, POSITIONS), 3 * size + POSITIONS)
    width += width % 2  # half of it for each of two heads
    model = blank(vocab, width, heads=2, positions=POSITIONS, neurons=1)
    block = model.transformer.h[0]
    with torch.no_grad():
        model.transformer.wte.weight[:, :size] = embedding
        model.transformer.wpe.weight[:, 3 * size : 3 * size + POSITIONS] = torch.eye(POSITIONS)
        for back in (1, 2):
            _copy(block.attn, back, size, width)
    return wrap(model, name="looking back")


def _copy(attention: torch.nn.Module, back: int, size: int, width: int) -> None:
    """Head ``back - 1`` attends to the position ``back`` before and writes its token's row into a slice of its own."""
    half = width // 2
    first = (back - 1) * half
    places = torch.arange(POSITIONS)
    from_position = attention.c_attn.weight[3 * size : 3 * size + POSITIONS]
    from_position[places, first + places] = SHARP
    from_position[places[:-back], width + first + places[back:]] = 1.0
    rows = torch.arange(size)
    attention.c_attn.weight[rows, 2 * width + first + rows] = 1.0
    attention.c_proj.weight[first + rows, back * size + rows] = 1.0


def feature_rows(width: int, size: int, wanted: list[dict[int, Tensor]]) -> Tensor:
    """Encoder rows: for each feature, what it reads of the token (0), of the one before (1) and before that (2)."""
    rows = torch.zeros(len(wanted), width, dtype=torch.float64)
    for row, some in zip(rows, wanted, strict=True):
        for back, direction in some.items():
            row[back * size : (back + 1) * size] = direction
    return rows


def reading(rows: Tensor, bias: list[float]) -> Dictionary:
    """Features ``relu(rows · x + bias)``."""
    features, width = rows.shape
    config = DictionaryConfig(kind="untied", activation="relu", d_in=width, d_out=width, d_sae=features, site=SITE)
    nothing = torch.zeros(width, dtype=torch.float64)
    weights = {"W_enc": rows, "b_enc": torch.tensor(bias, dtype=torch.float64), "W_dec": rows}
    return Dictionary(config, {**weights, "b_dec": nothing, "centre": nothing})
