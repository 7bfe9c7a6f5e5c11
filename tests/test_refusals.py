"""Every refusal of a configuration is provoked, and says which field it is about, its value, and what to do.

Each is one sentence. The last test reads the configurations' source, so that a new refusal is provoked here too.
"""

import ast
import dataclasses
import inspect
import sys
from typing import Any

import pytest

from monolex import config as stage_configs
from monolex import train_config
from monolex.causal import config as causal_configs
from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.config import BaselineConfig, CorpusConfig, EvalConfig, FeaturesConfig, HarvestConfig
from monolex.errors import UserError
from monolex.features import query as find_config
from monolex.features.query import FindConfig
from monolex.interp import config as interp_configs
from monolex.interp.config import ExplainConfig, FigureConfig, ScoreConfig
from monolex.train_config import TrainConfig

MODULES = (stage_configs, train_config, causal_configs, interp_configs, find_config)
SITES = {"sites": ("resid_post.0",)}
ENDPOINT = {"llm": "m", "base_url": "http://127.0.0.1:1/v1"}
ASKS = {"explainers": ("openai",), **ENDPOINT}
JUDGED = {"simulator": "json", **ENDPOINT}
TEXT = "a"

CASES: tuple[tuple[type, dict[str, Any], dict[str, Any]], ...] = (
    (CorpusConfig, {}, {"context_length": 1, "max_tokens": 0, "document_tokens": 0, "held_out": 1.0}),
    (CorpusConfig, {}, {"positions": "9999:"}),
    (CorpusConfig, {}, {"positions": "a:b"}),
    (HarvestConfig, SITES, {"sites": TEXT, "max_norm": 1.0, "shard_mb": 0, "batch_rows": 0, "sample_tokens": 0}),
    (HarvestConfig, {}, {"sites": ()}),
    (TrainConfig, {}, {name: "x" for name in ("sites", "kinds", "alphas", "ks", "ratios", "seeds", "lrs")}),
    (TrainConfig, {}, {"kinds": (), "ratios": (), "seeds": (), "alphas": ()}),
    (TrainConfig, {"kinds": ("topk",)}, {"ks": ()}),
    (TrainConfig, {}, {"kinds": ("nothing",), "alphas": (-0.1,), "ks": (0,), "ratios": (0.0,), "lrs": (0.0,)}),
    (TrainConfig, {}, {"steps": 0, "epochs": 0.0, "batch_size": 0, "buffer_rows": 1, "warmup": 1.1, "decay": -0.1}),
    (TrainConfig, {"kinds": ("topk",)}, {"auxk": -1.0, "keep_checkpoints": -1, "decoder_rate": 0.0}),
    (TrainConfig, {"kinds": ("topk",)}, {"k_start": 31, "resamplings": -1}),
    (TrainConfig, {"kinds": ("p-anneal",)}, {"p_end": 0.0, "anneal": 1.5}),
    (TrainConfig, {"kinds": ("matryoshka",)}, {"prefixes": (0.5,)}),
    (TrainConfig, {}, {"k_start": 40, "skip": True, "target": "mlp_out", "preprocess": "nothing"}),
    (TrainConfig, {"kinds": ("lista",)}, {"target": "mlp_out"}),
    (TrainConfig, {"kinds": ("matryoshka",)}, {"prefixes": TEXT}),
    (TrainConfig, {}, {"auxk": 0.5, "dead_after": 0, "save_every": 0, "log_every": 0}),
    (TrainConfig, {}, {"data_ranks": 0, "feature_ranks": 0}),
    (TrainConfig, {}, {"data_ranks": 3}),
    (BaselineConfig, {}, {"kinds": (), "ks": (0,), "ratio": 0.0, "fit_rows": 0, "ica_rows": 0, "nmf_rows": 0}),
    (BaselineConfig, {}, {"kinds": ("nothing",), "nmf_features": 0}),
    (EvalConfig, {}, {"rows": 0, "resamples": 0, "batch_contexts": 0, "contexts": -1, "level": 1.0}),
    (FeaturesConfig, {}, {"fragment_tokens": 0, "quantiles": 0, "coactive_rows": 0, "tokens": 0, "direct": 0}),
    (FeaturesConfig, {}, {"fragment_tokens": 65_536, "neighbours": 0, "feature_rows": 0, "memory_mb": 63}),
    (FeaturesConfig, {}, {name: -1 for name in ("top", "per_quantile", "near_zero", "random", "inactive")}),
    (PatchConfig, {}, {"pairs": 0, "points": 0, "thresholds": 0, "limit": 0, "resamples": 0, "batch_tokens": 0}),
    (PatchConfig, {}, {"prompt_seed": -1, "patch_seed": -1, "level": 0.0, "searches": ("nothing",)}),
    (PatchConfig, {}, {"sites": TEXT, "dictionaries": TEXT, "exact": TEXT}),
    (PatchConfig, {}, {"searches": (), "held_out": 1.0}),
    (AblateConfig, {}, {"features": TEXT, "occurrences": 0, "top": 0, "resamples": 0, "batch_tokens": 0}),
    (
        AblateConfig,
        {},
        {"to": "nothing", "positions": "nothing", "low": 1.1, "level": 1.0, "ablate_seed": -1, "control_within": 0.5},
    ),
    (TreeConfig, {}, {"features": TEXT, "contexts": 1, "depth": -1, "children": 0, "confirm": 0, "batch_tokens": 0}),
    (TreeConfig, {}, {"low": 0.0, "level": 1.0, "tree_seed": -1}),
    (ExplainConfig, ASKS, {"calls": 0, "batch_tokens": 0, "timeout": 0.0, "retries": -1, "price_in": -1.0}),
    (ExplainConfig, ASKS, {"price_out": -1.0, "budget_tokens": 0, "budget_usd": -1.0, "llm_dtype": "bf16"}),
    (ExplainConfig, ASKS, {"budget_usd": 1.0, "llm": "", "temperature": -1.0}),
    (ExplainConfig, {"explainers": ("openai",)}, {"llm": ""}),
    (ExplainConfig, ASKS, {"base_url": "ftp://somewhere"}),
    (ExplainConfig, {}, {"features": 0, "fragments": 0, "fragment_tokens": 1, "silent": -1, "output_tokens": -1}),
    (ExplainConfig, {}, {"explain_seed": -1, "explainers": (), "llm": "m", "temperature": 0.5, "llm_dtype": "bf16"}),
    (ExplainConfig, {}, {"explainers": ("nothing",)}),
    (ExplainConfig, {}, {"explainers": ("token", "token")}),
    (ScoreConfig, {}, {"scorers": (), "shuffles": -1, "score_seed": -1, "limit": 0, "resamples": 0, "level": 0.0}),
    (ScoreConfig, {}, {"llm": "m"}),
    (ExplainConfig, ASKS, {"reply_tokens": 0}),
    (ScoreConfig, {}, {"reply_tokens": 5}),
    (ScoreConfig, JUDGED, {"llm": ""}),
    (ScoreConfig, {"simulator": "json"}, {"llm": ""}),
    (FigureConfig, {}, {"rows": 0, "resamples": 0, "figure_seed": -1, "level": 1.0}),
    (FindConfig, {"on": " a"}, {"limit": 0, "resamples": 0, "level": 1.0, "where": TEXT, "dictionaries": TEXT}),
    (FindConfig, {}, {"prompt": "", "on": "", "sort": "nothing"}),
    (FindConfig, {"prompt": "a"}, {"sort": "density"}),
    (FindConfig, {"sort": "density"}, {"where": ("nothing",)}),
    (FindConfig, {"sort": "density"}, {"where": ("density=!1",)}),
    (FindConfig, {"sort": "density"}, {"where": ("density<nan",)}),
)
"""A configuration, values with which it is fine, and values of which each alone is refused."""
BLIND = {
    "an endpoint for a local model": (ScoreConfig, {**JUDGED, "simulator": "exact"}, "base_url: the simulator 'exact'"),
    "two questions": (FindConfig, {"prompt": "a", "on": " b"}, "--prompt and --on ask for different things"),
    "no question": (FindConfig, {}, "nothing to find"),
    "an idle option": (FindConfig, {"on": " a", "ascending": True}, "--ascending goes with --sort: leave it out"),
    # what may be a secret is not repeated
    "a password": (
        ExplainConfig,
        {**ASKS, "base_url": "http://me:secret@host/v1"},
        "base_url holds a name or password",
    ),
    "a query": (ExplainConfig, {**ASKS, "base_url": "http://host/v1?key=secret"}, "base_url holds a query"),
}
"""Refusals of no one value, or that must not name it."""


