"""Language models: load one (or a control of it), wrap the caller's own, and prove that its sites mean what they say.

A model stays a plain Hugging Face model; :class:`LanguageModel` only adds where its parts are. No architecture is
trusted by name: :func:`verify` runs a few tokens through every model and refuses one whose residual stream does not add
up. Controls (random weights, shuffled weights) are made here so that every later stage can be run on them unchanged.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from monolex import runtime
from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.model.hooks import capture, logits, run_from
from monolex.model.sites import KINDS, Place, Site, SiteError, Structure, resolve

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEMO: Final = Path(__file__).parents[1] / "demo" / "model"
"""The bundled model: see its README for what it was trained on."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
# Of a configuration, what says how or where a model was saved and not what it computes.
_NOT_COMPUTED = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@final
@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Hugging Face causal LM and where its parts are; made by :func:`load` or :func:`wrap`."""

    hf: PreTrainedModel
    """The model itself; hooks put it into eval mode while they use it."""
    tokenizer: PreTrainedTokenizerBase | None
    """Its tokenizer, if there is one."""
    name: str
    """What reports call it."""
    structure: Structure
    """Blocks, final norm and the place of every site."""

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


def wrap(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "model"
) -> LanguageModel:
    """The caller's own model, verified; its weights, hooks, flags and training mode stay as they are.

    Raises:
        UserError: its architecture is not one monolex can read.
    """
    config = hf_model.config.get_text_config()
    try:
        structure = resolve(hf_model, config.num_hidden_layers, config.hidden_size)
    except LookupError as error:
        raise _unreadable(hf_model.config.model_type, str(error)) from error
    lm = LanguageModel(hf_model, tokenizer, name, structure)
    verify(lm)
    return lm


def load(config: ModelConfig | str) -> LanguageModel:
    """The model a configuration (or just a name) says, or a control of it, verified and in eval mode.

    ``random`` is the architecture's own initialisation, drawn in float32 under ``control_seed`` (so that every dtype
    gets the same numbers); ``shuffled`` permutes every parameter of two or more dimensions elementwise.

    Raises:
        UserError: no such model, an incomplete folder, weights that do not fit, or an unreadable architecture.
    """
    config = ModelConfig(model=config) if isinstance(config, str) else config
    if config.device_map is not None and config.control != "none":
        raise UserError(f"device_map = {config.device_map!r} cannot make control = {config.control!r}: use device")
    if config.device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise UserError(f"device_map = {config.device_map!r} needs accelerate: pip install accelerate")
    origin = source(config)
    tokenizer = load_tokenizer(config)
    with _quiet(), _explained(config):
        model = _initialised(origin, config) if config.control == "random" else _pretrained(origin, config)
    if config.control == "shuffled":
        _shuffle(model, config.control_seed)
    if config.device_map is None:
        model.to(runtime.device(config.device))  # pyright: ignore[reportArgumentType]
    suffix = "" if config.control == "none" else f" ({config.control}, seed {config.control_seed})"
    return wrap(model.eval(), tokenizer, config.model + suffix)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone of the model that a configuration says.

    Raises:
        UserError: as :func:`load`.
    """
    with _quiet(), _explained(config):
        return AutoTokenizer.from_pretrained(source(config), revision=config.revision, trust_remote_code=False)


