"""Features that tell one set of texts from another, beside what any claim about a concept must beat.

Half of the texts choose: they rank the features and fit the probe. The other half measures: every number that is
reported, so that the best of thousands of features is not good by selection alone. Beside the features stand a linear
probe on the activations, the difference of the class means, a random direction, and the length of the texts.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from monolex import runtime
from monolex.config import CorpusConfig, require
from monolex.dictionaries.listing import RunDictionary, by_site
from monolex.features.answer import Comparison, ContrastHit, FoundFeatures
from monolex.features.known import knowledge
from monolex.features.prompt_activations import Tokenised, activations, tokenise, tokenizer_of
from monolex.features.query import FindConfig
from monolex.model.language_model import LanguageModel
from monolex.stats import Estimate, rank_sum, two_groups
from monolex.text.documents import documents
from monolex.text.report import Report

FEWEST = 8
"""Texts a set must have: four to choose by and four to measure on."""
CODES = 2**24
"""Codes that are encoded at once."""
TOKENS = 2**14
"""Tokens of a forward pass: a narrow dictionary must not make it a huge one."""
GRID = 2**16
"""Steps from 0 to a feature's maximum that are told apart: equal codes of two batches differ by rounding, and what is
tied must stay tied."""
COLUMNS = 4096
"""Features that are ranked at once."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation of the probe, chosen by cross-validation within the choosing half."""
OVER = "texts"


@dataclass(frozen=True, eq=False)
class ContrastTexts:
    """Two sets of texts and their halves."""

    tokens: Tokenised
    """Those of A, then those of B."""
    positive: Bool[NDArray, "texts"]
    """Which are of A."""
    choosing: Bool[NDArray, "texts"]
    """Which choose; the others measure."""
    notes: list[str]
    """What was left out, and how many there are."""


@dataclass(frozen=True, eq=False)
class TestedFeatures:
    """All tested features of one dictionary."""

    features: NDArray
    """Numbers of the tested features: kept by the conditions and active in any text, ascending."""
    p: NDArray
    """Of each, on the measuring half."""
    best: list[ContrastHit]
    """The chosen ones, still without q."""


def by_contrast(
    chosen: Sequence[RunDictionary], lm: LanguageModel, paths: tuple[str | Path, str | Path], config: FindConfig
) -> FoundFeatures:
    """Of every dictionary the ``limit`` features whose AUROC on the choosing half is farthest from one half.

    Raises:
        UserError: a file that cannot be read or holds fewer than :data:`FEWEST` texts.
    """
    texts = read(paths, lm, config)
    scored, beside = [], [_measured("", "length in tokens", _lengths(texts), texts, config)]
    sites = by_site(chosen)
    with runtime.progress(len(texts.positive) * len(sites), "contrast", "text") as bar:
        for site, dictionaries in sites.items():
            codes, pooled = _aggregate(lm, texts.tokens, site, dictionaries, config, bar)
            scored += [_score(dictionary, codes[dictionary.name], texts, config) for dictionary in dictionaries]
            beside += _directions(site, pooled, texts, config)
    tested = np.concatenate([tests.p for tests in scored])
    corrected = iter(np.split(_adjusted(tested), np.cumsum([len(tests.p) for tests in scored])[:-1]))
    rows = [
        hit._replace(q=float(q[np.searchsorted(tests.features, hit.feature)]))
        for tests, q in zip(scored, corrected, strict=True)
        for hit in tests.best
    ]
    pool = "last token" if config.aggregate == "last" else "mean over tokens"
    read_as = {"max": "maximum over tokens", "mean": "mean over tokens", "last": "last token"}[config.aggregate]
    facts = f"{len(tested):,} features were tested; features are read as their {read_as}, directions as their {pool}"
    return FoundFeatures(tuple(rows), (*texts.notes, facts), tuple(beside))