def spelled(case: tuple[type, dict[str, Any], str, Any]) -> str:
    cls, base, field, value = case
    return f"{cls.__name__}-{field}-{value!r}" + "".join(f"-{name}" for name in base)


EACH = [(cls, base, field, value) for cls, base, values in CASES for field, value in values.items()]


@pytest.mark.parametrize("case", EACH, ids=spelled)
def test_a_value_that_makes_no_sense_is_refused_by_name(case):
    cls, base, field, value = case
    with pytest.raises(UserError) as refused:
        cls(**{**base, field: value})
    said = str(refused.value)
    assert field in said and "\n" not in said
    inner = value[0] if isinstance(value, tuple) and value else value
    assert str(inner) in said or value in ((), "") or field == "buffer_rows", "its value is not named"
    assert len(said) > len(f"{field} = {value!r}: "), "what to do is not said"


@pytest.mark.parametrize("case", BLIND)
def test_what_is_refused_without_its_value(case):
    cls, values, sentence = BLIND[case]
    with pytest.raises(UserError, match=sentence) as refused:
        cls(**values)
    assert "secret" not in str(refused.value)


def test_what_stands_beside_a_bad_value_is_fine():
    """Or the tests above would see another refusal than theirs."""
    incomplete = [(HarvestConfig, {}), (ExplainConfig, {"explainers": ("openai",)}), (FindConfig, {})]
    incomplete += [(ScoreConfig, {"simulator": "json"})]
    for cls, base, _ in CASES:
        if (cls, base) not in incomplete:
            assert dataclasses.is_dataclass(cls(**base))


