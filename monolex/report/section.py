"""The parts of the report that stages add (their ``section``), gathered into chapters."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex import stages
from monolex.artifact import MANIFEST, Manifest, model_home, read_json
from monolex.pages import html

Artefacts = Mapping[str, Manifest]
"""Artefacts of a run by their path in it."""


class Chapter(NamedTuple):
    """A part of the page with a heading."""

    key: str
    """Its anchor."""
    link: str
    """As the list of chapters calls it."""
    heading: str
    """As it calls itself."""
    guide: Markup
    """How to read it."""


INTERPRETATION = Chapter(
    "interpretation",
    "Explanations",
    "Automatic interpretation",
    Markup(
        "Explanations of features are tested: activations are predicted from them on other text, and "
        "correlated with the real ones. 1 is perfect, 0 is no relation. The dotted line is what explanations "
        "of <em>other</em> features of the same dictionary score."
    ),
)
CAUSES = Chapter(
    "causes",
    "Causes",
    "What features cause",
    Markup(
        "Everything above watches features; here they are changed, and what the model then does is compared "
        "with what it did. An edit changes no more than the activations of the features it names: the "
        "reconstruction error stays."
    ),
)
FIRST = (INTERPRETATION, CAUSES)
"""Chapters in the order of the page; others follow in the order of their stages."""


class Section(NamedTuple):
    """What one stage has to say in the report of a run."""

    chapter: Chapter
    """Where it stands."""
    parts: list[Markup]
    """One below the other."""


def chapters(run: Path, artefacts: Artefacts, listed: Collection[str] | None) -> list[tuple[Chapter, list[Markup]]]:
    """What every stage has to say of the artefacts of a run; ``listed`` are those of its run.toml, if there is one."""
    gathered: dict[Chapter, list[Markup]] = {chapter: [] for chapter in FIRST}
    for stage in stages.STAGES:
        if section := stage.load("section"):
            chapter, parts = section(run, artefacts, listed)
            gathered.setdefault(chapter, []).extend(parts)
    return [(chapter, parts) for chapter, parts in gathered.items() if parts]


def parts_of_kind(
    kind: str, run: Path, artefacts: Artefacts, describe: Callable[[str, Any], Mapping[str, Any]]
) -> list[Markup]:
    """A part for every artefact of a kind: the template ``KIND.html`` filled with what ``describe`` says of it."""
    parts: list[Markup] = []
    for path, manifest in artefacts.items():
        if manifest.kind == kind:
            key = f"{kind}-{len(parts) + 1}"
            head = {"key": key, "name": path.partition("/")[2], "notice": notice(run, manifest, artefacts)}
            facts = describe(key, read_json(run / path / f"{kind}.json"))
            parts.append(Markup(html.page(f"{kind}.html", **head, **facts)))
    return parts


def notice(run: Path, manifest: Manifest, artefacts: Artefacts) -> str:
    """What an experiment was made of that is another by now, is gone or cannot be read; empty if nothing is.

    ``artefacts`` are those of the run that can be read.
    """
    again, gone, unread = [], [], []
    for name, content in manifest.parents.items():
        path = _path(name)
        if path in artefacts:
            again += [path] if artefacts[path].content != content else []
        elif name != "task":
            (unread if (run / path / MANIFEST).exists() else gone).append(path)
    said = [
        (again, "made again since, so this is of what was there before: run it again."),
        (gone, "taken out of this run: what is said here cannot be checked against it or made again."),
        (unread, "damaged or written by another version: whether this is of it cannot be told until it is made again."),
    ]
    return " ".join(f"{_named(paths)} {told}" for paths, told in said if paths)


def _named(paths: Collection[str]) -> str:
    names = sorted(paths)
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"{listed} {'were' if len(names) > 1 else 'was'}"


def _path(parent: str) -> str:
    """The path in the run of a parent, whose name is ``activations``, ``features`` or ``MODEL.FOLDER.NAME``."""
    model, _, rest = parent.partition(".")
    folder, _, name = rest.partition(".")
    if not rest:
        return parent
    return (model_home(Path(), model) / folder / name).as_posix()
