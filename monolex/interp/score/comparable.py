"""Which scores of a run may stand beside each other: those of one simulator, one mode and one protocol.

Artefacts of which all three hold are joined, so that dictionaries may be scored bit by bit; the others stay apart, and
so do scores of explanations that are gone or were made anew since.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import MANIFEST, digest, open_artifact, placed, read_json
from monolex.dictionaries.listing import name_fits
from monolex.errors import UserError, nearest
from monolex.interp.config import FigureConfig
from monolex.interp.explain import saved

Facts = Mapping[str, Any]
CHOICE = ("sites", "dictionaries", "matched", "controls", "checkpoints", "features", "explainers")
"""Fields of ExplainConfig that say which features are explained rather than how, so that they may differ."""


class NoScores(UserError):
    """There are no scores for the figure that was asked for."""


class NotScored(UserError):
    """A name that was asked for is of nothing that was scored."""


class ScoreSource(NamedTuple):
    """One score artefact."""

    name: str
    """Its folder in RUN/score."""
    folder: Path
    """Where it lies."""
    content: Facts
    """Its score.json."""

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its scores.jsonl: a feature and explainer each."""
        return saved.read_lines(self.folder / "scores.jsonl")

    def keys(self) -> set[tuple[str, ...]]:
        """What it scores: model, site, name and explainer."""
        return {(d["model"], d["site"], d["name"], e) for d in self.content["dictionaries"] for e in d["explainers"]}


class ComparableScores(NamedTuple):
    """Score artefacts whose numbers may stand beside each other."""

    sources: tuple[ScoreSource, ...]
    """They have one simulator, one mode and one protocol, and none scores what another does."""

    @property
    def head(self) -> dict[str, Any]:
        """What they have in common."""
        first = self.sources[0].content
        common = {name: first[name] for name in ("simulator", "mode", "level")}
        return {"scores": [source.name for source in self.sources], **common}

    def dictionaries(self, patterns: Sequence[str] = ()) -> list[Facts]:
        """Their dictionaries, those that one of the patterns fits."""
        listed = [dictionary for source in self.sources for dictionary in source.content["dictionaries"]]
        return [dictionary for dictionary in listed if not patterns or _fits(dictionary, patterns)]


def sources(run: Path, names: Sequence[str] = ()) -> list[ScoreSource]:
    """The finished score artefacts of a run, all or those of these names.

    Raises:
        NoScores: there is none.
        NotScored: none of such a name.
        UserError: one is damaged.
    """
    folders = {path.parent.name: path.parent for path in sorted(run.glob(f"score/*/{MANIFEST}"))}
    if not folders:
        raise NoScores(f"{run} has no scores; run `monolex explain {run}`, then `monolex score {run}`")
    for name in names:
        _require_scored(name in folders, f"scores = {name!r}: {run / 'score'} has none; {nearest(name, list(folders))}")
    opened = []
    for name in dict.fromkeys(names or folders):
        open_artifact(folders[name], "score")
        opened.append(ScoreSource(name, folders[name], read_json(folders[name] / "score.json")))
    return opened


def joined(listed: Iterable[ScoreSource]) -> list[ComparableScores]:
    """Those that can be compared together; one that scores again what another did stays apart from it."""
    by_protocol: dict[str, list[list[ScoreSource]]] = {}
    for source in listed:
        groups = by_protocol.setdefault(_protocol(source), [])
        # the first group that does not score it yet, since nobody could say which of two scores of one thing counts
        group = next((group for group in groups if not any(source.keys() & other.keys() for other in group)), None)
        if group is None:
            groups.append([source])
        else:
            group.append(source)
    return [ComparableScores(tuple(group)) for groups in by_protocol.values() for group in groups]


def require_known(groups: Sequence[ComparableScores], config: FigureConfig) -> None:
    """Refuse explainers and dictionaries that no artefact has.

    Raises:
        NotScored: naming the first such.
    """
    dictionaries = [dictionary for group in groups for dictionary in group.dictionaries()]
    explainers = list(dict.fromkeys(name for dictionary in dictionaries for name in dictionary["explainers"]))
    for name in config.explainers:
        _require_scored(
            name in explainers, f"explainers = {name!r}: nothing of it was scored; {nearest(name, explainers)}"
        )
    for pattern in config.dictionaries:
        hint = nearest(pattern, list(dict.fromkeys(dictionary["name"] for dictionary in dictionaries)))
        known = any(_fits(dictionary, (pattern,)) for dictionary in dictionaries)
        _require_scored(known, f"dictionaries = {pattern!r}: none like it was scored; {hint}")


def explainers_of(group: ComparableScores, config: FigureConfig) -> list[list[str]]:
    """Explainers of every panel."""
    known = dict.fromkeys(name for dictionary in group.dictionaries() for name in dictionary["explainers"])
    chosen = [name for name in known if not config.explainers or name in config.explainers]
    return [chosen] * bool(chosen) if config.together else [[name] for name in chosen]


def _require_scored(condition: bool, sentence: str) -> None:
    if not condition:
        raise NotScored(sentence)


def _protocol(source: ScoreSource) -> str:
    """What must agree for scores to be compared: how they were made, and how their explanations were."""
    content = source.content
    # where the explanations are gone or others lie there, nobody knows how those that were scored were made
    protocol: Any = source.name
    if saved.unchanged(source.folder, content["explanations"]):
        config = open_artifact(placed(source.folder, content["explanations"])).config
        protocol = {name: value for name, value in config.items() if name not in CHOICE}
    return digest([content["simulator"], content["mode"], content["level"], protocol])


def _fits(dictionary: Facts, patterns: Sequence[str]) -> bool:
    return name_fits(dictionary["site"], dictionary["name"], patterns, dictionary["method"])
