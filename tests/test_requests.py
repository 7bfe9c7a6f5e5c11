"""What belongs to a request: of every stage every field that decides on the result, and all that it reads.

The stages themselves are asked: each is stopped where it looks whether its folder holds the answer already, and the
request that it compares there is kept.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
from helpers.counted_stores import TRAINED, found_run, write_pairs
from helpers.tiny_harvests import corpus_of, make_lm
from helpers.tiny_texts import sentence

from monolex import stages
from monolex.activations.harvest import harvest
from monolex.artifact import MANIFEST, finish, open_artifact, request_hash
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.config import (
    BaselineConfig,
    CorpusConfig,
    EvalConfig,
    FeaturesConfig,
    HarvestConfig,
    ModelConfig,
    identity,
)
from monolex.dictionaries.listing import choose, run_dictionaries
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain.stage import explain
from monolex.stability.config import StabilityConfig
from monolex.train_config import TrainConfig
from monolex.training.trainer import train

LLM = {"base_url", "key_env", "calls", "timeout", "retries", "budget_tokens", "budget_usd", "price_in", "price_out"}
LLM |= {"replies", "offline", "llm_device", "batch_tokens"}
HOW: dict[type, set[str]] = {
    ModelConfig: {"device", "device_map"},
    CorpusConfig: set(),
    HarvestConfig: {"batch_rows"},
    TrainConfig: {"save_every", "log_every", "train_device", "data_ranks", "feature_ranks"},
    BaselineConfig: {"match"},
    EvalConfig: {"batch_contexts", "eval_device"},
    FeaturesConfig: {"memory_mb", "features_device"},
    PatchConfig: {"batch_tokens", "patch_device"},
    AblateConfig: {"batch_tokens", "ablate_device"},
    TreeConfig: {"batch_tokens", "tree_device"},
    ExplainConfig: LLM | {"explain_device"},
    ScoreConfig: LLM | {"explanations"},
    StabilityConfig: {"batch_tokens", "stability_device"},
}
"""Fields that say only how a result is computed, or where what is hashed by its content lies (`match`, `explanations`).
A field that is added here is a promise that the result is the same whatever it says."""


def test_every_field_but_those_listed_is_part_of_the_identity():
    for config, listed in HOW.items():
        fields = {field.name for field in dataclasses.fields(config)}
        unhashed = {field.name for field in dataclasses.fields(config) if not field.metadata.get("hashed", True)}
        assert unhashed == listed and listed <= fields, config.__name__
    assert set(HOW) == {ModelConfig, CorpusConfig} | {stage.load("config") for stage in stages.STAGES}


class Asked(BaseException):
    """Thrown where a stage looks for its answer, past every handler."""


class Request(NamedTuple):
    """What a stage compares with what its folder holds."""

    kind: str
    config: Mapping[str, Any]
    parents: Mapping[str, str]

    @property
    def hash(self) -> str:
        return request_hash(self.kind, self.config, self.parents)


class Case(NamedTuple):
    """A stage, and requests that differ from another in one field."""

    call: Callable[..., Any]
    """Does it: ``(folder, **configs)``."""
    base: Mapping[str, Any]
    """The configurations of the request, by argument."""
    other: Mapping[str, Any]
    """Values of fields for which the rule of :func:`another` gives nothing that this stage takes."""
    reads: tuple[str, ...]
    """Folders of the run that its request names."""
    left_out: tuple[str, ...] = ()
    """Fields that cannot be changed alone."""


@pytest.fixture
def request_of(monkeypatch, tmp_path) -> Callable[..., Request]:
    def looked(_folder: Path, *request: Any) -> bool:
        raise Asked(Request(*request))

    monkeypatch.setattr("monolex.artifact.is_done", looked)
    monkeypatch.setattr("monolex.training.trainer.is_done", looked)

    def stopped(call: Callable[..., Any], configs: Mapping[str, Any]) -> Request:
        with pytest.raises(Asked) as asked:
            call(tmp_path / "none", **configs)
        return asked.value.args[0]

    return stopped


def another(hint: Any, value: Any) -> Any:
    """Another value of a field."""
    if isinstance(value, bool):
        return not value
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.5
    kinds = get_args(hint)
    if value is None and int in kinds:
        return 7
    return 0.5 if value is None and float in kinds else "another"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a control model, evidence, explanations, pairs of prompts, and two corpora."""
    home = tmp_path_factory.mktemp("requests")
    found_run(home, stores=False)
    run, control = home / "run", home / "run" / "controls" / "random"
    manifest = open_artifact(run / "activations")
    model = ModelConfig(**{**manifest.data["model"]["model_config"], "control": "random"})
    sites = tuple(manifest.data["sites"])
    harvest(control / "activations", model, corpus_of(home / "same"), HarvestConfig(sites=sites, dtype="fp32"))
    sweep = TrainConfig(kinds=("topk",), ks=(4,), ratios=(2.0,), steps=2, batch_size=32, train_device="cpu")
    train(control / "train" / "first", control / "activations", sweep)
    finish(run / "features", "features", {}, {}, {}, {"stores": []})
    finish(run / "score" / "some", "score", {}, {}, {}, {})
    explained = ExplainConfig(features=2, fragment_tokens=4, explainers=("token",), explain_device="cpu")
    explain(run / "explain" / "paper", run, dataclasses.replace(explained, dictionaries=("topk-k4*",)))
    for name in ("a", "b"):
        lines = [{"text": sentence(i), "another": f"other {sentence(i + 1)}"} for i in range(12)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(write_pairs(run), home / "others.jsonl")
    return run


LM = make_lm()
SOURCES = ("train/first", "train/second", "baselines/plain")
OF_MODEL = ("activations", *SOURCES)
CONTROL = ("controls/random/activations", "controls/random/train/first")
ROOT = f"resid_post.2/{TRAINED}:3"
SITE = ("resid_post.2",)


def cases(run: Path) -> Iterator[tuple[str, Case]]:
    home, sources = run.parent, [run / name for name in SOURCES]
    activations = run / "activations"
    load = {stage.verb: stage.load("run") for stage in stages.STAGES}

    def harvested(folder: Path, **configs: Any) -> Any:
        return load["harvest"](folder, lm=LM, **configs)

    def of_activations(verb: str) -> Callable[..., Any]:
        return lambda folder, config: load[verb](folder, activations, config=config)

    def of_run(verb: str) -> Callable[..., Any]:
        return lambda folder, config: load[verb](folder, run=run, config=config)

    base = {
        "model": ModelConfig(model_dtype="fp32"),
        "corpus": CorpusConfig(corpus=str(home / "a.jsonl"), context_length=16),
    }
    base["config"] = HarvestConfig(sites=("resid_post.0",))
    other: dict[str, Any] = {"corpus": str(home / "b.jsonl"), "corpus_format": "jsonl", "roles": ("user",)}
    other |= {"positions": "1:", "sites": ("resid_post.1",), "max_norm": 5.0, "document_tokens": 5}
    other |= {"model_dtype": "bf16", "separator": "<|im_start|>"}
    yield "harvest", Case(harvested, base, other, ())

    # kinds of which one takes each field
    sweep = TrainConfig(
        kinds=("topk", "matryoshka", "p-anneal"), ks=(4,), ratios=(2.0,), batch_size=32, train_device="cpu"
    )
    other = {"sites": SITE, "kinds": ("topk", "tied"), "alphas": (0.5,), "ks": (3,), "ratios": (1.0,), "seeds": (1,)}
    other |= {"lrs": (0.1,), "init": str(run / "train" / "first" / SITE[0] / TRAINED), "train_device": "auto"}
    other |= {"preprocess": "centre", "target": "resid_post.2", "prefixes": (0.5, 1.0)}
    # a linear skip is of a transcoder's alone
    yield "train", Case(of_activations("train"), {"config": sweep}, other, ("activations",), ("skip",))

    fitted = BaselineConfig(kinds=("pca-topk",), match=(str(run / "train" / "first"),))
    other = {"sites": SITE, "kinds": ("pca",), "ks": (3,), "match": (str(run / "train" / "second"),)}
    yield "baselines", Case(of_activations("baselines"), {"config": fitted}, other, ("activations", "train/first"))

    def evaluated(folder: Path, config: EvalConfig) -> Any:
        first, *rest = (run / name for name in CONTROL)
        return load["eval"](folder, activations, sources, {"random": (first, rest)}, config)

    yield "eval", Case(evaluated, {"config": EvalConfig()}, {"eval_device": "cpu"}, (*OF_MODEL, *CONTROL))

    def gathered(folder: Path, config: FeaturesConfig) -> Any:
        return load["features"](folder, activations, sources, config)

    other = {"dictionaries": ("pca",), "sites": SITE, "features_device": "cpu"}
    yield "features", Case(gathered, {"config": FeaturesConfig()}, other, OF_MODEL)

    other = {"task": str(home / "others.jsonl"), "sites": SITE, "dictionaries": ("pca",), "exact": ("pca",)}
    other |= {"searches": ("greedy",), "patch_device": "cpu"}
    pairs = {"config": PatchConfig(task=str(home / "pairs.jsonl"))}
    yield "patch", Case(of_run("patch"), pairs, other, (*OF_MODEL, CONTROL[1]))

    root, read = f"resid_post.0/{TRAINED}", ("activations", "features", "train/first")
    other = {"features": (f"{root}:4",), "low": 0.5, "rescue": ("resid_post.1",), "ablate_device": "cpu"}
    yield "ablate", Case(of_run("ablate"), {"config": AblateConfig(features=(f"{root}:3",))}, other, read)

    other = {"features": (ROOT.replace(":3", ":4"),), "dictionaries": ("pca",), "tree_device": "cpu"}
    yield "tree", Case(of_run("tree"), {"config": TreeConfig(features=(ROOT,))}, other, read)

    endpoint = {"llm": "m", "base_url": "http://127.0.0.1:1/v1", "price_in": 1.0}
    other = {"base_url": "http://127.0.0.1:2/v1", "budget_usd": 1.0, "sites": SITE, "dictionaries": ("topk*",)}
    other |= {"explainers": ("openai", "token"), "activations": str(activations), "explain_device": "cpu"}
    asked = {"config": ExplainConfig(explainers=("openai",), **endpoint)}
    # the precision is of a local model's alone
    yield "explain", Case(of_run("explain"), asked, other, (*OF_MODEL, *CONTROL), ("llm_dtype",))

    def scored(folder: Path, config: ScoreConfig) -> Any:
        return load["score"](folder, run / "explain" / "paper", config, run)

    other = {"base_url": "http://127.0.0.1:2/v1", "budget_usd": 1.0, "simulator": "completions"}
    other |= {"scorers": ("fuzz",), "llm_device": "cpu"}
    asked = {"config": ScoreConfig(simulator="json", **endpoint)}
    yield "score", Case(scored, asked, other, ("explain/paper",), ("llm_dtype",))

    def compared(folder: Path, config: StabilityConfig) -> Any:
        with pytest.MonkeyPatch.context() as patch:  # no evidence here knows other seeds
            patch.setattr(
                "monolex.stability.stage.with_seeds", lambda run, asked: choose(run_dictionaries(run), asked)[:1]
            )
            return load["stability"](folder, run=run, config=config)

    other = {"dictionaries": ("pca",), "scores": ("some",), "stability_device": "cpu"}
    yield "stability", Case(compared, {"config": StabilityConfig()}, other, ("activations", "features", "train/first"))


VERBS = tuple(stage.verb for stage in stages.STAGES)


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_that_decides_changes_the_request_and_no_other_does(verb, run, request_of):
    case = dict(cases(run))[verb]
    first = request_of(case.call, case.base)
    assert request_of(case.call, case.base) == first
    for argument, config in case.base.items():
        for field in dataclasses.fields(config):
            if field.name in case.left_out:
                continue
            value = case.other.get(field.name, another(field.type, getattr(config, field.name)))
            assert value != getattr(config, field.name), field.name
            changed = {**case.base, argument: dataclasses.replace(config, **{field.name: value})}
            differs = request_of(case.call, changed).hash != first.hash
            # what `match` names is read, and its content is a parent
            decides = field.name not in HOW[type(config)] or field.name == "match"
            assert differs == decides, f"{type(config).__name__}.{field.name} = {value!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_all_that_a_stage_reads_is_part_of_its_request(verb, run, request_of):
    case = dict(cases(run))[verb]
    first = request_of(case.call, case.base)
    contents = {open_artifact(run / name).content for name in case.reads}
    others = set(first.parents.values()) - contents
    assert contents <= set(first.parents.values())
    # beside artefacts: a model and a text, or a file of prompts
    assert len(others) == {"harvest": 3, "patch": 1}.get(verb, 0)


def test_prompts_of_the_same_name_are_another_request(run, request_of):
    case = dict(cases(run))["patch"]
    first, path = request_of(case.call, case.base), run.parent / "pairs.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(reversed(whole.splitlines())) + "\n")
    try:
        assert request_of(case.call, case.base).hash != first.hash
    finally:
        path.write_text(whole)


def test_a_folder_is_no_answer_to_what_it_was_not_asked(tmp_path):
    """The comparison itself: kind, fields and parents, each alone."""
    from monolex.artifact import is_done

    parents = {"activations": "a"}
    finish(tmp_path, "eval", identity(EvalConfig()), parents, {}, {})
    assert is_done(tmp_path, "eval", identity(EvalConfig()), parents)
    assert not is_done(tmp_path, "features", identity(EvalConfig()), parents)
    assert not is_done(tmp_path, "eval", identity(EvalConfig(rows=7)), parents)
    assert not is_done(tmp_path, "eval", identity(EvalConfig()), {"activations": "b"})
    assert not is_done(tmp_path, "eval", identity(EvalConfig()), {**parents, "controls": "a"})
    assert (tmp_path / MANIFEST).exists()