def test_every_refusal_of_a_configuration_is_provoked(monkeypatch):
    provoked: set[tuple[str, int]] = set()
    known: set[tuple[str, int]] = set()
    ends: dict[tuple[str, int], int] = {}
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("require", "UserError")
            ):
                known.add((module.__name__, node.lineno))
                ends[module.__name__, node.lineno] = node.end_lineno or node.lineno
        # the helper that raises for all of them
        known -= {(module.__name__, n) for n in _lines(module, "require")}

    class Noted(UserError):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            frame = sys._getframe(1)
            if frame.f_code.co_name == "require":
                frame = frame.f_back
            assert frame is not None
            provoked.add((frame.f_globals["__name__"], frame.f_lineno))

    def noted(condition: bool, sentence: str) -> None:
        if not condition:
            frame = sys._getframe(1)
            provoked.add((frame.f_globals["__name__"], frame.f_lineno))
            raise UserError(sentence)

    for module in MODULES:
        monkeypatch.setattr(module, "require", noted)
        if hasattr(module, "UserError"):
            monkeypatch.setattr(module, "UserError", Noted)
    asked = [(cls, {**base, field: value}) for cls, base, field, value in EACH]
    for cls, values in [*asked, *((cls, values) for cls, values, _ in BLIND.values())]:
        with pytest.raises(UserError):
            cls(**values)
    hit = {
        (name, line)
        for name, line in known
        for module, at in provoked
        if name == module and line <= at <= ends[name, line]
    }
    assert sorted(known - hit) == []


def _lines(module: Any, name: str) -> range:
    """The lines of a function of a module, where it is defined there."""
    function = getattr(module, name, None)
    if function is None or function.__module__ != module.__name__:
        return range(0)
    source, first = inspect.getsourcelines(function)
    return range(first, first + len(source))
