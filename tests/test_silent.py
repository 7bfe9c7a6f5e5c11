"""Ways in which files and numbers could be silently wrong: each is put in, and a sentence has to say so.

Beside `tests/model/test_silent.py`, which does the same with models. A file that keeps its length and is neither a
shard in another's place, nor within the rows that are computed anew (the first and last of a split), nor a
dictionary's, is told by `monolex show --verify` alone, which hashes all of them. What nothing can tell: a tokenizer of
another model whose ids all exist, and a mean ablation by the mean of another site of the same width.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.tiny import ARCHITECTURES, tiny_hf
from helpers.tiny_harvests import corpus_of, store
from helpers.tiny_texts import make_tokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from monolex import artifact
from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import stored_model
from monolex.artifact import WARNINGS
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig, load
from monolex.dictionaries.listing import source_dictionaries
from monolex.errors import UserError
from monolex.evals import doubts
from monolex.model.hooks import watch
from monolex.model.load import wrap
from monolex.stats import Estimate

SITES = ("resid_post.0", "resid_post.2")
NAMES = ("topk", "batchtopk")


def saved_model(folder: Path, architecture: str = "gpt_neox") -> Path:
    tokenizer = make_tokenizer()
    tiny_hf(architecture, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stored(folder: Path, model: Path, corpus: CorpusConfig, **model_fields: Any) -> Path:
    config = ModelConfig(model=str(model), **{"device": "cpu", "model_dtype": "fp32", **model_fields})
    harvest(folder, config, corpus, HarvestConfig(sites=SITES, dtype="fp32"))
    return folder


def sweep(folder: Path, activations: Path) -> None:
    """A TopK and a BatchTopK dictionary at both sites."""
    files, members = {}, []
    for number, (site, kind) in enumerate((site, kind) for site in SITES for kind in NAMES):
        generator = torch.Generator().manual_seed(number)
        rows, back = torch.randn(2, 64, 32, generator=generator)
        zeros = {"b_enc": torch.zeros(64), "b_dec": torch.zeros(32), "centre": torch.zeros(32)}
        activation = {"topk": "topk", "batchtopk": "threshold"}[kind]
        config = DictionaryConfig(kind, activation, 32, 32, 64, k=4, threshold=0.5, site=site)
        entries = Dictionary(config, {"W_enc": rows, "W_dec": back, **zeros}).save(folder / site / kind)
        files |= {f"{site}/{kind}/{name}": entry for name, entry in entries.items()}
        members.append({"site": site, "path": f"{site}/{kind}", "fvu": 0.2})
    parents = {"activations": artifact.open_artifact(activations).content}
    artifact.finish(folder, "sweep", {}, parents, files, {"members": members})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `acts` and `sweep`; `other` holds activations of a random control at the same sites."""
    home = tmp_path_factory.mktemp("sound")
    model, corpus = saved_model(home / "model"), corpus_of(home)
    stored(home / "acts", model, corpus)
    stored(home / "other", model, corpus, control="random")
    sweep(home / "sweep", home / "acts")
    return home


class Fault(NamedTuple):
    says: str
    """What the sentence says."""
    use: Callable[[Path], object]
    """What is done then; without the fault it passes."""
    inject: Callable[[Path], object]
    """Puts it into a copy of what the fixture `sound` has."""


# What is done


def read(home: Path) -> None:
    for site in SITES:
        for split in ("train", "held_out"):
            reader = Reader(home / "acts", site, split)
            reader.read(0, len(reader))
            reader.tokens(0, len(reader))


def model_of(home: Path) -> None:
    stored_model(home / "acts", "cpu")


def listed(home: Path) -> None:
    source_dictionaries(home / "acts", [home / "sweep"])


def dictionaries(home: Path) -> None:
    for site in SITES:
        for name in NAMES:
            load(home / "sweep" / site / name)


# What goes wrong

ROWS = "rows/train-00000.safetensors"
FIRST, SECOND = (f"{site}/train-00000.safetensors" for site in SITES)


def replaced(source: str, target: str) -> Callable[[Path], object]:
    return lambda home: (
        shutil.copytree(home / source, home / target, dirs_exist_ok=True)
        if (home / source).is_dir()
        else shutil.copyfile(home / source, home / target)
    )


