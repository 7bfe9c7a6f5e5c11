"""What `auto` makes of a model's precision: by rules, measured, recorded, and the same for all that is made of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.model_folder import tiny_folder
from helpers.tiny_texts import sentence, write_jsonl

from monolex.activations.harvest import harvest
from monolex.activations.stored import settled, stored_model
from monolex.artifact import open_artifact
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.errors import UserError
from monolex.model import load as loading
from monolex.model import precision
from monolex.model.load import load
from monolex.model.precision import MOST_KL, Precision, decided, divergence, lacking, objection
from monolex.show.path import show

CPU = torch.device("cpu")
PRINTS = ("of-fp32", "of-bf16")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU has bf16, tiny models are worth it, and the clock has no say."""
    monkeypatch.setattr(precision, "_native_cpu", lambda: True)
    monkeypatch.setattr(precision, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 0.0)


@pytest.fixture
def auto(tmp_path: Path) -> ModelConfig:
    return ModelConfig(model=str(tiny_folder(tmp_path / "model", "llama")), device="cpu")


def test_the_demo_stays_as_it_was_wherever_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_native_cpu", lambda: True)
    fp32 = ModelConfig(device="cpu", model_dtype="fp32")
    assert load(ModelConfig(device="cpu")).fingerprint == load(fp32).fingerprint
    for where in ("cpu", "cuda", "mps"):
        assert "4,242,432 parameters" in objection(4_242_432, torch.device(where))


