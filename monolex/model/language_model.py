"""A language model and where its parts are.

A model stays a plain Hugging Face model; :class:`LanguageModel` only adds where its parts are.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from monolex.config import Dtype
from monolex.errors import UserError
from monolex.model.gguf import is_gguf, title
from monolex.model.sites import Place, Site, Structure

DTYPES: Final[dict[Dtype, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of a configuration, what says how or where a model was saved and not what it computes.
_NOT_COMPUTED = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@final
@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Hugging Face causal LM and where its parts are; made by :mod:`monolex.model.load`."""

    hf: PreTrainedModel
    """The model itself; hooks put it into eval mode while they use it."""
    tokenizer: PreTrainedTokenizerBase | None
    """Its tokenizer, if there is one."""
    name: str
    """As it was asked for: `demo`, a folder, a name on the hub."""
    structure: Structure
    """Blocks, final norm and the place of every site."""

    @property
    def title(self) -> str:
        """What pages call it: its name; of a folder what its files say it is, or the folder's name, family and size."""
        folder = Path(self.name).expanduser()
        if is_gguf(folder):
            return title(folder)
        if self.name == "demo" or not folder.is_dir():
            return self.name
        cached = [part.removeprefix("models--") for part in folder.absolute().parts if part.startswith("models--")]
        if cached:
            return cached[-1].replace("--", "/")
        config = folder / "config.json"
        said = json.loads(config.read_text(encoding="utf-8")).get("_name_or_path", "") if config.is_file() else ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(said)):
            return said
        family = type(self.hf).__name__.removesuffix("ForCausalLM")
        parameters = _counted(sum(parameter.numel() for parameter in self.hf.parameters()))
        return f"{folder.absolute().name} ({family}, {parameters} parameters)"

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the residual stream."""
        return self.embedding.dtype

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.structure.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.embedding.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of logits, which may exceed the tokenizer's entries."""
        return self.unembedding.shape[0]

    @property
    def max_context(self) -> int:
        """Number of positions the model was made for."""
        return self.hf.config.get_text_config().max_position_embeddings

    @property
    def architecture(self) -> str:
        """Hugging Face's name of the family, for example ``gpt_neox``."""
        return self.hf.config.model_type

    @property
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E as stored (Gemma multiplies its rows by sqrt(d_model) when it reads them)."""
        return _weight(self.hf.get_input_embeddings())

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_U as stored; its rows are read after the final norm."""
        return _weight(self.hf.get_output_embeddings())

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the unembedding."""
        return self.structure.final_norm

    def place(self, site: Site | str) -> Place:
        """The end of a module where ``site`` is read; :class:`UserError` if this model has no such site."""
        return self.structure.place(Site.parse(site))

    def width(self, site: Site | str) -> int:
        """``d_in`` of ``site``."""
        return self.place(site).width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights' names, dtypes, shapes and bytes and of the configuration; computed once.

        Raises:
            UserError: `device_map` moved weights to disk, where their bytes cannot be read.
        """
        config = {key: value for key, value in self.hf.config.to_diff_dict().items() if key not in _NOT_COMPUTED}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.hf.state_dict().items()):
            if tensor.is_meta:
                raise UserError(f"device_map moved {name} out of memory: use a device_map that keeps all weights in it")
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _counted(number: int) -> str:
    """Parameters for a person: ``135M``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _weight(module: nn.Module | None) -> Tensor:
    assert module is not None and isinstance(module.weight, Tensor), f"{type(module).__name__} has no weight"
    return module.weight.detach()