def tensors(path: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Other numbers in a file that says of itself what it said."""

    def inject(home: Path) -> None:
        with safe_open(home / path, framework="pt") as file:
            says, held = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        save_file({name: x.contiguous() for name, x in change(held).items()}, home / path, says)

    return inject


def text(path: str, old: str, new: str) -> Callable[[Path], None]:
    def inject(home: Path) -> None:
        before = (home / path).read_text()
        assert old in before
        (home / path).write_text(before.replace(old, new))

    return inject


def swapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "W_enc": weights["W_dec"], "W_dec": weights["W_enc"]}


TOPK, BATCHTOPK = (f"sweep/resid_post.0/{name}" for name in NAMES)
PUT = r"put in its place; delete its manifest and harvest again"
NOT_GIVEN = "are not what the model gives on their tokens"
PARTS = "has changed since both were saved together"
FAULTS = {
    "a shard of another site": Fault(
        rf"{FIRST} is the file '{SECOND}', {PUT}", read, replaced(f"acts/{SECOND}", f"acts/{FIRST}")
    ),
    "a shard of another model": Fault(
        rf"{FIRST} is of another harvest, {PUT}", read, replaced(f"other/{FIRST}", f"acts/{FIRST}")
    ),
    "a shard of another split": Fault(
        "bytes instead of", read, replaced(f"acts/{FIRST}", f"acts/{FIRST.replace('train', 'held_out')}")
    ),
    "rows of another harvest": Fault(
        rf"{ROWS} is of another harvest, {PUT}", read, replaced(f"other/{ROWS}", f"acts/{ROWS}")
    ),
    "activations shifted by one row": Fault(
        NOT_GIVEN, model_of, tensors(f"acts/{SECOND}", lambda x: {**x, "activations": x["activations"].roll(1, 0)})
    ),
    "tokens shifted by one row": Fault(
        NOT_GIVEN, model_of, tensors(f"acts/{ROWS}", lambda x: {**x, "tokens": x["tokens"].roll(1)})
    ),
    "positions shifted by one": Fault(
        NOT_GIVEN, model_of, tensors(f"acts/{ROWS}", lambda x: {**x, "positions": x["positions"].roll(1)})
    ),
    "activations that underflowed": Fault(
        NOT_GIVEN, model_of, tensors(f"acts/{FIRST}", lambda x: {**x, "activations": x["activations"] * 0})
    ),
    "activations in other units": Fault(
        NOT_GIVEN, model_of, tensors(f"acts/{FIRST}", lambda x: {**x, "activations": x["activations"] * 2})
    ),
    "a model trained on": Fault(
        "is no longer the one in",
        model_of,
        tensors("model/model.safetensors", lambda x: {name: weight * 1.01 for name, weight in x.items()}),
    ),
    "a TopK dictionary loaded as ReLU": Fault(
        PARTS, dictionaries, text(f"{TOPK}/config.json", '"activation": "topk"', '"activation": "relu"')
    ),
    "another k": Fault(PARTS, dictionaries, text(f"{TOPK}/config.json", '"k": 4', '"k": 5')),
    "another threshold": Fault(
        PARTS, dictionaries, text(f"{BATCHTOPK}/config.json", '"threshold": 0.5', '"threshold": 0.6')
    ),
    "decoder and encoder swapped": Fault(
        PARTS, dictionaries, tensors(f"{TOPK}/weights.safetensors", swapped)
    ),
    "weights of another dictionary": Fault(
        PARTS,
        dictionaries,
        replaced("sweep/resid_post.2/topk/weights.safetensors", f"{TOPK}/weights.safetensors"),
    ),
    "a dictionary of another site": Fault(
        "topk/config.json has changed since it was written", listed, replaced("sweep/resid_post.2/topk", TOPK)
    ),
    "a dictionary of another name": Fault(
        "bytes instead of|has changed since it was written", listed, replaced(BATCHTOPK, TOPK)
    ),
    "dictionaries of another model": Fault("was not made from", listed, replaced("other", "acts")),
    "pre-activations in bf16": Fault(
        "in which other features pass a threshold",
        lambda home: load(home / BATCHTOPK).to(torch.bfloat16 if (home / "bf16").exists() else torch.float64),
        lambda home: (home / "bf16").touch(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_files_is_said(name: str, sound: Path, tmp_path: Path) -> None:
    fault = FAULTS[name]
    home = tmp_path / "home"
    shutil.copytree(sound, home)
    manifest = json.loads((home / "acts" / "manifest.json").read_text())
    manifest["data"]["model"]["model_config"]["model"] = str(home / "model")  # it lies elsewhere in the copy
    (home / "acts" / "manifest.json").write_text(json.dumps(manifest))
    fault.inject(home)
    with pytest.raises(UserError, match=fault.says) as caught:
        fault.use(home)
    assert "\n" not in str(caught.value)


def test_nothing_is_said_of_sound_files(sound: Path) -> None:
    for use in {fault.use for fault in FAULTS.values()}:
        use(sound)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_sound_models_are_what_they_give(architecture: str, tmp_path: Path) -> None:
    """In bf16, in which batches of another size give other roundings."""
    model = saved_model(tmp_path / "model", architecture)
    stored(tmp_path / "acts", model, corpus_of(tmp_path, 12), model_dtype="bf16")
    model_of(tmp_path)


# A harvest of what is wrong


def test_a_hook_that_somebody_left_is_not_harvested(tmp_path: Path) -> None:
    lm = wrap(tiny_hf("gpt_neox", vocab_size=330), make_tokenizer(), "tiny")
    handle = watch(lm.place("mlp_out.1"), lambda x: x * 2)
    with pytest.raises(UserError, match="forward hooks on tiny change what it computes"):
        store(tmp_path / "acts", lm, corpus_of(tmp_path))
    handle.remove()
    watch(lm.place("mlp_out.1"), lambda x: x)
    store(tmp_path / "acts", lm, corpus_of(tmp_path))


def test_a_tokenizer_of_another_model_is_not_harvested(tmp_path: Path) -> None:
    lm = wrap(tiny_hf("gpt_neox"), make_tokenizer(), "tiny")
    with pytest.raises(UserError, match="has no row in the embedding of tiny"):
        store(tmp_path / "acts", lm, corpus_of(tmp_path))


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (1000.0, True)])
def test_a_sink_that_is_not_left_out_is_said(factor: float, said: bool, tmp_path: Path) -> None:
    hf: Any = tiny_hf("gpt2", vocab_size=330)
    with torch.no_grad():
        hf.transformer.wpe.weight[0] *= factor
    changes = {"max_norm": 0.0, "drop_bos": False, "sites": ("resid_post.0",)}
    manifest = store(tmp_path / "acts", wrap(hf, make_tokenizer(), "tiny"), corpus_of(tmp_path), **changes)
    assert said == any("of the squared norm" in sentence for sentence in manifest.data[WARNINGS])


# Numbers

NUMBERS = {
    "sound": ({"fvu": 0.21, "l0": 4.1, "dead": 0.1}, None),
    "FVU above 1": ({"fvu": 1.3, "l0": 4.1, "dead": 0.1}, "FVU 1.3 is above 1"),
    "held-out rows far from training": ({"fvu": 0.7, "l0": 4.1, "dead": 0.1}, "0.7 on held-out rows and 0.2 on"),
    "a TopK that acts as a ReLU": ({"fvu": 0.21, "l0": 31.0, "dead": 0.1}, "L0 is 31 where k = 4"),
    "mostly dead": ({"fvu": 0.21, "l0": 4.1, "dead": 0.9}, "90% of its features are never active"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_not_like_others_says_so(name: str, sound: Path) -> None:
    values, expected = NUMBERS[name]
    dictionary = next(d for d in source_dictionaries(sound / "acts", [sound / "sweep"]) if d.name == "topk")
    head = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name, "other": ""}
    rows = [{**head, "metric": metric, "value": value} for metric, value in values.items()]
    said = doubts.sentences([dictionary], rows)
    assert any(expected in sentence for sentence in said) if expected else not said
    marked = doubts.marked(Estimate(values["fvu"]))
    assert bool(marked.reason) == (values["fvu"] > 1)
