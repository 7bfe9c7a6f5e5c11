"""A dictionary as delphi has it: a text an explained feature, and a cache of all activations of a split."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from monolex import runtime
from monolex.activations.reader import Reader, Split
from monolex.activations.stored import packed_rows
from monolex.artifact import json_bytes, open_artifact
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary
from monolex.publish.config import PublishConfig
from monolex.publish.explained import ExplainedFeature
from monolex.publish.files import compact
from monolex.publish.neuronpedia import File
from monolex.publish.schema import problem, schema

LEAST = 1e-5
"""Activations up to this size are none, as delphi counts."""
ROWS = 4096
"""Activations that are encoded at a time."""
HALF = 65_504.0
"""The largest number in fp16."""
MOST = 50_000_000
"""Activations in a cache."""
SHORT = 2**16
"""Numbers below this fit into two bytes."""


def files(
    run: Path, dictionary: RunDictionary, config: PublishConfig, explained: Sequence[ExplainedFeature]
) -> Iterator[File]:
    """``explanations/SITE_latentN.txt``, or a folder an explainer there, and the cache ``latents/SITE``."""
    names = list(dict.fromkeys(said.explainer for feature in explained for said in feature.explanations))
    for feature in explained:
        # of an explainer that several explanations of the run have, the first speaks
        said = {each.explainer: each.text for each in reversed(feature.explanations)}
        for explainer, text in said.items():
            home = "explanations" if len(names) == 1 else f"explanations/{explainer}"
            assert not problem(text, schema("delphi-explanation"), written=True)
            yield File(f"{home}/{dictionary.site}_latent{feature.feature}.txt", compact(text))
    if config.latents != "none":
        yield from latents(run, dictionary, config.latents, config.publish_device)


def latents(run: Path, dictionary: RunDictionary, split: Split, device: str) -> Iterator[File]:
    """The activations of every feature on every stored row of a split, and what they are of.

    Raises:
        UserError: no stored rows of this split.
    """
    reader = Reader(run / "activations", dictionary.site, split)
    tokens = packed_rows(run / "activations", split).tokens
    wide = torch.uint16 if max(*tokens.shape, dictionary.config.d_sae) < SHORT else torch.uint32
    locations, values = _encoded(reader, dictionary, device, wide)
    half = values.abs().max() <= HALF if len(values) else True
    arrays = {
        "locations": locations,
        "activations": values.half() if half else values,
        "tokens": tokens.contiguous(),
    }
    home = f"latents/{dictionary.site}"
    yield File(f"{home}/0_{dictionary.config.d_sae - 1}.safetensors", save(arrays))
    manifest = open_artifact(run / "activations", "activations")
    facts = {
        "model_name": manifest.data["model"]["model_config"]["model"],
        "dataset_repo": manifest.config["corpus"],
        "dataset_split": split,
        "dataset_name": "",
        "dataset_column": manifest.config["text_field"],
        "batch_size": 1,
        # its loader reads the second name, what it writes is the first
        "cache_ctx_len": tokens.shape[1],
        "ctx_len": tokens.shape[1],
        "n_tokens": tokens.numel(),
        "n_splits": 1,
    }
    assert not (fault := problem(facts, schema("delphi-config"), written=True)), fault
    yield File(f"{home}/config.json", json_bytes(facts))


@torch.no_grad()
def _encoded(reader: Reader, dictionary: RunDictionary, device: str, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Packed row, position and feature ``[active, 3]`` of every activation, and its size ``[active]``."""
    weights = dictionary.weights(runtime.device(device))
    locations, values, count = [torch.zeros(0, 3, dtype=torch.int64).to(wide)], [torch.zeros(0)], 0
    for start, x in reader.chunks(ROWS):
        codes = weights.encode_sparse(x.to(weights.W_dec.device))
        row = torch.repeat_interleave(torch.arange(len(x)), codes.offsets.diff().cpu())
        contexts, positions = (part(start, start + len(x)).long() for part in (reader.contexts, reader.positions))
        value = codes.values.cpu().float()
        kept = value.abs() > LEAST
        place = torch.stack([contexts[row], positions[row], codes.features.cpu()], dim=1)
        locations.append(place[kept].to(wide))
        values.append(value[kept])
        count += int(kept.sum())
        require(
            count <= MOST,
            f"{dictionary.title} has more than {MOST:,} activations in the {reader.split} rows, too many for a cache "
            "that is read whole: leave it out by --dictionaries, or give --latents none",
        )
    return torch.cat(locations), torch.cat(values)
