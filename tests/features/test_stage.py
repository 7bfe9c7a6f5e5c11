"""The stage: stores of a whole folder, picked up where it was killed, the same from disk and from the model."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_store import fake_codes, fake_store
from helpers.naive_features import Naive, check, everything
from helpers.tiny_harvests import contents, corpus_of, make_lm, store
from safetensors.torch import load_file

from monolex.activations.reader import Reader
from monolex.artifact import open_artifact, verify
from monolex.cli import main
from monolex.config import BaselineConfig, CorpusConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import Dictionary, load
from monolex.dictionaries.baselines import fit_folder
from monolex.errors import UserError
from monolex.features import stage
from monolex.features.stage import features, features_from
from monolex.features.store import FeatureStore
from monolex.show.files import show_feature
from monolex.show.path import show
from monolex.show.text import cell
from monolex.text.characters import alone
from monolex.text.rows import Rows
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

CONFIG = FeaturesConfig(fragment_tokens=8, coactive_rows=200, features_device="cpu")
LM = make_lm()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Activations of a tiny model with a sweep and baselines."""
    home = tmp_path_factory.mktemp("features")
    store(home / "activations", LM, corpus_of(home))
    sweep = TrainConfig(kinds=("tied", "topk"), alphas=(1e-3,), ks=(4,), ratios=(1.5,), steps=20, batch_size=32)
    train(home / "sweep", home / "activations", sweep)
    fit_folder(home / "baselines", home / "activations", BaselineConfig(kinds=("neurons", "pca"), fit_rows=500))
    return home


def packed(home: Path, split: str = "train") -> Rows:
    tensors = load_file(home / "activations" / "corpus.safetensors")
    return Rows(*(tensors[f"{split}.{name}"] for name in ("tokens", "docs", "keep")))


def gather(home: Path, out: Path, **changed: object):
    config = dataclasses.replace(CONFIG, **changed)  # pyright: ignore[reportArgumentType]
    return features(out, home / "activations", [home / "sweep", home / "baselines"], config, lm=LM)


def naive(home: Path, site: str, dictionary: Dictionary, config: FeaturesConfig) -> Naive:
    reader = Reader(home / "activations", site, config.split)
    n = len(reader)
    codes = dictionary.encode(reader.read(0, n))
    rows, positions = reader.contexts(0, n).tolist(), reader.positions(0, n).tolist()
    return Naive(packed(home, config.split), rows, positions, codes, config)


def test_every_dictionary_of_every_site_gets_a_store(made, tmp_path):
    manifest = gather(made, tmp_path / "out")
    stores = manifest.data["stores"]
    sites, names = {s["site"] for s in stores}, {s["name"] for s in stores}
    assert len(stores) == 3 * 4
    assert sites == {"resid_post.0", "mlp_act.1", "resid_post.2"}
    assert names == {"tied-a1e-3-r1.5-s0", "topk-k4-r1.5-s0", "neurons", "pca"}
    verify(tmp_path / "out")
    for one in stores:
        with_meta = FeatureStore(tmp_path / "out" / one["path"])
        meta = with_meta.meta
        assert one["alive"] == sum(s.n_active > 0 for s in with_meta.summaries())
        assert (meta["site"], meta["name"], meta["rows"]) == (one["site"], one["name"], one["rows"])
        assert meta["fingerprint"] == LM.fingerprint
        assert meta["activations"] == open_artifact(made / "activations").content
        found = load((tmp_path / "out" / one["path"]).parent / meta["dictionary"])
        assert (found.d_sae, found.config.kind) == (one["d_sae"], one["kind"])
        assert bool(meta["direct_reason"]) is False


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_stores_hold_what_dense_codes_say(made, tmp_path, split):
    config = dataclasses.replace(CONFIG, split=split)
    manifest = gather(made, tmp_path / "out", split=split)
    for one in manifest.data["stores"]:
        found = FeatureStore(tmp_path / "out" / one["path"])
        dictionary = load((tmp_path / "out" / one["path"]).parent / found.meta["dictionary"])
        reference = naive(made, one["site"], dictionary, config)
        for feature in range(0, len(found), 9):
            check(found, reference, feature)


