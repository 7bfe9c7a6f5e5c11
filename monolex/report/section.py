"""The parts of the report that stages add (their ``section``), gathered into chapters."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from monolex import stages
from monolex.artifact import Manifest, model_home, read_json
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
            head = {"key": key, "name": path.partition("/")[2], "notice": notice(manifest, artefacts)}
            facts = describe(key, read_json(run / path / f"{kind}.json"))
            parts.append(Markup(html.page(f"{kind}.html", **head, **facts)))
    return parts


def notice(manifest: Manifest, artefacts: Artefacts) -> str:
    """What an experiment was made of that is another by now, in one sentence; empty if nothing is."""
    changed: dict[str, list[str]] = {"made again since": [], "no longer in this run": []}
    for name, content in manifest.parents.items():
        path = _path(name)
        if path in artefacts and artefacts[path].content != content:
            changed["made again since"].append(path)
        elif path not in artefacts and name != "task":
            changed["no longer in this run"].append(path)
    said = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in changed.items() if names)
    return f"This is not of what lies in this run now ({said}): run it again." if said else ""


def _path(parent: str) -> str:
    """The path in the run of a parent, whose name is ``activations``, ``features`` or ``MODEL.FOLDER.NAME``."""
    model, _, rest = parent.partition(".")
    folder, _, name = rest.partition(".")
    if not rest:
        return parent
    return (model_home(Path(), model) / folder / name).as_posix()
