"""A harvest that stores a sample: training reads all rows through the model, and everything else what is stored."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.model_folder import tiny_folder
from helpers.tiny_harvests import corpus_of, make_lm, store

from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import held_out_rows, packed_rows, training_rows
from monolex.artifact import open_artifact
from monolex.cli import main
from monolex.config import HarvestConfig, ModelConfig
from monolex.dictionaries.base import load
from monolex.train_config import TrainConfig
from monolex.training.data import stored_source
from monolex.training.trainer import train

SITE = "resid_post.0"
SWEEP = TrainConfig(
    sites=(SITE,),
    kinds=("topk",),
    ks=(4,),
    ratios=(2.0,),
    batch_size=32,
    buffer_rows=96,
    train_device="cpu",
    lrs=(1e-2,),
)


@pytest.fixture(scope="module")
def harvests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one model and text: everything stored, and a sample."""
    home = tmp_path_factory.mktemp("streamed")
    model = ModelConfig(model=str(tiny_folder(home / "model")), device="cpu")
    corpus = corpus_of(home, 200)
    for name, stored in (("all", True), ("some", False)):
        config = HarvestConfig(sites=(SITE, "mlp_out.1"), dtype="fp32", max_norm=0, store=stored, sample_tokens=100)
        harvest(home / name, model, corpus, config)
    return home / "all", home / "some"


def test_a_sample_is_stored_and_all_tokens_are_kept(harvests):
    everything, some = harvests
    stored, whole = packed_rows(some, "train"), packed_rows(everything, "train")
    assert len(stored) == 7 and stored.tokens.numel() >= 100 > 6 * 16
    # evenly spread
    first = [int((whole.tokens == row).all(1).nonzero()[0]) for row in stored.tokens]
    assert first == sorted(first) and first[-1] > 0.8 * len(whole)
    rows = training_rows(some)
    assert sorted(map(tuple, rows.tokens.tolist())) == sorted(map(tuple, whole.tokens.tolist()))
    facts = open_artifact(some).data
    assert facts["rows"]["train"] == Reader(some, SITE).n_rows < Reader(everything, SITE).n_rows
    assert (
        facts["streamed"] + int(stored.keep.sum()) == int(whole.keep.sum())
        and open_artifact(everything).data["streamed"] == 0
    )
    assert torch.equal(held_out_rows(some, 99).tokens, held_out_rows(everything, 99).tokens)


def counted(rows: torch.Tensor) -> Counter[tuple[float, ...]]:
    """How often every row is there, but for rounding."""
    return Counter(map(tuple, (rows[:, :8] * 100).round().tolist()))


def test_training_sees_every_row_of_the_model_once_an_epoch(harvests):
    everything, some = harvests
    whole = Reader(everything, SITE)
    source = stored_source(some, SWEEP)
    assert source.stream.steps_per_epoch == len(whole) // 32
    # what is usual is that of the sample
    assert source.usual[SITE].norm == Reader(some, SITE).median_norm
    served = torch.cat(
        [batch[SITE] for batch, _ in zip(source.stream.batches(), range(len(whole) // 32), strict=False)]
    )
    assert len(served) == len(whole) // 32 * 32
    assert not counted(served) - counted(whole.read(0, len(whole)))


def test_a_sweep_through_the_model_resumes_to_the_same_bytes(harvests, tmp_path, monkeypatch):
    _, some = harvests
    made = replace(SWEEP, epochs=0.5, save_every=2)
    manifest = train(tmp_path / "whole", some, made)
    assert manifest.data["steps"] >= 5 and manifest.parents == {"activations": open_artifact(some).content}

    from monolex.training.sweep import Trainer

    original, count = Trainer.step, []

    def dies(self, batch):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        original(self, batch)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", some, made)
    monkeypatch.setattr(Trainer, "step", original)
    train(tmp_path / "again", some, made)
    name = Path(SITE) / "topk-k4-r2-s0"
    ours, theirs = (load(tmp_path / folder / name).weights for folder in ("whole", "again"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_sample_as_large_as_the_text_is_all_of_it(tmp_path):
    lm = make_lm()
    manifest = store(tmp_path / "acts", lm, corpus_of(tmp_path), store=False)
    assert manifest.data["streamed"] == 0
    assert len(training_rows(tmp_path / "acts")) == len(packed_rows(tmp_path / "acts", "train"))


def test_a_run_without_a_store(tmp_path, capsys):
    folder, text = tiny_folder(tmp_path / "model"), corpus_of(tmp_path, 120).corpus
    (tmp_path / "run.toml").write_text(f"""
[model]
model = "{folder}"
[corpus]
corpus = "{text}"
context_length = 16
held_out = 0.2
[harvest]
sites = ["resid_post.0", "mlp_in.1", "mlp_out.1"]
store = false
sample_tokens = 200
[train.first]
sites = ["resid_post.0"]
kinds = ["batchtopk", "jumprelu"]
ks = [4]
ratios = [2.0]
batch_size = 32
buffer_rows = 64
[train.across]
sites = ["mlp_in.1"]
target = "mlp_out"
kinds = ["topk"]
ks = [4]
ratios = [2.0]
batch_size = 32
buffer_rows = 64
[train.plain]
sites = ["mlp_in.1"]
kinds = ["jumprelu"]
ks = [4]
ratios = [2.0]
batch_size = 32
buffer_rows = 64
[baselines.plain]
kinds = ["pca"]
[controls]
models = ["random"]
[controls.train.across]
sites = ["mlp_in.1"]
target = "mlp_out"
kinds = ["topk"]
ks = [4]
ratios = [1.0]
batch_size = 32
buffer_rows = 64
[eval]
rows = 50
contexts = 2
[features]
fragment_tokens = 4
coactive_rows = 64
""")
    assert main(["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert main(["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 0
    wrong = (tmp_path / "run.toml").read_text().replace('target = "mlp_out"', 'target = "mlp_outt"')
    (tmp_path / "wrong.toml").write_text(wrong)
    assert main(["run", str(tmp_path / "wrong.toml"), "--out", str(tmp_path / "other"), "--dry-run"]) == 2
    assert "[harvest] sites holds no mlp_outt.1; add it there" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["show", str(tmp_path / "run" / "activations")]) == 0
    assert "training reads" in capsys.readouterr().out
    sweep = open_artifact(tmp_path / "run" / "train" / "across").data
    page = (tmp_path / "run" / "report.html").read_text()
    equal = page[page.index("Dictionaries at equal L0") :]
    for group in equal[: equal.index("</table>")].split('class="group"')[1:]:
        assert ("mlp_in.1 to mlp_out.1, L0" in group) == ("-to-mlp_out.1<" in group), group
    stored = open_artifact(tmp_path / "run" / "activations").data
    assert sweep["rows"] > 3 * stored["rows"]["train"]
    said = f"{stored['rows']['train']:,} activations and those of {stored['streamed']:,} more tokens (not stored) over"
    assert said in page, "of a sample alone no dictionary is made"
