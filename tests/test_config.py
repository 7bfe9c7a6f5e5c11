import dataclasses
from pathlib import Path

import pytest

from monolex.config import (
    BaselineConfig,
    CorpusConfig,
    EvalConfig,
    FeaturesConfig,
    HarvestConfig,
    ModelConfig,
    identity,
    located,
)
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.run_toml import RunConfig, read_run, run_config
from monolex.tables import from_table
from monolex.train_config import TrainConfig

CONFIGS = (ModelConfig, CorpusConfig, HarvestConfig, TrainConfig, BaselineConfig, EvalConfig, FeaturesConfig)


def test_lists_become_tuples_and_integers_floats():
    config = from_table(TrainConfig, {"alphas": [0, 1e-3], "seeds": [1, 2], "epochs": 2}, "[train]")
    assert config.alphas == (0.0, 1e-3) and isinstance(config.alphas[0], float)
    assert config.seeds == (1, 2)
    assert config.epochs == 2.0


def test_a_config_survives_its_own_table():
    config = TrainConfig(sites=("resid_post.1",), alphas=(0.0,), lrs=(1e-3,), steps=5, init="x")
    assert from_table(TrainConfig, dataclasses.asdict(config), "x") == config


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"alpha": [1e-3]}, r"unknown key 'alpha'; did you mean 'alphas'\?"),
        ({"zzz": 1}, "unknown key 'zzz'; known keys: sites"),
        ({"alphas": 1e-3}, "write a list"),
        ({"batch_size": "many"}, "expected int, got str"),
        ({"batch_size": True}, "expected int, got bool"),
        ({"preset": "best"}, "choose one of paper, paper-effective, modern"),
        ({"alphas": [-1e-3]}, "cannot be negative"),
        ({"ks": [0]}, "at least one feature"),
        ({"ratios": []}, "ratios is empty"),
        (
            {"kinds": ["untied"], "auxk": 0.1},
            "auxk = 0.1 acts on topk, batchtopk, matryoshka, jumprelu, matching-pursuit, lista, frozen-decoder only",
        ),
        (
            {"kinds": ["untied"], "decoder_rate": 2.0},
            "acts on topk, batchtopk, matryoshka, jumprelu, gated, lista only",
        ),
        (
            {"kinds": ["topk"], "decoder_rate": 0.0},
            "decoder_rate = 0.0: a multiple of the learning",
        ),
        ({"kinds": ["frozen-encoder", "tied"], "preset": "modern", "decoder_rate": 2.0}, "gated, p-anneal, lista only"),
        ({"kinds": ["tied", "topk"], "p_end": 0.5}, "p_end = 0.5 acts on p-anneal only, and kinds holds none"),
        ({"kinds": ["topk"], "anneal": 0.5}, "anneal = 0.5 acts on p-anneal only"),
        ({"kinds": ["batchtopk"], "prefixes": [0.5, 1.0]}, "acts on matryoshka only"),
        ({"kinds": ["tied"], "k_start": 64}, "k_start = 64 acts on topk, batchtopk, matryoshka, jumprelu, matching-"),
        ({"data_ranks": 3}, "batch_size = 1024 cannot be shared evenly by data_ranks = 3; change either"),
        ({"dead_after": 0}, "dead_after = 0: give at least 1"),
        ({"warmup": 2}, r"fraction in \[0, 1\]"),
    ],
)
def test_a_wrong_table_is_one_sentence(table, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        from_table(TrainConfig, table, "[train.residual]")
    assert "\n" not in str(caught.value)


def test_paths_are_written_in_full_however_they_are_spelled(tmp_path, monkeypatch):
    (tmp_path / "mm").mkdir()
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "text.jsonl").symlink_to(tmp_path / "blob")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelled in ("mm", "./mm", "mm/../mm/", "~/mm", str(tmp_path / "mm")):
        assert located(ModelConfig(model=spelled)).model == str(tmp_path / "mm")
        assert from_table(ModelConfig, {"model": spelled}, "[model]").model == str(tmp_path / "mm")
        assert from_table(TrainConfig, {"init": spelled}, "[train]").init == str(tmp_path / "mm")
    assert located(CorpusConfig(corpus="text.jsonl")).corpus == str(tmp_path / "text.jsonl")