def test_a_second_time_nothing_is_done_and_another_request_replaces(made, tmp_path):
    first = gather(made, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert gather(made, tmp_path / "out") == first
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    assert gather(made, tmp_path / "out", memory_mb=64) == first
    assert gather(made, tmp_path / "out", top=2).content != first.content


def test_a_killed_stage_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    gather(made, tmp_path / "whole")
    done, old = [], stage._site

    def dies(work, chosen, listed, job):
        if len(done) == 1:
            (work.folder / f"{stage.SPILL}left").mkdir()
            raise KeyboardInterrupt
        done.append(job.source.site)
        return old(work, chosen, listed, job)

    monkeypatch.setattr(stage, "_site", dies)
    with pytest.raises(KeyboardInterrupt):
        gather(made, tmp_path / "parts")
    with pytest.raises(UserError, match="unfinished features "):
        show(tmp_path / "parts")
    left = []
    monkeypatch.setattr(stage, "_site", lambda *given: (left.append(given[-1].source.site), old(*given))[1])
    gather(made, tmp_path / "parts")
    assert len(left) == 2 and not set(left) & set(done)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_death_between_the_last_store_and_the_manifest_gathers_nothing_again(made, tmp_path, monkeypatch):
    """An older answer lies there too; it must not pass for one whose stores are half replaced."""
    few = {"sites": ("resid_post.0",), "dictionaries": ("topk-*", "pca")}
    gather(made, tmp_path / "whole", **few)
    gather(made, tmp_path / "out", **few, top=2)
    real = os.replace

    def dies(source, target):
        if Path(target) == tmp_path / "out" / "manifest.json":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", dies)
        gather(made, tmp_path / "out", **few)
    with pytest.raises(UserError, match="no finished"):
        open_artifact(tmp_path / "out")
    monkeypatch.setattr(stage, "_site", lambda *_: pytest.fail("a site is gathered again"))
    gather(made, tmp_path / "out", **few)
    assert verify(tmp_path / "out").content == open_artifact(tmp_path / "whole").content
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("site", ["resid_post.2", "mlp_act.1"])
def test_the_model_itself_gives_what_the_disk_gives(made, tmp_path, site):
    gather(made, tmp_path / "disk", sites=(site,), dictionaries=("topk-*",))
    name = "topk-k4-r1.5-s0"
    dictionary = load(made / "sweep" / site / name)
    paths = features_from(tmp_path / "model", LM, packed(made), {name: dictionary}, CONFIG)
    there = FeatureStore(paths[name])
    assert everything(there) == everything(FeatureStore(tmp_path / "disk" / site / f"{name}.sqlite"))
    assert there.meta["dictionary"] is None


def test_rows_of_the_model_can_be_cut_short(made, tmp_path):
    config = dataclasses.replace(CONFIG, feature_rows=37)
    dictionary = load(made / "baselines" / "resid_post.0" / "neurons")
    paths = features_from(tmp_path / "model", LM, packed(made), {"neurons": dictionary}, config)
    gather(made, tmp_path / "disk", sites=("resid_post.0",), dictionaries=("neurons",), feature_rows=37)
    assert everything(FeatureStore(paths["neurons"])) == everything(
        FeatureStore(tmp_path / "disk" / "resid_post.0" / "neurons.sqlite")
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dictionaries": ("topk-*", "batch*")}, r"dictionaries holds 'batch\*', which matches none of tied-a1e-3"),
        ({"sites": ("resid_post.1",)}, "holds no site 'resid_post.1'; it holds resid_post.0"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(made, tmp_path, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        gather(made, tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_dictionaries_of_two_sites_are_refused(made, tmp_path):
    two = {site: load(made / "baselines" / site / "neurons") for site in ("resid_post.0", "resid_post.2")}
    with pytest.raises(UserError, match="dictionaries of 2 sites"):
        features_from(tmp_path, LM, packed(made), two, CONFIG)


def test_the_command_line_gathers_and_shows(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stage, "stored_model", lambda *_: LM)
    out = str(tmp_path / "out")
    given = [str(made / "activations"), out, str(made / "sweep")]
    assert main(["features", *given, "--dictionaries", "topk-*", "--sites", "resid_post.0"]) == 0
    capsys.readouterr()
    assert main(["show", out]) == 0
    assert "1 stores of evidence" in capsys.readouterr().out
    path = str(tmp_path / "out" / "resid_post.0" / "topk-k4-r1.5-s0.sqlite")
    assert main(["show", path]) == 0
    said = capsys.readouterr().out
    assert "top_share" in said and 'site  "resid_post.0"' in said
    assert main(["features", *given, "--dictionaries", "none"]) == 2
    assert main(["show", str(made / "sweep" / "metrics.sqlite")]) == 2


def test_the_demo_model_is_read_right(tmp_path):
    corpus = CorpusConfig(max_tokens=8_000, document_tokens=256, held_out=0.1)
    harvest_config = HarvestConfig(sites=("resid_post.3",))
    from monolex.activations.harvest import harvest

    harvest(tmp_path / "activations", ModelConfig(device="cpu"), corpus, harvest_config)
    sweep = TrainConfig(kinds=("batchtopk",), ks=(16,), ratios=(2.0,), steps=40, batch_size=256, preset="modern")
    train(tmp_path / "sweep", tmp_path / "activations", sweep)
    config = FeaturesConfig(coactive_rows=300, features_device="cpu")
    manifest = features(tmp_path / "out", tmp_path / "activations", [tmp_path / "sweep"], config)
    (one,) = manifest.data["stores"]
    found = FeatureStore(tmp_path / "out" / one["path"])
    dictionary = load(next((tmp_path / "sweep" / "resid_post.3").iterdir()))
    reference = naive(tmp_path, "resid_post.3", dictionary, config)
    for feature in torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:50].tolist():
        check(found, reference, feature)
    # what a page draws sums up
    evidence = next(found.feature(s.id) for s in found.summaries("n_active > 50"))
    assert evidence.token_histogram.sum() == evidence.summary.n_active
    assert all((t.histogram <= evidence.token_histogram).all() for t in evidence.tokens)
    said = json.dumps(found.meta)
    assert "demo" in said and str(Path.home()) not in said.replace(str(tmp_path), "")


def test_show_prints_one_feature(tmp_path):
    found = fake_store(tmp_path / "site" / "one.sqlite")
    alive = next(s.id for s in found.summaries("n_active > 0"))
    text = show_feature(tmp_path / "site" / "one.sqlite", alive)
    evidence = found.feature(alive)
    assert f"n_active  {evidence.summary.n_active}" in text and f"{evidence.tokens[0].share:.1%}" in text
    assert text.count("\ntop  ") == len(evidence.examples["top"]) and "«" in text
    with pytest.raises(UserError, match="has features 0 to"):
        show_feature(tmp_path / "site" / "one.sqlite", len(found))


def test_show_prints_the_negative_side(tmp_path):
    codes, tokens = fake_codes()
    codes[::7] *= -1
    found = fake_store(tmp_path / "site" / "pca.sqlite", codes, tokens)
    text, evidence = show_feature(tmp_path / "site" / "pca.sqlite", 2), found.feature(2)
    lines = re.findall(r"^negative  (\S+)  (.*)$", text, re.M)
    below = evidence.examples["negative"]
    assert [peak for peak, _ in lines] == [f"{min(c.activations):.4g}" for c in below] and len(below) > 5
    marked = [json.loads(line) for _, line in lines]
    for context, line in zip(below, marked, strict=True):
        strongest = context.texts[int(np.argmin(context.activations))]
        assert f"«{strongest}»" in line and line.count("«") == 1
    assert f"\nmin  {cell(evidence.summary.min)}\n" in text


def test_show_prints_characters_whole_and_parts_of_them_as_bytes(tmp_path):
    texts = tuple(alone(bytes([byte])) for byte in "京".encode())
    tokens = np.tile(np.arange(3, dtype=np.int32), 32)
    codes = np.where(tokens == 2, np.linspace(1, 2, 96), 0)[:, None].astype(np.float32)
    fake_store(tmp_path / "site" / "cut.sqlite", codes, tokens, texts, fragment=32).close()
    text = show_feature(tmp_path / "site" / "cut.sqlite", 0)
    assert r'on  "\xac" 100.0%' in text
    # fragments of 32 tokens begin or end within a character
    top = re.findall(r"^top  \S+  (.*)$", text, re.M)
    assert json.loads(top[0]) == r"\xba\xac" + "京" * 9 + "«京»"


def test_a_damaged_page_of_a_store_is_named(tmp_path):
    found = fake_store(tmp_path / "site" / "one.sqlite")
    found.close()
    path = tmp_path / "site" / "one.sqlite"
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        FeatureStore(path).feature(0)