def test_native_is_what_the_processor_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for text, has in (
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 gfni\nbugs\t: x\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        flags = precision._cpu_flags(tmp_path / "cpuinfo")
        monkeypatch.setattr(precision, "_cpu_flags", lambda flags=flags: flags)
        assert precision._native_cpu() is has, text
        assert bool(lacking(CPU)) is not has
        monkeypatch.undo()
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx2": False, "name": "x"}, False)
    assert precision._cpu_flags(tmp_path / "no such file") == {"avx512_bf16"}
    monkeypatch.setattr(precision, "_cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not precision._native_cpu(), "a torch that does not use what there is"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision._native_cpu()


def test_accelerators_have_it_from_a_capability_on_or_are_asked_for_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, hip, has in (
        ((8, 0), None, True),
        ((7, 5), None, False),
        ((9, 0), None, True),
        ((7, 0), "6", True),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert bool(lacking(torch.device("cuda"))) is not has
    assert 'model_dtype = "bf16"' in lacking(torch.device("mps"))


def test_the_choice_follows_the_divergence_and_on_a_cpu_the_clock() -> None:
    assert decided(MOST_KL, 2.0, cpu=True, fingerprints=PRINTS)[::4] == ("bf16", "of-bf16")
    assert decided(MOST_KL * 1.01, 9.0, cpu=True, fingerprints=PRINTS)[::4] == ("fp32", "of-fp32")
    assert decided(float("nan"), 9.0, cpu=False, fingerprints=PRINTS).dtype == "fp32"
    slow = decided(0.001, 1.1, cpu=True, fingerprints=PRINTS)
    assert slow.dtype == "fp32" and "1.1 times as fast" in slow.reason
    assert decided(0.001, 1.1, cpu=False, fingerprints=PRINTS).dtype == "bf16"
    assert "KL 0.0010 nats" in str(decided(0.001, 3.0, cpu=True, fingerprints=PRINTS))


def test_divergence_is_the_kl_of_the_first_to_the_second() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    expected = (0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()).item() / 2
    assert divergence(p.log(), q.log()) == pytest.approx(expected, rel=1e-6)
    assert divergence(p.log(), p.log()) == 0


def test_what_is_measured_decides_and_controls_follow(native: None, auto: ModelConfig, monkeypatch) -> None:
    chosen = loading.precision(auto)
    assert chosen.dtype == "bf16" and chosen.kl and 1e-8 < chosen.kl < MOST_KL and chosen.speedup
    lm = load(auto)
    assert lm.dtype == torch.bfloat16 and chosen.fingerprint == lm.fingerprint
    for control in ("random", "shuffled"):
        assert loading.precision(replace(auto, control=control)).kl == chosen.kl
    monkeypatch.setattr(precision, "MOST_KL", chosen.kl / 2)
    assert load(auto).dtype == torch.float32
    monkeypatch.setattr(precision, "_native_cpu", lambda: False)
    assert "no bf16 of its own" in loading.precision(auto).reason


def test_a_random_control_without_weights_is_measured_itself(native: None, auto: ModelConfig) -> None:
    (Path(auto.model) / "model.safetensors").unlink()
    assert loading.precision(replace(auto, control="random")).kl is not None


def test_a_model_that_does_not_fit_in_fp32_is_refused(native: None, auto: ModelConfig, monkeypatch) -> None:
    monkeypatch.setattr("monolex.runtime.free_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"compares bf16 with fp32.*1 kB are free: choose model_dtype = 'bf16'"):
        load(auto)
    assert load(replace(auto, model_dtype="bf16")).dtype == torch.bfloat16


def test_a_model_that_is_refused_in_bf16_stays_in_fp32(native: None, auto: ModelConfig, monkeypatch) -> None:
    verify = loading.verify

    def refuses(lm):
        if lm.dtype == torch.bfloat16:
            raise UserError("it does not add up")
        verify(lm)

    monkeypatch.setattr(loading, "verify", refuses)
    assert loading.precision(auto)[:2] == ("fp32", "in bf16 it is refused: it does not add up")


def test_activations_keep_what_was_chosen_and_say_it(native: None, auto: ModelConfig, tmp_path, monkeypatch) -> None:
    corpus = CorpusConfig(str(write_jsonl(tmp_path / "c.jsonl", list(map(sentence, range(30))))), context_length=16)
    config = HarvestConfig(sites=("resid_post.1",))
    manifest = harvest(tmp_path / "acts", auto, corpus, config)
    facts = manifest.data["model"]
    assert manifest.config["model_dtype"] == facts["model_config"]["model_dtype"] == "bf16"
    assert facts["precision"]["kl"] == loading.precision(auto).kl
    assert f"bf16, chosen: KL {facts['precision']['kl']:.4f} nats" in show(tmp_path / "acts")
    # a machine without bf16 goes on with what there is, and so does every stage that loads the model again
    monkeypatch.setattr(precision, "_native_cpu", lambda: False)
    model, chosen = settled(auto, tmp_path / "acts")
    assert model.model_dtype == "bf16" and chosen == Precision(**facts["precision"])
    assert stored_model(tmp_path / "acts", "cpu").dtype == torch.bfloat16
    assert harvest(tmp_path / "acts", auto, corpus, config).content == manifest.content
    assert settled(auto, tmp_path / "elsewhere")[0].model_dtype == "fp32"
    assert settled(replace(auto, model="demo"), tmp_path / "acts")[0].model_dtype == "fp32", "another model"
    # an explicit precision is another request, for which nothing was chosen
    explicit = harvest(tmp_path / "acts", replace(auto, model_dtype="fp32"), corpus, config)
    assert explicit.data["model"]["precision"] is None and "chosen" not in show(tmp_path / "acts")
    assert settled(auto, tmp_path / "acts")[0].model_dtype == "fp32"


def test_other_weights_are_not_what_was_measured(native: None, auto: ModelConfig, tmp_path) -> None:
    corpus = CorpusConfig(str(write_jsonl(tmp_path / "c.jsonl", list(map(sentence, range(30))))), context_length=16)
    config = HarvestConfig(sites=("resid_post.1",))
    harvest(tmp_path / "acts", auto, corpus, config)
    lm = load(replace(auto, model_dtype="fp32"))
    lm.embedding.add_(1)
    lm.hf.save_pretrained(auto.model)
    with pytest.raises(UserError, match=r"other weights than those for which .* chose bf16: set model_dtype = 'bf16'"):
        harvest(tmp_path / "acts", auto, corpus, config)
    harvest(tmp_path / "acts", replace(auto, model_dtype="bf16"), corpus, config)
    assert open_artifact(tmp_path / "acts").data["model"]["precision"] is None