def read(paths: tuple[str | Path, str | Path], lm: LanguageModel, config: FindConfig) -> ContrastTexts:
    """The texts of two files: without repetitions and those in both, in halves by a seeded hash of the text.

    Raises:
        UserError: as :func:`by_contrast`.
    """
    sets, notes = [], []
    paths = (Path(paths[0]), Path(paths[1]))
    for path in paths:
        texts, report = _read(path, lm, config)
        sets.append(dict.fromkeys(texts))
        faults = report.empty + report.bad_lines + report.undecodable
        if faults:
            notes.append(f"{path}: {faults} lines hold no text (first: {report.problems[0]})")
        if len(texts) > len(sets[-1]):
            notes.append(f"{path}: {len(texts) - len(sets[-1])} repeated texts are left out")
    both = sets[0].keys() & sets[1].keys()
    if both:
        notes.append(f"{len(both)} texts that are in both files are left out")
    ordered = [sorted(set(texts) - both, key=lambda text: _draw(config.find_seed, text)) for texts in sets]
    for path, texts in zip(paths, ordered, strict=True):
        require(
            len(texts) >= FEWEST,
            f"contrast: {path} has {len(texts)} different texts of its own and at least {FEWEST} are needed"
            f"{'; ' * bool(notes)}{'; '.join(notes)}",
        )
    tokens = tokenise(lm, [text for texts in ordered for text in texts], literal=config.literal)
    notes += tokens.notes
    require(all(tokens.tokens), "contrast: the tokenizer makes no token of one of the texts; leave it out")
    half = [len(texts) // 2 for texts in ordered]
    choosing = np.concatenate([np.arange(len(texts)) < count for texts, count in zip(ordered, half, strict=True)])
    positive = np.repeat([True, False], [len(texts) for texts in ordered])
    notes.insert(0, f"A: {_counted(paths[0], ordered[0], half[0])}; B: {_counted(paths[1], ordered[1], half[1])}")
    if tokens.truncated:
        notes.append(f"{tokens.truncated} texts are cut at the {lm.max_context} positions of {lm.name}")
    return ContrastTexts(tokens, positive, choosing, notes)


def _read(path: Path, lm: LanguageModel, config: FindConfig) -> tuple[list[str], Report]:
    require(path.is_file(), f"contrast: {path} is no file; give two JSONL files of texts")
    report = Report()
    # The absolute path, since a corpus may also be called `stdlib`.
    source = CorpusConfig(corpus=os.path.abspath(path), corpus_format="jsonl", text_field=config.text_field)
    texts = [document.text for document in documents(source, tokenizer_of(lm), report)]
    fields = ", ".join(sorted(report.fields))
    require(bool(texts) or not fields, f"text_field = {config.text_field!r}: {path} has no such field but {fields}")
    return texts, report


def _counted(path: Path, texts: Sequence[str], choosing: int) -> str:
    return f"{path}, {len(texts)} texts, {choosing} choose and {len(texts) - choosing} measure"


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _aggregate(
    lm: LanguageModel,
    texts: Tokenised,
    site: str,
    chosen: Sequence[RunDictionary],
    config: FindConfig,
    bar: runtime.tqdm,
) -> tuple[dict[str, Float[NDArray, "texts d_sae"]], Float[NDArray, "texts d_in"]]:
    """Codes of every dictionary at ``site`` by text, and the activations themselves; rows that do not count are 0."""
    dictionaries = {dictionary.name: dictionary.weights(lm.device) for dictionary in chosen}
    texts_read = len(texts.tokens)
    codes = {name: np.zeros((texts_read, weights.d_sae), np.float32) for name, weights in dictionaries.items()}
    pooled = np.zeros((texts_read, lm.width(site)), np.float32)
    pool = "last" if config.aggregate == "last" else "mean"
    batch_tokens = min(TOKENS, CODES // max(weights.d_sae for weights in dictionaries.values()))
    for batch in activations(lm, texts, [site], batch_tokens):
        x, real = batch.x[site].float(), batch.real.to(lm.device)
        real &= chosen[0].rule.counts(batch.tokens, x)
        for name, weights in dictionaries.items():
            codes[name][batch.numbers] = _over_tokens(weights.encode(x).clamp_min(0), real, config.aggregate)
        pooled[batch.numbers] = _over_tokens(x, real, pool)
        bar.update(len(batch.numbers))
    for values in codes.values():
        step = values.max(0) / GRID
        np.divide(values, step, out=values, where=step > 0)
        np.round(values, out=values)
        values *= step
    return codes, pooled


def _over_tokens(
    values: Float[Tensor, "texts tokens columns"], real: Bool[Tensor, "texts tokens"], aggregate: str
) -> Float[NDArray, "texts columns"]:
    """One number a text and column, of the ``real`` tokens alone; 0 where a text has none.

    Values are not negative where ``aggregate`` is ``max``.
    """
    values = values * real[..., None]
    if aggregate == "last":
        tokens = torch.arange(values.shape[1], device=values.device)
        out = values[torch.arange(len(values), device=values.device), (real * tokens).argmax(1)]
    else:
        out = values.amax(1) if aggregate == "max" else values.sum(1) / real.sum(1).clamp_min(1)[:, None]
    return out.cpu().numpy()


def _score(
    dictionary: RunDictionary, codes: Float[NDArray, "texts d_sae"], texts: ContrastTexts, config: FindConfig
) -> TestedFeatures:
    """Rank on the choosing half, test on the other, and give the best their intervals."""
    known = knowledge(dictionary, config.conditions)
    features = np.flatnonzero(known.kept & (codes > 0).any(0))
    auroc, apart, p = (np.empty(len(features)) for _ in range(3))
    halves = [(half, texts.positive[half]) for half in (texts.choosing, ~texts.choosing)]
    for start in range(0, len(features), COLUMNS):
        block = slice(start, start + COLUMNS)
        chooses, measures = (codes[np.ix_(half, features[block])] for half, _ in halves)
        auroc[block] = rank_sum(chooses, halves[0][1]).auroc
        apart[block] = _apart(chooses, halves[0][1])
        p[block] = rank_sum(measures, halves[1][1]).p
    best = []
    for place in np.lexsort((features, -apart, -np.abs(auroc - 0.5)))[: config.limit]:
        feature, side = int(features[place]), "A" if auroc[place] >= 0.5 else "B"
        area, effect = _estimates(codes[:, feature], texts, config)
        numbers = (area, effect, float(p[place]), 1.0, float(auroc[place]))
        best.append(ContrastHit(dictionary.site, dictionary.name, feature, side, *numbers, known.of(feature)))
    return TestedFeatures(features, p, best)


def _apart(values: Float[NDArray, "texts columns"], positive: Bool[NDArray, "texts"]) -> Float[NDArray, "columns"]:
    """Distance of the class means in standard deviations: what ranks features of equal AUROC."""
    spread = values.std(0)
    distance = np.abs(values[positive].mean(0) - values[~positive].mean(0))
    return np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 0)


def _adjusted(p: NDArray) -> NDArray:
    return false_discovery_control(p) if len(p) else p


def _estimates(values: NDArray, texts: ContrastTexts, config: FindConfig) -> tuple[Estimate, Estimate]:
    """AUROC and effect on the measuring half."""
    held = ~texts.choosing
    chances = {"resamples": config.resamples, "level": config.level, "seed": config.find_seed}
    return two_groups(values[held], texts.positive[held], OVER, **chances)


def _directions(
    site: str, x: Float[NDArray, "texts d_in"], texts: ContrastTexts, config: FindConfig
) -> list[Comparison]:
    """The linear probe, the mean difference and a random direction, each fixed on the choosing half."""
    a, b = (x[texts.choosing & (texts.positive == side)] for side in (True, False))
    random = np.random.default_rng([config.find_seed, *site.encode()]).normal(size=x.shape[1])
    random *= 1 if rank_sum((x @ random)[texts.choosing, None], texts.positive[texts.choosing]).auroc[0] >= 0.5 else -1
    values = {
        "linear probe": _probe(x, texts, config),
        "mean difference": x @ (a.mean(0) - b.mean(0)),
        "random direction": x @ random,
    }
    return [_measured(site, what, value, texts, config) for what, value in values.items()]


def _probe(x: Float[NDArray, "texts d_in"], texts: ContrastTexts, config: FindConfig) -> Float[NDArray, "texts"]:
    """Decision values of a logistic regression on standardised activations."""
    labels = texts.positive[texts.choosing]
    folds = StratifiedKFold(
        min(5, int(min(labels.sum(), (~labels).sum()))), shuffle=True, random_state=config.find_seed
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, scoring="roc_auc", cv=folds)
    return search.fit(x[texts.choosing].astype(np.float64), labels).decision_function(x.astype(np.float64))


def _lengths(texts: ContrastTexts) -> Float[NDArray, "texts"]:
    return np.array([len(tokens) for tokens in texts.tokens.tokens], dtype=np.float64)


def _measured(site: str, what: str, values: NDArray, texts: ContrastTexts, config: FindConfig) -> Comparison:
    return Comparison(site, what, *_estimates(values, texts, config))