def test_names_are_left_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "stdlib").mkdir()
    monkeypatch.chdir(tmp_path)
    for config in (ModelConfig(), ModelConfig(model="gpt2"), CorpusConfig(), CorpusConfig(corpus="hf:some/data")):
        assert located(config) == config
    assert located(TrainConfig()) == TrainConfig()


def test_how_fields_are_not_part_of_the_identity():
    assert "device" not in identity(ModelConfig(device="cpu"))
    assert identity(HarvestConfig(sites=("resid_post.0",), batch_rows=2)) == identity(
        HarvestConfig(sites=("resid_post.0",), batch_rows=4)
    )
    assert identity(TrainConfig(seeds=(1,))) != identity(TrainConfig(seeds=(2,)))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_help(config):
    import inspect

    source = inspect.getsource(config)
    for field in dataclasses.fields(config):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1].lstrip()
        assert after.startswith('"""'), f"{config.__name__}.{field.name} has no help string under it"


@pytest.mark.parametrize(
    ("text", "kept"),
    [(":", range(8)), ("1:", range(1, 8)), (":4", range(4)), ("-2:", range(6, 8)), ("::2", range(0, 8, 2))],
)
def test_positions_are_a_python_slice(text, kept):
    assert CorpusConfig(context_length=8, positions=text).position_slice() == kept


@pytest.mark.parametrize("text", ["", "3", "a:b", "8:", "::0", "1:2:3:4"])
def test_a_slice_that_is_none_or_keeps_nothing_is_refused(text):
    with pytest.raises(UserError, match="positions"):
        CorpusConfig(context_length=8, positions=text)


RUN = {"model": {}, "corpus": {}, "harvest": {"sites": ["resid_post.0"]}, "train": {}}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tree": {"x": {}}}, r"\[tree.x\] needs features, a list of SITE/NAME:NUMBER"),
        ({"train": {"a b": {}}}, r"\[train\] holds 'a b'; write named tables, such as \[train.residual\]"),
        ({"controls": {"models": ["zeros"]}}, r"\[controls\] models holds 'zeros'; choose from "),
        ({"corpus": {"held_out": 0.0}}, r"\[corpus\] held_out = 0 leaves nothing to evaluate on"),
        ({"score": {"x": {"explanations": "y"}}}, r"\[score.x\] explanations = 'y': name one of the tables"),
        ({"nothing": {}}, "unknown entry 'nothing'; a run has the tables model, corpus, "),
        ({"train": 3}, "unknown entry 'train'"),
    ],
)
def test_tables_that_do_not_agree_are_refused_by_name(changed, sentence):
    assert run_config(RUN, Path("run.toml")).tables["train"]
    with pytest.raises(UserError, match=sentence) as refused:
        run_config({**RUN, **changed}, Path("run.toml"))
    assert "\n" not in str(refused.value)


ASKING = {"explainers": ("openai",), "llm": "m", "base_url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("cls", "given", "sentence"),
    [
        (ExplainConfig, {"llm": "m"}, "llm = 'm': nothing here asks a language model; leave it out"),
        (ExplainConfig, {"temperature": 0.5}, "temperature = 0.5: nothing here asks"),
        (ExplainConfig, {"llm_dtype": "bf16"}, "llm_dtype = 'bf16' without llm"),
        (ExplainConfig, {**ASKING, "llm_dtype": "bf16"}, "llm_dtype = 'bf16': the endpoint"),
        (ExplainConfig, {**ASKING, "temperature": -1.0}, "temperature = -1.0: give 0 or more"),
        (ScoreConfig, {"llm": "m"}, "llm = 'm': nothing here asks a language model; leave it out"),
        (ScoreConfig, {"llm_dtype": "bf16"}, "llm_dtype = 'bf16' without llm"),
        (ScoreConfig, {"simulator": "json"}, "llm is empty"),
        (ScoreConfig, {**ASKING, "explainers": (), "simulator": "exact"}, "base_url: the simulator 'exact'"),
    ],
)
def test_a_language_model_that_is_not_asked_is_no_part_of_a_request(cls, given, sentence):
    given = {name: value for name, value in given.items() if value}
    with pytest.raises(UserError, match=sentence):
        cls(**given)


