"""The dictionaries of a run and the stores of their evidence, by site and name as the evaluation calls them."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from monolex.artifact import MANIFEST, Manifest, open_artifact
from monolex.config import require
from monolex.dictionaries.base import Dictionary, load
from monolex.errors import UserError
from monolex.evals.inputs import open_inputs
from monolex.features.found import Known
from monolex.features.query import Condition, as_sql, nearest
from monolex.features.store import FeatureStore

SUBJECT = "subject"


@dataclass(frozen=True)
class Member:
    """One dictionary of a run."""

    site: str
    """Where it reads."""
    name: str
    """Unique at its site."""
    folder: Path
    """Its weights."""
    d_sae: int
    """Number of features."""
    evidence: Path | None
    """Its store, where evidence was gathered."""

    @property
    def title(self) -> str:
        """``SITE/NAME``."""
        return f"{self.site}/{self.name}"

    def weights(self, device: str = "cpu") -> Dictionary:
        """The dictionary itself."""
        return load(self.folder, device)

    def store(self) -> FeatureStore:
        """Its evidence.

        Raises:
            UserError: none was gathered.
        """
        if self.evidence is None:
            raise UserError(f"nothing was gathered of {self.title}; run monolex features for it first")
        return FeatureStore(self.evidence)


@dataclass(frozen=True)
class Knowledge:
    """What the store of a dictionary, if there is one, says of all its features."""

    kept: Bool[NDArray, "d_sae"]
    """Features that the conditions keep."""
    largest: tuple[float, ...] = ()
    """Largest activation seen of every feature; empty where nothing was gathered, as ``known``."""
    known: tuple[Known, ...] = ()
    """The rest."""

    def of(self, feature: int) -> Known:
        """What is known of one feature."""
        return self.known[feature] if self.known else Known()

    def of_max(self, feature: int, activation: float) -> float | None:
        """``activation`` over the largest seen; None where nothing was gathered or it was never active."""
        largest = self.largest[feature] if self.largest else 0
        return activation / largest if largest > 0 else None


def knowledge(member: Member, conditions: Sequence[Condition]) -> Knowledge:
    """Read the store of ``member`` for what stands beside every answer.

    Raises:
        UserError: there are conditions and nothing was gathered.
    """
    if member.evidence is None and not conditions:
        return Knowledge(np.ones(member.d_sae, dtype=bool))
    with closing(member.store()) as store:
        query = "SELECT density, max, text FROM feature LEFT JOIN vocabulary ON token = top_token ORDER BY feature.id"
        rows = store.rows(query)
        kept = np.zeros(len(rows), dtype=bool)
        kept[[summary.id for summary in store.summaries(*as_sql(conditions))]] = True
    known = tuple(Known(density, text) for density, _, text in rows)
    return Knowledge(kept, tuple(largest for _, largest, _ in rows), known)


def members(run: Path) -> list[Member]:
    """Every finished dictionary of a run (control models apart), in the order of the evaluation.

    Raises:
        UserError: no run, no dictionary in it, or evidence of dictionaries that were made anew since.
    """
    require((run / "activations").is_dir(), f"{run} is no folder of a run (no activations in it); give one")
    stages = {stage: _manifest(run / stage) for stage in ("eval", "features")}
    # A name that two sources share is told apart by their order, which those who read them all wrote down.
    written = [content for made in stages.values() if made for content in made.parents.values()]
    paths = [path.parent for part in ("train", "baselines") for path in sorted((run / part).glob(f"*/{MANIFEST}"))]
    contents = {path: open_artifact(path).content for path in paths}
    sources = sorted(
        paths, key=lambda path: written.index(contents[path]) if contents[path] in written else len(written)
    )
    inputs = open_inputs(SUBJECT, run / "activations", sources, run)
    gathered = stages["features"]
    stores = {} if gathered is None else {(s["site"], s["name"]): s["path"] for s in gathered.data["stores"]}
    found = []
    for site, entries in inputs.entries.items():
        for entry in entries:
            path = stores.get((site, entry.name))
            if path is not None and gathered and contents[sources[entry.source]] not in gathered.parents.values():
                raise UserError(
                    f"{run / 'features'} was gathered before {sources[entry.source]} was made; gather again"
                )
            evidence = None if path is None else run / "features" / path
            found.append(Member(site, entry.name, entry.folder, entry.row["d_sae"], evidence))
    return found


def fits(member: Member, patterns: Sequence[str]) -> bool:
    """Whether its ``SITE/NAME``, site or name fits one of the patterns."""
    return name_fits(member.site, member.name, patterns)


def name_fits(site: str, name: str, patterns: Sequence[str], *others: str) -> bool:
    """Whether ``SITE/NAME``, the site, the name or one of the ``others`` fits one of the patterns."""
    return any(fnmatchcase(text, one) for one in patterns for text in (f"{site}/{name}", site, name, *others))


def control_runs(run: Path) -> list[Path]:
    """The folders of a run's control models that were harvested; each is laid out as a run."""
    homes = sorted((run / "controls").glob("*/"))
    return [home for home in homes if (home / "activations" / MANIFEST).exists()]


def choose(found: Sequence[Member], patterns: Sequence[str]) -> list[Member]:
    """Those that one of the patterns :func:`fits`; all where there is none.

    Raises:
        UserError: a pattern fits nothing.
    """
    chosen: dict[str, Member] = {} if patterns else {member.title: member for member in found}
    for pattern in patterns:
        fitting = [member for member in found if fits(member, (pattern,))]
        if not fitting:
            hint = nearest(pattern, [member.title for member in found])
            raise UserError(f"dictionary = {pattern!r}: the run has none like it; {hint}")
        chosen |= {member.title: member for member in fitting}
    return [member for member in found if member.title in chosen]


def gathered(found: Sequence[Member]) -> list[Member]:
    """Those with evidence; a run may gather that of a few dictionaries only.

    Raises:
        UserError: there is none.
    """
    some = [member for member in found if member.evidence is not None]
    if not some:
        raise UserError(f"nothing was gathered of {found[0].title}; run monolex features for it first")
    return some


def _manifest(folder: Path) -> Manifest | None:
    return open_artifact(folder) if (folder / MANIFEST).exists() else None
