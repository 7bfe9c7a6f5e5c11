"""Load a language model (or a control of it), or wrap the caller's own; each is verified.

Controls (random weights, shuffled weights) are made here so that every later stage can be run on them unchanged.
"""

import dataclasses
import importlib.util
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from monolex import runtime
from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.model.files import Source, source
from monolex.model.hugging_face import explained, quiet, require_all_weights
from monolex.model.language_model import DTYPES, LanguageModel
from monolex.model.precision import Precision, compared, objection
from monolex.model.sites import resolve
from monolex.model.verify import unreadable, verify
from monolex.products import quicken


def wrap(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "model"
) -> LanguageModel:
    """The caller's own model, verified; its weights, hooks, flags and training mode stay as they are.

    A site whose place cannot be proved (:func:`monolex.model.verify.verify`) is refused by whatever asks for it.

    Raises:
        UserError: its architecture is not one monolex can read.
    """
    config = hf_model.config.get_text_config()
    try:
        structure = resolve(hf_model, config.num_hidden_layers, config.hidden_size)
    except LookupError as error:
        raise unreadable(hf_model.config.model_type, str(error)) from error
    lm = LanguageModel(hf_model, tokenizer, name, structure)
    for part, width in (("embedding", lm.embedding.shape[1]), ("unembedding", lm.unembedding.shape[1])):
        if width != config.hidden_size:
            why = f"its {part} is {width} wide and its residual stream {config.hidden_size}"
            raise unreadable(hf_model.config.model_type, why)
    return replace(lm, structure=verify(lm))


def load(config: ModelConfig | str) -> LanguageModel:
    """The model a configuration (or just a name) says, or a control of it, verified and in eval mode.

    ``random`` is the architecture's own initialisation, drawn in float32 under ``control_seed`` (so that every dtype
    gets the same numbers); ``shuffled`` permutes every parameter of two or more dimensions elementwise. A precision
    of `auto` is what :func:`precision` says.

    Raises:
        UserError: no such model, an incomplete folder, weights that do not fit, or an unreadable architecture.
    """
    config = ModelConfig(model=config) if isinstance(config, str) else config
    if config.device_map is not None and config.control != "none":
        raise UserError(f"device_map = {config.device_map!r} cannot make control = {config.control!r}: use device")
    if config.device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise UserError(f"device_map = {config.device_map!r} needs accelerate: pip install accelerate")
    if config.model_dtype == "auto":
        config = dataclasses.replace(config, model_dtype=precision(config).dtype)
    origin = source(config)
    tokenizer = load_tokenizer(config)
    with quiet(), explained(config.model):
        model = _initialised(config) if config.control == "random" else _pretrained(origin, config)
    if config.control == "shuffled":
        _shuffle(model, config.control_seed)
    if config.device_map is None:
        model.to(runtime.device(config.device))  # pyright: ignore[reportArgumentType]
    suffix = "" if config.control == "none" else f" ({config.control}, seed {config.control_seed})"
    quicken(model)
    return wrap(model.eval(), tokenizer, config.model + suffix)


def configuration(config: ModelConfig) -> PretrainedConfig:
    """transformers' own configuration of a model; no weights are read.

    Raises:
        UserError: as :func:`load`.
    """
    origin = source(config)
    with quiet(), explained(config.model):
        return AutoConfig.from_pretrained(origin.name, **origin.options, trust_remote_code=False)


def n_layers(config: ModelConfig) -> int:
    """Number of blocks of the model that a configuration says; no weights are read.

    Raises:
        UserError: as :func:`load`.
    """
    return configuration(config).get_text_config().num_hidden_layers


def precision(config: ModelConfig) -> Precision:
    """What `auto` means for a model here, measured on the model itself, and for its controls the same.

    Raises:
        UserError: as :func:`load`, or the model does not fit into memory in fp32, with which bf16 is compared.
    """
    subject = dataclasses.replace(config, control="none", model_dtype="fp32")
    try:
        source(subject)
    except UserError:
        subject = dataclasses.replace(subject, control=config.control)  # `random` may have no weights
    parameters, where = _parameters(subject), runtime.device(config.device)
    if against := objection(parameters, where):
        chosen = Precision("fp32", against)
    else:
        free = runtime.free_memory(where)
        if config.device_map is None and 4 * parameters > free:
            raise UserError(
                f"model_dtype = 'auto' compares bf16 with fp32, in which {config.model!r} takes "
                f"{runtime.size(4 * parameters)}, and {runtime.size(free)} are free: choose model_dtype = 'bf16'"
            )
        chosen = compared(lambda dtype: load(dataclasses.replace(subject, model_dtype=dtype)))
    runtime.log.info("%s: %s", config.model, chosen)
    return chosen


def _parameters(config: ModelConfig) -> int:
    """How many a model has, by its configuration alone."""
    shape = configuration(config)
    with quiet(), explained(config.model), torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(shape, trust_remote_code=False).parameters())


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone of the model that a configuration says.

    Raises:
        UserError: as :func:`load`.
    """
    origin = source(config)
    with quiet(), explained(config.model):
        return AutoTokenizer.from_pretrained(origin.name, **origin.options, trust_remote_code=False)


def _pretrained(origin: Source, config: ModelConfig) -> PreTrainedModel:
    where: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        origin.name,
        **origin.options,
        dtype=_torch_dtype(config),
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below by name, where transformers would only say that there are some
        **where,
    )
    model, info = loaded
    require_all_weights(config.model, info)
    return model


def _torch_dtype(config: ModelConfig) -> torch.dtype:
    assert config.model_dtype != "auto", "settled before anything is loaded"
    return DTYPES[config.model_dtype]


def _initialised(config: ModelConfig) -> PreTrainedModel:
    shape = configuration(config)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed accelerators too; the weights are drawn on the CPU.
        torch.default_generator.manual_seed(config.control_seed)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=False)
    for parameter in model.parameters():  # rotary frequencies stay in float32, as in a model loaded from weights
        parameter.data = parameter.data.to(_torch_dtype(config))
    return model


@torch.no_grad()
def _shuffle(model: nn.Module, seed: int) -> None:
    """Permute each matrix elementwise, in order of name; ``named_parameters`` gives a tied one only once."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim >= 2:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
