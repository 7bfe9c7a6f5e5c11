"""The stage ``explain``: examples and explanations of some features of a run's dictionaries.

A dictionary is a piece, kept as it is done. Calls that a language model left unanswered (timeouts, malformed replies)
are counted failures, and the same command tries them again; answers that are no use are failures that stay. Writes
``explain.json`` (a row a dictionary: what was asked, skipped, failed), ``explanations.jsonl`` (a line a feature and
explainer), ``examples.safetensors`` (which fragments each feature was explained from and is scored on, with its
activations) and ``vocabulary.json``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from monolex import runtime
from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows, stored_model
from monolex.artifact import Manifest, json_bytes, write_bytes
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import parents
from monolex.features.weights import moved
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.draw import draw
from monolex.interp.examples.fragments import CorpusFragments, cut_fragments, texts_of
from monolex.interp.explain import saved
from monolex.interp.explain.by_llm import NOT_ASKED
from monolex.interp.explainers import EXPLAINERS, LLM_EXPLAINERS
from monolex.interp.llm.endpoint import open_client
from monolex.interp.llm.meter import METER, nothing_done
from monolex.interp.llm.recorded import Recorded, opened_unless_found, unanswered
from monolex.interp.records import Client, Examples, Explanation, Failure
from monolex.interp.targets import Target, candidates, target_folders, targets
from monolex.lock import alone
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.pieces import Piece, Work
from monolex.stages import loaded

KIND = saved.KIND


@dataclass(frozen=True, eq=False)
class ModelFragments:
    """A model with its fragments."""

    lm: LanguageModel
    """The model."""
    fragments: CorpusFragments
    """Its fragments."""
    texts: Mapping[int, str]
    """The texts of their tokens."""


@alone
def explain(folder: str | Path, run: str | Path, config: ExplainConfig) -> Manifest:
    """Explain features of a run; see the module's docstring for what is written.

    Raises:
        UserError: no run, nothing that fits, no fragment, a language model that cannot be asked, or that explains
            nothing.
    """
    folder, run = Path(folder), Path(run)
    known = candidates(run, config)
    client = partial(open_client, config, run) if config.llm else nullcontext

    def weights(client: Recorded | None) -> str:
        return client.backend.identity if client else ""

    with ExitStack() as stack:
        work = Work(folder, KIND, config, parents(target_folders(known)))
        answer = opened_unless_found(stack, work, config, client, weights)
        if isinstance(answer, Manifest):
            return answer
        work, asked_model = answer
        cuts, used = _Cuts(config), targets(known, config)

        def piece(target: Target) -> Piece:
            return lambda path: _dictionary(path, target, cuts.of(target), config, asked_model)

        pieces = {target.dictionary.key: piece(target) for target in used}
        rows = list(work.done(pieces, unanswered(asked_model)).values())
    _require_explained(work, rows, config)
    models = {target.dictionary.model: cuts.of(target) for target in used}
    counts: dict[str, Any] = {"dictionaries": len(rows), "features": sum(row["explained"] for row in rows)}
    if asked_model is not None:
        counts[METER] = asked_model.meter.to_json()
    return work.finish(_files([work.place(key) for key in pieces], list(pieces), models, rows, config), counts)


def _require_explained(work: Work, rows: Sequence[Mapping[str, Any]], config: ExplainConfig) -> None:
    """Nothing is done where a language model explained not one of the features that it was shown.

    Raises:
        UserError: so it is; the pieces are dropped, while replies stay in their store.
    """
    names = [name for name in config.explainers if name in LLM_EXPLAINERS]
    failed = sum((Counter(row["failures"][name]) for row in rows for name in names), Counter())
    shown = sum(row["explained"] for row in rows) * len(names) - failed.pop(NOT_ASKED.reason, 0)
    if shown and failed.total() == shown:
        work.forget()
        raise nothing_done(f"llm = {config.llm!r}: all of {shown} explanations failed", failed)


def _files(
    places: Sequence[Path],
    keys: Sequence[str],
    models: Mapping[str, ModelFragments],
    rows: Sequence[dict[str, Any]],
    config: ExplainConfig,
) -> dict[str, bytes]:
    """The files of the artefact, out of what the pieces of the dictionaries ``keys`` left at ``places``."""
    facts = {
        "mode": config.mode,
        "explainers": list(config.explainers),
        "fragments": {name: len(model.fragments.start) for name, model in models.items()},
        "left_out": {name: dict(model.fragments.left_out) for name, model in models.items()},
        "dictionaries": rows,
    }
    flat: saved.Arrays = {}
    texts: dict[int, str] = {}
    for name, model in models.items():
        flat |= saved.prefixed(f"{name}/fragments", saved.fragment_arrays(model.fragments))
        texts |= model.texts
    for key, path in zip(keys, places, strict=True):
        flat |= saved.prefixed(key, load_file(path.with_suffix(".safetensors")))
    return {
        saved.FACTS: json_bytes(facts),
        saved.LINES: b"".join(path.with_suffix(".jsonl").read_bytes() for path in places),
        saved.ARRAYS: save(flat),
        saved.TEXTS: json_bytes({str(token): texts[token] for token in sorted(texts)}),
    }


class _Cuts:
    """Every model's fragments, cut once, when the first of its dictionaries needs them."""

    def __init__(self, config: ExplainConfig) -> None:
        self._config = config
        self._known: dict[Path, ModelFragments] = {}

    def of(self, target: Target) -> ModelFragments:
        if target.activations not in self._known:
            self._known[target.activations] = self._cut(target)
        return self._known[target.activations]

    def _cut(self, target: Target) -> ModelFragments:
        config = self._config
        lm = stored_model(target.activations, config.explain_device)
        reader = Reader(target.activations, target.dictionary.site, config.split)
        fragments = cut_fragments(reader, packed_rows(target.activations, config.split), config)
        return ModelFragments(lm, fragments, texts_of(fragments.tokens, lm))


