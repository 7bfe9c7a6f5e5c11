"""A dictionary of which several ranks have features: written as one, without being whole anywhere."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from monolex.artifact import FileEntry, digest, write_json
from monolex.dictionaries.base import CONFIG, CONTENT, WEIGHTS, Dictionary
from monolex.ranks.group import RankGroup
from monolex.tensor_file import Pieces, blocks, whole, write

BY_FEATURE = ("W_enc", "W_dec", "b_enc", "threshold")
"""Weights with an entry or a row a feature."""


def save_parts(folder: Path, part: Dictionary, d_sae: int, k: int | None, features: RankGroup) -> dict[str, FileEntry]:
    """Write the dictionary of ``d_sae`` features of which every rank has a ``part``, rank after rank.

    As :meth:`Dictionary.save`, and the same bytes. The first rank writes, and gets blocks of rows from the others; what
    all features share is that of the first.

    Returns:
        Sizes and hashes of the files; nothing on the other ranks.
    """
    if features.size == 1:
        return part.save(folder)
    tensors = {}
    for name in sorted(part.weights):
        weight = part.weights[name]
        if name not in BY_FEATURE:
            tensors[name] = whole(weight)
            continue
        shapes = [
            [torch.Size(shape) for shape in of_rank]
            for of_rank in features.told([list(block.shape) for block in blocks(weight)])
        ]
        pieces = features.handed(blocks(weight), shapes)
        tensors[name] = Pieces((d_sae, *weight.shape[1:]), weight.dtype, pieces)
    if not features.first:
        for name in sorted(BY_FEATURE):
            list(tensors[name].pieces if name in tensors else ())
        return {}
    weights = write(folder / WEIGHTS, tensors)
    config = asdict(replace(part.config, d_sae=d_sae, k=k))
    content = {CONTENT: digest([config, weights.sha256])}
    return {WEIGHTS: weights, CONFIG: write_json(folder / CONFIG, {**config, **content})}
