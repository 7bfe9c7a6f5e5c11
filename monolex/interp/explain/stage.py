"""The stage ``explain``: examples and explanations of some features of a run's dictionaries.

A dictionary is a piece, kept as it is done. Calls that a language model left unanswered (timeouts, malformed replies)
are counted failures, and the same command tries them again; answers that are no use are failures that stay. Writes
``explain.json`` (a row a dictionary: what was asked, skipped, failed), ``explanations.jsonl`` (a line a feature and
explainer), ``examples.safetensors`` (which fragments each feature was explained from and is scored on, with its
activations) and ``vocabulary.json``.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from monolex.features.weights import moved
from monolex.interp.config import ExplainConfig
from monolex.interp.examples.draw import draw
from monolex.interp.examples.fragments import Windows, texts_of, windows
from monolex.interp.explain import lookup, pattern, saved
from monolex.interp.explain.by_llm import explain_examples, explain_openai
from monolex.interp.llm.endpoint import open_client
from monolex.interp.llm.meter import METER
from monolex.interp.llm.replies import Recorded, opened_unless_found, unanswered
from monolex.interp.records import Client, Examples, Explanation, Failure
from monolex.interp.targets import Target, candidates, parents, targets
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.pieces import Piece, Work

KIND = saved.KIND
LEARNED: dict[str, Callable[[Examples], Explanation]] = {"token": lookup.token_table, "ngram": lookup.ngram}
"""Explainers that need examples alone."""
ASKING: dict[str, Callable[[Sequence[Examples], Client, ExplainConfig], list[Explanation | Failure]]] = {
    "openai": explain_openai,
    "examples": explain_examples,
}
"""Explainers that ask a language model."""


@dataclass(frozen=True, eq=False)
class Source:
    """One model's fragments."""

    lm: LanguageModel
    """The model."""
    windows: Windows
    """Its fragments."""
    texts: Mapping[int, str]
    """Their tokens."""


def explain(folder: str | Path, run: str | Path, config: ExplainConfig) -> Manifest:
    """Explain features of a run; see the module's docstring for what is written.

    Raises:
        UserError: no run, nothing that fits, no fragment, or a language model that cannot be asked.
    """
    folder, run = Path(folder), Path(run)
    known = candidates(run, config)
    client = partial(open_client, config, run) if config.llm else nullcontext

    def weights(client: Recorded | None) -> str:
        return client.backend.identity if client else ""

    with ExitStack() as stack:
        work = Work(folder, KIND, config, parents(known))
        answer = opened_unless_found(stack, work, config, client, weights)
        if isinstance(answer, Manifest):
            return answer
        work, asked_model = answer
        sources, used = _Sources(config), targets(known, config)

        def piece(target: Target) -> Piece:
            return lambda path: _dictionary(path, target, sources.of(target), config, asked_model)

        pieces = {target.dictionary.key: piece(target) for target in used}
        rows = list(work.done(pieces, unanswered(asked_model)).values())
    models = {target.dictionary.model: sources.of(target) for target in used}
    counts: dict[str, Any] = {"dictionaries": len(rows), "features": sum(row["explained"] for row in rows)}
    if asked_model is not None:
        counts[METER] = asked_model.meter.to_json()
    return work.finish(_files([work.place(key) for key in pieces], list(pieces), models, rows, config), counts)


def _files(
    places: Sequence[Path],
    keys: Sequence[str],
    models: Mapping[str, Source],
    rows: Sequence[dict[str, Any]],
    config: ExplainConfig,
) -> dict[str, bytes]:
    """The files of the artefact, out of what the pieces of the dictionaries ``keys`` left at ``places``."""
    facts = {
        "mode": config.mode,
        "explainers": list(config.explainers),
        "fragments": {name: len(source.windows.start) for name, source in models.items()},
        "left_out": {name: dict(source.windows.left_out) for name, source in models.items()},
        "dictionaries": rows,
    }
    flat: saved.Arrays = {}
    texts: dict[int, str] = {}
    for name, source in models.items():
        flat |= saved.prefixed(f"{name}/fragments", saved.windows_arrays(source.windows))
        texts |= source.texts
    for key, path in zip(keys, places, strict=True):
        flat |= saved.prefixed(key, load_file(path.with_suffix(".safetensors")))
    return {
        saved.FACTS: json_bytes(facts),
        saved.LINES: b"".join(path.with_suffix(".jsonl").read_bytes() for path in places),
        saved.ARRAYS: save(flat),
        saved.TEXTS: json_bytes({str(token): texts[token] for token in sorted(texts)}),
    }


class _Sources:
    """Every model's fragments, cut once."""

    def __init__(self, config: ExplainConfig) -> None:
        self._config = config
        self._known: dict[Path, Source] = {}

    def of(self, target: Target) -> Source:
        if target.activations not in self._known:
            self._known[target.activations] = self._cut(target)
        return self._known[target.activations]

    def _cut(self, target: Target) -> Source:
        config = self._config
        lm = stored_model(target.activations, config.explain_device)
        reader = Reader(target.activations, target.dictionary.site, config.split)
        cut = windows(reader, packed_rows(target.activations, config.split), lm, config)
        return Source(lm, cut, texts_of(cut.tokens, lm))


def _dictionary(
    path: Path, target: Target, source: Source, config: ExplainConfig, client: Client | None
) -> dict[str, Any]:
    """Explain one dictionary's features; its row."""
    weights = target.dictionary.weights(runtime.device(config.explain_device))
    reader = Reader(target.activations, target.dictionary.site, config.split)
    drawn = draw(reader, weights, source.windows, config, target.dictionary.key)
    examples = drawn.of(source.windows, source.texts)
    made = {name: _explained(name, examples, target, source.lm, weights, config, client) for name in config.explainers}
    head = {"model": target.dictionary.model, "site": target.dictionary.site, "name": target.dictionary.name}
    rows = [
        head | saved.line(one.feature, explanation, name)
        for name, some in made.items()
        for one, explanation in zip(examples, some, strict=True)
    ]
    rows += [head | row for row in _output(target, source, weights, drawn.features.tolist(), config.output_tokens)]
    write_bytes(path.with_suffix(".jsonl"), saved.lines(rows))
    write_bytes(path.with_suffix(".safetensors"), save(saved.drawn_arrays(drawn)))
    failed = {name: [one.reason for one in some if isinstance(one, Failure)] for name, some in made.items()}
    return {
        **target.facts(),
        "asked": drawn.asked,
        "skipped": dict(drawn.skipped),
        "explained": len(examples),
        "rare": drawn.rare,
        "failures": {name: dict(Counter(reasons)) for name, reasons in failed.items()},
    }


def _explained(
    name: str,
    examples: Sequence[Examples],
    target: Target,
    lm: LanguageModel,
    weights: Dictionary,
    config: ExplainConfig,
    client: Client | None,
) -> Sequence[Explanation | Failure]:
    if name in LEARNED:
        return [LEARNED[name](one) for one in examples]
    if name == "pattern":
        return pattern.explain(lm, weights, target.dictionary.site, examples, config)
    assert client is not None, name
    return ASKING[name](examples, client, config)


def _output(
    target: Target, source: Source, weights: Dictionary, features: Sequence[int], count: int
) -> list[dict[str, Any]]:
    """The tokens that each direction promotes and suppresses most by itself: what it says, not when it speaks."""
    site = Site.parse(target.dictionary.site)
    found, reason = moved(source.lm, site, weights, features, count)
    return [
        {"feature": feature, "explainer": "output", "output": {**one._asdict(), "reason": reason}}
        for feature, one in zip(features, found, strict=True)
    ]