def _dictionary(
    path: Path, target: Target, model: ModelFragments, config: ExplainConfig, client: Client | None
) -> dict[str, Any]:
    """Explain one dictionary's features; its row."""
    weights = target.dictionary.weights(runtime.device(config.explain_device))
    reader = Reader(target.activations, target.dictionary.site, config.split)
    drawn = draw(reader, weights, model.fragments, config, target.dictionary.key)
    examples = drawn.spelled_out(model.fragments, model.texts)
    explained = {
        name: _explained(name, examples, target, model.lm, weights, config, client) for name in config.explainers
    }
    head = {"model": target.dictionary.model, "site": target.dictionary.site, "name": target.dictionary.name}
    rows = [
        head | saved.line(feature, explanation, name)
        for name, explanations in explained.items()
        for feature, explanation in zip(drawn.features.tolist(), explanations, strict=True)
    ]
    rows += [head | row for row in _output(target, model.lm, weights, drawn.features.tolist(), config.output_tokens)]
    write_bytes(path.with_suffix(".jsonl"), saved.lines(rows))
    write_bytes(path.with_suffix(".safetensors"), save(saved.drawn_arrays(drawn)))
    return {
        **target.facts(),
        "asked": drawn.looked_at,
        "skipped": dict(drawn.skipped),
        "explained": len(examples),
        "rare": drawn.rare,
        "failures": {name: _failures(explanations) for name, explanations in explained.items()},
    }


def _failures(explanations: Sequence[Explanation | Failure]) -> dict[str, int]:
    """How many failed, by reason."""
    return dict(Counter(failure.reason for failure in explanations if isinstance(failure, Failure)))


def _explained(
    name: str,
    examples: Sequence[Examples],
    target: Target,
    lm: LanguageModel,
    weights: Dictionary,
    config: ExplainConfig,
    client: Client | None,
) -> Sequence[Explanation | Failure]:
    explainer = EXPLAINERS[name]
    explain = loaded(explainer.explain)
    if explainer.needs == "examples":
        return [explain(of_feature) for of_feature in examples]
    if explainer.needs == "subject":
        return explain(lm, weights, target.dictionary.site, examples, config, target.dictionary.rule)
    return explain(examples, client, config)


def _output(
    target: Target, lm: LanguageModel, weights: Dictionary, features: Sequence[int], count: int
) -> list[dict[str, Any]]:
    """The tokens that each direction promotes and suppresses most by itself: what it says, not when it speaks."""
    site = Site.parse(weights.config.target or target.dictionary.site)
    logits, reason = moved(lm, site, weights, features, count)
    return [
        {"feature": feature, "explainer": "output", "output": {**of_feature._asdict(), "reason": reason}}
        for feature, of_feature in zip(features, logits, strict=True)
    ]