def verify(lm: LanguageModel) -> None:
    """Run a few fixed tokens and check every identity the sites promise.

    On all layers resid_pre + attn_out + mlp_out == resid_post, resid_pre + attn_out == resid_mid where there is one,
    and resid_post.l == resid_pre.(l+1); edits that change nothing leave the logits bit-exact; resuming at the first,
    middle and last layer gives the full forward's logits. Peers read the wrong module for months without such a check
    (TransformerLens #1618, #1639, #1648).

    Raises:
        UserError: the first identity that fails.
    """
    length = min(12, lm.max_context)
    tokens = ((torch.arange(2 * length) * 7 + 3) % lm.vocab_size).reshape(2, length)
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in KINDS if kind in lm.structure.places[layer]]
    try:
        seen = capture(lm, tokens, sites, logits=True)
        assert seen.logits is not None, "a forward with logits gives logits"
        if not bool(seen.logits.isfinite().all()):
            raise UserError(f"{lm.name} gives NaN or infinite logits in {lm.dtype}: choose model_dtype fp32 or bf16")
        for layer in range(lm.n_layers):
            _verify_layer(lm, layer, seen.activations)
        if not torch.equal(logits(lm, tokens, dict.fromkeys(sites, torch.clone)), seen.logits):
            raise _unreadable(lm.architecture, "edits that change nothing change the logits")
        for layer in sorted({0, lm.n_layers // 2, lm.n_layers}):
            last = layer == lm.n_layers
            x = seen.activations[f"resid_post.{layer - 1}" if last else f"resid_pre.{layer}"]
            resumed = run_from(lm, layer, x.to(lm.device), tokens).logits
            assert resumed is not None, "a resumed forward gives logits"
            _require_close(lm, resumed, seen.logits, seen.logits.abs().max(), f"resuming at layer {layer}")
    except SiteError as error:
        raise _unreadable(lm.architecture, str(error)) from error


def _verify_layer(lm: LanguageModel, layer: int, seen: dict[str, Tensor]) -> None:
    pre, attn, mlp, post = (seen[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    pre, attn, mlp = pre.to(post.device), attn.to(post.device), mlp.to(post.device)
    total = f"resid_pre + attn_out + mlp_out against resid_post at layer {layer}"
    _require_close(lm, pre + attn + mlp, post, pre.abs() + attn.abs() + mlp.abs(), total)
    middle = seen.get(f"resid_mid.{layer}")
    if middle is not None:
        half = f"resid_pre + attn_out against resid_mid at layer {layer}"
        _require_close(lm, pre + attn, middle.to(post.device), pre.abs() + attn.abs(), half)
    after = seen.get(f"resid_pre.{layer + 1}")
    if after is not None and not torch.equal(post.to(after.device), after):
        raise _unreadable(lm.architecture, f"resid_post.{layer} is not resid_pre.{layer + 1}")


def _require_close(lm: LanguageModel, found: Tensor, expected: Tensor, scale: Tensor, what: str) -> None:
    """``found == expected`` up to the rounding of a few operations on numbers of size ``scale``."""
    error = (found.double() - expected.double()).abs()
    allowed = 4 * torch.finfo(lm.dtype).eps * scale.double() + torch.finfo(lm.dtype).tiny
    if not bool((error <= allowed).all()):
        raise _unreadable(lm.architecture, f"{what} differs by {error.max():.3g}")


def _unreadable(architecture: str, why: str) -> UserError:
    return UserError(f"architecture {architecture} is not one monolex can read: {why}")


def source(config: ModelConfig) -> str:
    """The folder or hub name to load from.

    Raises:
        UserError: a folder that is not there, lacks what loading needs, or is given a revision; a name that is neither
            in the hub's cache nor known to the hub.
    """
    folder = DEMO if config.model == "demo" else Path(config.model).expanduser()
    if not folder.is_dir():
        if config.model == "demo" or config.model.startswith((".", "/", "~")):
            raise UserError(f"model = {config.model!r}: there is no folder {folder}")
        _require_reachable(config)
        return config.model
    if config.revision is not None:
        raise UserError(f"revision = {config.revision!r}: {folder} is a folder; only hub models have revisions")
    _require_file(folder, ("config.json",), "configuration")
    _require_file(folder, _TOKENIZER_FILES, "tokenizer")
    if config.control != "random":
        _require_file(folder, _WEIGHT_FILES, "safetensors weights")
    return str(folder)


def _require_reachable(config: ModelConfig) -> None:
    """Ask the hub once for a model that is not in its cache; loading would ask in vain for most of a minute."""
    try:
        if isinstance(try_to_load_from_cache(config.model, "config.json", revision=config.revision), str):
            return
        get_hf_file_metadata(hf_hub_url(config.model, "config.json", revision=config.revision))
    except Exception as error:  # the hub's client lets through those of whichever HTTP library its version uses
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"model = {config.model!r} is neither a folder nor a model that could be had from the hub: {reason}"
        ) from error


def _require_file(folder: Path, names: tuple[str, ...], what: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"model folder {folder} has no {what}: it needs {' or '.join(names)}")


def _pretrained(origin: str, config: ModelConfig) -> PreTrainedModel:
    where: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        origin,
        revision=config.revision,
        dtype=DTYPES[config.model_dtype],
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below by name, where transformers would only say that there are some
        **where,
    )
    model, info = loaded
    # transformers fills what a checkpoint lacks with random numbers and only logs it.
    lacking = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if lacking:
        raise UserError(f"model = {config.model!r}: its weights lack or do not fit {', '.join(lacking[:3])}")
    return model


def _initialised(origin: str, config: ModelConfig) -> PreTrainedModel:
    shape = AutoConfig.from_pretrained(origin, revision=config.revision, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed accelerators too; the weights are drawn on the CPU.
        torch.default_generator.manual_seed(config.control_seed)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=False)
    for parameter in model.parameters():  # rotary frequencies stay in float32, as in a model loaded from weights
        parameter.data = parameter.data.to(DTYPES[config.model_dtype])
    return model


@torch.no_grad()
def _shuffle(model: nn.Module, seed: int) -> None:
    """Permute each matrix elementwise, in order of name; ``named_parameters`` gives a tied one only once."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim >= 2:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers raises about files, names and configurations into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model = {config.model!r} cannot be loaded: {first}") from error


@contextmanager
def _quiet() -> Iterator[None]:
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


def _weight(module: nn.Module | None) -> Tensor:
    assert module is not None and isinstance(module.weight, Tensor), f"{type(module).__name__} has no weight"
    return module.weight.detach()
