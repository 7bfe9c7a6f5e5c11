"""Which scores of a run may stand beside each other: those of one simulator, one mode and one protocol.

Artefacts of which all three hold are joined, so that dictionaries may be scored bit by bit; the others stay apart, and
so do scores of explanations that are gone or were made anew since.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import MANIFEST, digest, open_artifact, read_json
from monolex.config import require
from monolex.dictionaries.listing import name_fits
from monolex.errors import UserError, nearest
from monolex.interp.config import FigureConfig
from monolex.interp.explain import saved

Facts = Mapping[str, Any]
CHOICE = ("sites", "dictionaries", "matched", "controls", "checkpoints", "features", "explainers")
"""Fields of ExplainConfig that say which features are explained rather than how, so that they may differ."""


class NoScores(UserError):
    """There are scores, but none for the figure that was asked for."""


class Source(NamedTuple):
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


class Group(NamedTuple):
    """Score artefacts whose numbers may stand beside each other."""

    sources: tuple[Source, ...]
    """They have one simulator, one mode and one protocol, and none scores what another does."""

    @property
    def head(self) -> dict[str, Any]:
        """What they have in common."""
        first = self.sources[0].content
        common = {name: first[name] for name in ("simulator", "mode", "level")}
        return {"scores": [one.name for one in self.sources], **common}

    def dictionaries(self, patterns: Sequence[str] = ()) -> list[Facts]:
        """Their dictionaries, those that one of the patterns fits."""
        found = [one for source in self.sources for one in source.content["dictionaries"]]
        return [one for one in found if not patterns or _fits(one, patterns)]


def sources(run: Path, names: Sequence[str] = ()) -> list[Source]:
    """The finished score artefacts of a run, all or those of these names.

    Raises:
        UserError: there is none, or none of such a name.
    """
    found = {path.parent.name: path.parent for path in sorted(run.glob(f"score/*/{MANIFEST}"))}
    if not found:
        raise UserError(f"{run} has no scores; run `monolex explain {run}`, then `monolex score {run}`")
    for name in names:
        require(name in found, f"scores = {name!r}: {run / 'score'} has none; {nearest(name, list(found))}")
    made = []
    for name in dict.fromkeys(names or found):
        open_artifact(found[name], "score")
        made.append(Source(name, found[name], read_json(found[name] / "score.json")))
    return made


def joined(found: Iterable[Source]) -> list[Group]:
    """Those that can be compared together; one that scores again what another did stays apart from it."""
    alike: dict[str, list[list[Source]]] = {}
    for one in found:
        homes = alike.setdefault(_protocol(one), [])
        home = next((some for some in homes if not any(one.keys() & other.keys() for other in some)), None)
        if home is None:
            homes.append([one])
        else:
            home.append(one)
    return [Group(tuple(some)) for homes in alike.values() for some in homes]


def require_known(groups: Sequence[Group], config: FigureConfig) -> None:
    """Refuse explainers and dictionaries that no artefact has.

    Raises:
        UserError: naming the first such.
    """
    everything = [one for group in groups for one in group.dictionaries()]
    explainers = list(dict.fromkeys(name for one in everything for name in one["explainers"]))
    for name in config.explainers:
        require(name in explainers, f"explainers = {name!r}: nothing of it was scored; {nearest(name, explainers)}")
    for pattern in config.dictionaries:
        hint = nearest(pattern, list(dict.fromkeys(one["name"] for one in everything)))
        known = any(_fits(one, (pattern,)) for one in everything)
        require(known, f"dictionaries = {pattern!r}: none like it was scored; {hint}")


def explainers_of(group: Group, config: FigureConfig) -> list[list[str]]:
    """Explainers of every panel."""
    known = dict.fromkeys(name for one in group.dictionaries() for name in one["explainers"])
    chosen = [name for name in known if not config.explainers or name in config.explainers]
    return [chosen] * bool(chosen) if config.together else [[name] for name in chosen]


def _protocol(source: Source) -> str:
    """What must agree for scores to be compared: how they were made, and how their explanations were."""
    content = source.content
    # where the explanations are gone or others lie there, nobody knows how those that were scored were made
    made: Any = source.name
    if saved.unchanged(source.folder, content["explanations"]):
        config = open_artifact((source.folder / content["explanations"]).resolve()).config
        made = {name: value for name, value in config.items() if name not in CHOICE}
    return digest([content["simulator"], content["mode"], content["level"], made])


def _fits(one: Facts, patterns: Sequence[str]) -> bool:
    return name_fits(one["site"], one["name"], patterns, one["method"])
