"""GGUF files: models as llama.cpp and its kin have them on disk, mostly quantised.

transformers reads them and dequantises every weight. What rounding took of the model they were made from is gone: how
far the two are apart is not known here and never said.
"""

import importlib
import importlib.util
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from monolex.artifact import file_hash
from monolex.errors import UserError
from monolex.model.hugging_face import explained, quiet, require_all_weights
from monolex.runtime import log, require_disk

SUFFIX: Final = ".gguf"
_PACKAGES: Final = ("gguf", "accelerate")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_ENCODING: Final = re.compile(r"[.-](I?Q\d\w*|TQ\d\w*|B?F16|F32|MXFP4\w*)$", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether a path is called as GGUF files are; it need not exist."""
    return path.suffix.lower() == SUFFIX


def title(path: Path) -> str:
    """What pages call the model: the file's name, the encoding of its weights in brackets."""
    stem = path.name[: -len(SUFFIX)]
    encoding = _ENCODING.search(stem)
    return f"{stem[: encoding.start()]} ({encoding[1]})" if encoding else stem


def facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: SHA-256 of its bytes, their number, and how its tensors are encoded."""
    encodings = Counter(tensor.tensor_type.name for tensor in _tensors(path))
    return {"sha256": _sha256(path), "bytes": path.stat().st_size, "encodings": dict(encodings.most_common())}


def sentence(stored: dict[str, Any]) -> str:
    """What people are told of a model from such a file, by its :func:`facts`."""
    counts = ", ".join(f"{count} tensors {name}" for name, count in stored["encodings"].items())
    return (
        f"dequantised from GGUF ({counts}), SHA-256 {stored['sha256'][:12]}; how far that is from the weights before "
        "they were quantised is not known"
    )


def unpacked(path: Path) -> Path:
    """The folder, in the Hugging Face layout, that holds a file's model: every weight dequantised, exactly, in float32.

    It is made once, in `monolex` under HF_HOME, where models of the hub lie too: reading such a file takes Python ten
    seconds for 135 million parameters, and every stage loads the model. Its name is the SHA-256 of the file's bytes
    and the version of transformers, so that a changed file or reader has a folder of its own.

    Raises:
        UserError: there is no such file, it is none of its kind, damaged or a part of several, its architecture is not
            one that transformers reads from such files, a package is missing, or the disk is full.
    """
    path = path.absolute()
    _require_readable(path)
    folder = Path(constants.HF_HOME) / "monolex" / f"{_sha256(path)[:24]}-transformers-{transformers.__version__}"
    if not folder.is_dir():
        need = 4 * sum(int(tensor.n_elements) for tensor in _tensors(path))
        require_disk(folder, need, f"unpacking {path.name}", "set HF_HOME to a folder on a larger disk")
        log.info("unpacking %s, once, into %s", path.name, folder)
        partial_folder = folder.with_name(f"{folder.name}-{os.getpid()}")
        partial_folder.mkdir(parents=True, exist_ok=True)
        try:
            _unpack(path, partial_folder)
            _settle(partial_folder, folder)
        finally:
            shutil.rmtree(partial_folder, ignore_errors=True)
    return folder


def _require_readable(path: Path) -> None:
    said = f"model = {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{said}: there is no such file")
    if _PART.search(path.stem):
        raise UserError(f"{said} is one of several parts: merge them by llama.cpp's `gguf-split --merge` first")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{said} does not begin as a GGUF file does: it may be damaged, or of another kind")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{said}: reading GGUF files needs {' and '.join(missing)}: pip install 'monolex[gguf]'")


def _unpack(path: Path, folder: Path) -> None:
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    with quiet(), explained(str(path)), _without_bar():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **where,
        )
    model, info = loaded
    require_all_weights(str(path), info)
    # What is left of the quantisation names the file, and a model is no other for where it lay.
    del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    # A tied unembedding is the embedding under another name, which a file of tensors holds once.
    tied = set(model._tied_weights_keys or ()) if model.config.get_text_config().tie_word_embeddings else set()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _settle(finished: Path, folder: Path) -> None:
    """Give a finished folder its name; another process may have been first, and made the same."""
    try:
        finished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


@contextmanager
def _without_bar() -> Iterator[None]:
    """Inside, transformers shows no bar of its own for the second that dequantising takes; it has no flag for that."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    shown = reader.tqdm
    reader.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        reader.tqdm = shown


def _tensors(path: Path) -> list[Any]:
    """The tensors of a file, as the package reads them."""
    from gguf import GGUFReader

    with explained(str(path)):
        return GGUFReader(path).tensors


def _sha256(path: Path) -> str:
    """Of a file's bytes, read once as long as it stays as it is."""
    state = path.stat()
    return _hashed(path, state.st_size, state.st_mtime_ns)


@cache
def _hashed(path: Path, _bytes: int, _changed: int) -> str:
    return file_hash(path)
