"""What an artefact says of a dictionary counts only if it was made of the sweep or the baselines that lie there now.

A dictionary that is made again keeps its name; what was measured of the one before does not become true of it.
"""

from collections.abc import Mapping
from pathlib import Path

from monolex import stages
from monolex.artifact import MANIFEST, Manifest, open_artifact
from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError

EXPERIMENTS = ("explain", "score", "ablate", "tree", "patch", "stability")
"""Kinds of artefacts that say something of dictionaries and their features, beside the evaluation."""


def experiments(run: Path, damaged: dict[str, str]) -> dict[str, Manifest]:
    """The finished artefacts of a run of these kinds, by their path in it.

    What is wrong with one that cannot be read is put into ``damaged``.
    """
    patterns = [(kind, f"{stage.home}/*/{MANIFEST}") for kind in EXPERIMENTS if (stage := stages.of_kind(kind))]
    manifests = {}
    for kind, path in [(kind, path.parent) for kind, pattern in patterns for path in sorted(run.glob(pattern))]:
        name = path.relative_to(run).as_posix()
        try:
            manifests[name] = open_artifact(path, kind)
        except UserError as error:
            damaged[name] = str(error)
    return manifests


def made_of(manifest: Manifest, artefacts: Mapping[str, Manifest]) -> set[str]:
    """Content hashes of all that an artefact was made of; of a score also what its explanations were made of."""
    contents = set(manifest.parents.values())
    for other in artefacts.values():
        if other.kind == "explain" and other.content in contents:
            contents |= set(other.parents.values())
    return contents


def of_dictionaries(
    dictionaries: Mapping[str, RunDictionary], artefacts: Mapping[str, Manifest]
) -> dict[str, frozenset[str]]:
    """By the hash of every dictionary the artefacts that were made of it, by their path in the run."""
    sources = {
        source: open_artifact(source).content for source in dict.fromkeys(d.source for d in dictionaries.values())
    }
    parents = {path: made_of(manifest, artefacts) for path, manifest in artefacts.items()}
    return {
        key: frozenset(path for path, contents in parents.items() if sources[dictionary.source] in contents)
        for key, dictionary in dictionaries.items()
    }
