"""What a run says of its features: explanations with their examples, and scores with all that was predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from monolex.artifact import MANIFEST, open_artifact, placed, read_json
from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError, nearest
from monolex.interp.explain.saved import KIND, Explanations, unchanged
from monolex.interp.records import Examples, Failure, Scored
from monolex.interp.score import cards
from monolex.interp.score.stage import MEANS
from monolex.publish.config import PublishConfig


class Moments(NamedTuple):
    """Of a feature's activations over all tokens of the explained fragments; about zero from the third on."""

    mean: float
    """First moment."""
    variance: float
    """Mean square less squared mean."""
    skew: float
    """Third moment about zero over variance^1.5; NaN where the variance is 0."""
    kurtosis: float
    """Fourth moment about zero over variance²."""


class ScoredIn(NamedTuple):
    """A score artefact."""

    path: str
    """In the run."""
    content: str
    """Hash of its content."""


class SaidOfFeature(NamedTuple):
    """An explanation of a feature, and its scores."""

    explainer: str
    """Who says so."""
    text: str
    """What it says."""
    scored: tuple[Scored, ...]
    """By each simulator, with all of its predictions; empty where it was not scored."""
    scored_in: tuple[ScoredIn, ...]
    """The artefact of each of these."""
    artefact: str
    """Name of the explanations in the run."""
    model: str
    """The language model that wrote it; empty where a rule did."""
    when: str
    """When the explanations were finished, in UTC."""


@dataclass(frozen=True, eq=False)
class ExplainedFeature:
    """A feature that was explained."""

    feature: int
    """Its number."""
    examples: Examples
    """From what it was explained and on what it was scored."""
    moments: Moments
    """Of its activations."""
    explanations: tuple[SaidOfFeature, ...]
    """What was said of it."""


def explanation_folders(run: Path, names: Sequence[str]) -> list[Path]:
    """The finished explanations of a run called ``names``, or all of them.

    Raises:
        UserError: there is none of a name.
    """
    known = {path.parent.name: path.parent for path in sorted((run / KIND).glob(f"*/{MANIFEST}"))}
    for name in names:
        if name not in known:
            hint = nearest(name, list(known)) if known else "run monolex explain first"
            raise UserError(f"explanations = {name!r}: {run} holds none of that name; {hint}")
    return [known[name] for name in names or known]


def score_folders(run: Path, explanations: Path) -> list[Path]:
    """The scores in a run that are of these explanations, by name."""
    folders = []
    for folder in cards.artefacts(run):
        place = read_json(folder / MEANS)["explanations"]
        if placed(folder, place).resolve() == explanations.resolve() and unchanged(folder, place):
            folders.append(folder)
    return folders


def explained_features(run: Path, dictionary: RunDictionary, config: PublishConfig) -> list[ExplainedFeature]:
    """The explained features of a dictionary that the configuration asks for, by number.

    Examples and moments are those of the first explanations that have the feature.

    Raises:
        UserError: an artefact is damaged, or there are no explanations of a name that is asked for.
    """
    features: dict[int, ExplainedFeature] = {}
    for folder in explanation_folders(run, config.explanations):
        for feature in _read(run, folder, dictionary, config):
            before = features.get(feature.feature)
            said = feature.explanations if before is None else (*before.explanations, *feature.explanations)
            first = before or feature
            features[feature.feature] = ExplainedFeature(first.feature, first.examples, first.moments, said)
    return [features[number] for number in sorted(features)]


def _read(run: Path, folder: Path, dictionary: RunDictionary, config: PublishConfig) -> list[ExplainedFeature]:
    saved = Explanations(folder)
    if dictionary.key not in saved.facts:
        return []
    explained = saved.read(dictionary.key)
    key = dictionary.model, dictionary.site, dictionary.name
    scored = [
        (_scored_in(run, scores), cards.scored(run, [scores.name], only=key, whole=True).get(key, {}))
        for scores in score_folders(run, folder)
    ]
    when = _finished(folder)
    features = []
    for i, examples in enumerate(explained.examples):
        number = examples.feature
        if config.features and number not in config.features:
            continue
        said = []
        for explainer, written in explained.explanations.items():
            explanation = written[i]
            if (config.explainers and explainer not in config.explainers) or isinstance(explanation, Failure):
                continue
            lines = [
                (source, line)
                for source, by_number in scored
                for line in by_number.get(number, ())
                if line.row["explainer"] == explainer
            ]
            scores, sources = tuple(line for _, line in lines), tuple(source for source, _ in lines)
            model = saved.manifest.config.get("llm", "") if explanation.rule is None else ""
            said.append(SaidOfFeature(explainer, explanation.text, scores, sources, folder.name, model, when))
        moments = Moments(*(float(column[i]) for column in explained.moments))
        if said:
            features.append(ExplainedFeature(number, examples, moments, tuple(said)))
    return features


def _scored_in(run: Path, folder: Path) -> ScoredIn:
    return ScoredIn(folder.relative_to(run).as_posix(), open_artifact(folder).content)


def _finished(folder: Path) -> str:
    moment = datetime.fromtimestamp(int((folder / MANIFEST).stat().st_mtime), UTC)
    return moment.isoformat().replace("+00:00", "Z")
