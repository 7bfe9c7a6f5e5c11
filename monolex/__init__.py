"""monolex learns the monosemantic lexicon of a language model.

Public names are loaded on first use, so that ``import monolex`` and ``monolex --help`` do not wait for torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "UserError": "monolex.errors",
    "ModelConfig": "monolex.config",
    "CorpusConfig": "monolex.config",
    "HarvestConfig": "monolex.config",
    "TrainConfig": "monolex.train_config",
    "BaselineConfig": "monolex.config",
    "EvalConfig": "monolex.config",
    "FeaturesConfig": "monolex.config",
    "LanguageModel": "monolex.model.language_model",
    "load_model": "monolex.model.load",
    "wrap": "monolex.model.load",
    "Site": "monolex.model.sites",
    "capture": "monolex.model.hooks",
    "edit": "monolex.model.hooks",
    "run_from": "monolex.model.hooks",
    "harvest": "monolex.activations.harvest",
    "Reader": "monolex.activations.reader",
    "Stream": "monolex.activations.stream",
    "ModelStream": "monolex.activations.stream",
    "Dictionary": "monolex.dictionaries.base",
    "load_dictionary": "monolex.dictionaries.base",
    "train": "monolex.training.trainer",
    "train_from": "monolex.training.trainer",
    "model_source": "monolex.training.data",
    "TrainingData": "monolex.training.data",
    "build_corpus": "monolex.text.corpus",
    "fit_baselines": "monolex.dictionaries.baselines",
    "evaluate": "monolex.evals.evaluate",
    "gather_features": "monolex.features.stage",
    "FindConfig": "monolex.features.query",
    "find": "monolex.features.find",
    "PatchConfig": "monolex.causal.config",
    "AblateConfig": "monolex.causal.config",
    "TreeConfig": "monolex.causal.config",
    "patch": "monolex.causal.patch.stage",
    "ablate": "monolex.causal.ablate.stage",
    "tree": "monolex.causal.tree.stage",
    "ExplainConfig": "monolex.interp.config",
    "ScoreConfig": "monolex.interp.config",
    "explain": "monolex.interp.explain.stage",
    "score": "monolex.interp.score.stage",
    "open": "monolex.lexicon",
    "execute": "monolex.pipeline",
    "dry_run": "monolex.pipeline",
    "write_report": "monolex.pipeline",
}
"""Every public name and the module it lives in."""

__all__ = ["PUBLIC", "__version__"]

_RENAMED = {
    "load_model": "load",
    "load_dictionary": "load",
    "build_corpus": "build",
    "fit_baselines": "fit_folder",
    "gather_features": "features",
    "open": "open_run",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'monolex' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted([*PUBLIC, "__version__"])
