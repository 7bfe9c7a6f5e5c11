"""Where a model's files are: a folder that has all that loading needs, a GGUF file, or a name on the hub."""

from pathlib import Path
from typing import Any, Final, NamedTuple

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.model.gguf import is_gguf, unpacked

DEMO: Final = Path(__file__).parents[1] / "demo" / "model"
"""The bundled model: see its README for what it was trained on."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def is_demo(folder: str | None) -> bool:
    """Whether a model's name or folder, if it has one, is the bundled model's."""
    return bool(folder) and (folder == "demo" or Path(folder).expanduser().resolve() == DEMO.resolve())


class Source(NamedTuple):
    """What transformers' `from_pretrained` is told of where a model is."""

    name: str
    """A folder, or a name on the hub."""
    options: dict[str, Any]
    """Which revision there."""


def source(config: ModelConfig) -> Source:
    """The folder or hub name to load from; of a GGUF file the folder it is unpacked into.

    Raises:
        UserError: a folder or file that is not there, lacks what loading needs, or is given a revision; a name that is
            neither in the hub's cache nor known to the hub.
    """
    folder = DEMO if config.model == "demo" else Path(config.model).expanduser()
    if is_gguf(folder):
        _require_no_revision(config, "a file")
        return Source(str(unpacked(folder)), {})
    if not folder.is_dir():
        if config.model == "demo" or config.model.startswith((".", "/", "~")):
            raise UserError(f"model = {config.model!r}: there is no folder {folder}")
        _require_reachable(config)
        return Source(config.model, {"revision": config.revision})
    _require_no_revision(config, "a folder")
    _require_file(folder, ("config.json",), "configuration")
    _require_file(folder, _TOKENIZER_FILES, "tokenizer")
    if config.control != "random":
        _require_file(folder, _WEIGHT_FILES, "safetensors weights")
    return Source(str(folder), {})


def _require_no_revision(config: ModelConfig, what: str) -> None:
    if config.revision is not None:
        raise UserError(f"revision = {config.revision!r}: {config.model} is {what}; only hub models have revisions")


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