def test_how_a_language_model_is_asked_is_no_part_of_a_request():
    other = {"base_url": "https://elsewhere/v1", "batch_tokens": 9, "llm_device": "cpu", "calls": 1, "offline": True}
    assert identity(ExplainConfig(**ASKING)) == identity(ExplainConfig(**ASKING | other))
    assert identity(ExplainConfig(**ASKING)) != identity(ExplainConfig(**ASKING, temperature=0.5))
    assert "temperature" not in identity(ScoreConfig())


def test_the_smallest_sweep_keeps_only_what_its_kind_takes():
    wide = TrainConfig(
        kinds=("tied", "matryoshka", "p-anneal"), prefixes=(0.5, 1.0), k_start=64, p_end=0.5, anneal=0.3, auxk=0.1,
        decoder_rate=2.0,
    )  # fmt: skip
    assert wide.smallest.kinds == ("tied",) and wide.smallest.prefixes == TrainConfig().prefixes
    nested = TrainConfig(kinds=("matryoshka", "tied"), prefixes=(0.5, 1.0), k_start=64, anneal=0.3, decoder_rate=2.0)
    kept = nested.smallest
    assert (kept.prefixes, kept.k_start, kept.anneal, kept.decoder_rate) == ((0.5, 1.0), 64, 0.3, 2.0)


def test_values_that_ask_nothing_of_a_kind_are_no_mistake():
    assert TrainConfig(kinds=("tied",), auxk=0.0, decoder_rate=1.0, p_end=1.0).kinds == ("tied",)


def run_of(text: str, tmp_path: Path) -> RunConfig:
    (tmp_path / "run.toml").write_text(
        f'[model]\nmodel = "demo"\n[corpus]\ncorpus = "stdlib"\n[harvest]\nsites = ["resid_post.0"]\n{text}'
    )
    return read_run(tmp_path / "run.toml")


def test_what_sweeps_share_goes_to_those_whose_kinds_take_it(tmp_path: Path):
    shared = '[train]\npreset = "modern"\ndecoder_rate = 2.0\nauxk = 0.1\n'
    tables = '[train.a]\nkinds = ["tied"]\n[train.b]\nkinds = ["topk"]\nks = [4]\n[train.c]\nkinds = ["untied"]\n'
    run = run_of(f'{shared}{tables}[controls]\n[controls.train.x]\nkinds = ["tied"]\n', tmp_path)
    held = {name: (sweep.decoder_rate, sweep.auxk, sweep.preset) for name, sweep in run.tables["train"].items()}
    assert held == {"a": (None, None, "modern"), "b": (2.0, 0.1, "modern"), "c": (2.0, None, "modern")}
    assert run.controls is not None and run.controls.tables["train"]["x"].decoder_rate is None
    assert run_of(f"{shared}{tables}[controls]\n", tmp_path).controls is not None
    alone = run_of(f'{shared}{tables}[controls]\n[controls.train]\nkinds = ["untied"]\n', tmp_path).controls
    assert alone is not None and alone.tables["train"]["main"].decoder_rate == 2.0


def test_what_no_sweep_takes_is_refused_where_it_stands(tmp_path: Path):
    with pytest.raises(UserError, match=r"p_end = 0.5 acts on p-anneal only"):
        run_of('[train]\np_end = 0.5\n[train.a]\nkinds = ["tied"]\n[train.b]\nkinds = ["topk"]\n', tmp_path)
    with pytest.raises(UserError, match=r"decoder_rate = 2.0 acts on"):
        run_of('[train.a]\nkinds = ["tied"]\ndecoder_rate = 2.0\n[train.b]\nkinds = ["topk"]\n', tmp_path)
    for kinds in ('"topk"', '[["topk"]]', "[1]", '["nothing"]'):
        with pytest.raises(UserError, match="kinds"):
            run_of(f"[train]\nauxk = 0.1\n[train.a]\nkinds = {kinds}\n", tmp_path)
    with pytest.raises(UserError, match=r"unknown key 'foo'"):
        run_of('[train]\nfoo = 1\n[train.b]\nkinds = ["topk"]\n', tmp_path)
