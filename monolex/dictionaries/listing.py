"""The dictionaries of a run, of its model and of its control models, by site and name as the evaluation calls them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from monolex.activations.constant import constant_sites
from monolex.activations.rule import EVERY_ROW, RowRule, row_rule
from monolex.artifact import (
    CONTROLS,
    MANIFEST,
    SUBJECT,
    FileEntry,
    Manifest,
    digest,
    file_hash,
    model_home,
    open_artifact,
)
from monolex.config import require
from monolex.dictionaries.base import CONFIG, WEIGHTS, Dictionary, DictionaryConfig, load, read_config
from monolex.errors import UserError, nearest
from monolex.kinds import KINDS
from monolex.model.sites import select
from monolex.runtime import log

CHECKPOINTS = "checkpoints"
"""The folder of a sweep that holds its dictionaries along training, ``STEP/SITE/NAME``."""


@dataclass(frozen=True)
class RunDictionary:
    """One dictionary of a run."""

    model: str
    """:data:`~monolex.artifact.SUBJECT`, or the control model's name."""
    site: str
    """Where it reads."""
    name: str
    """Unique within model and site; ``NAME@STEP`` along training."""
    folder: Path
    """Its weights."""
    config: DictionaryConfig
    """What it is."""
    evidence: Path | None = None
    """The store of its features, where evidence was gathered."""
    step: int | None = None
    """Of a sweep's checkpoint."""
    activations: Path | None = None
    """What it was made from."""

    @property
    def title(self) -> str:
        """``SITE/NAME``."""
        return f"{self.site}/{self.name}"

    @property
    def key(self) -> str:
        """``MODEL/SITE/NAME``."""
        return f"{self.model}/{self.title}"

    @property
    def source(self) -> Path:
        """The sweep or the baselines that it lies in."""
        return self.folder.parents[1 if self.step is None else 3]

    @property
    def trained(self) -> bool:
        """Whether it is of a sweep, not a baseline."""
        return self.config.kind in KINDS

    @property
    def content(self) -> str:
        """Hash of its weights and of what it is: two with the same do the same, whatever lies beside them."""
        return digest([file_hash(self.folder / name) for name in (WEIGHTS, CONFIG)])

    @property
    def rule(self) -> RowRule:
        """Which activations count at its site, as in those that it was made from."""
        return EVERY_ROW if self.activations is None else row_rule(self.activations, self.site)

    def weights(self, device: torch.device | str = "cpu") -> Dictionary:
        """The dictionary itself."""
        return load(self.folder, device)


def control_models(run: Path) -> list[str]:
    """The control models of a run that were harvested."""
    return sorted(path.parents[1].name for path in (run / CONTROLS).glob(f"*/activations/{MANIFEST}"))


def run_dictionaries(run: Path, model: str = SUBJECT, damaged: dict[str, str] | None = None) -> list[RunDictionary]:
    """Every finished dictionary that a run has of a model, in the order of the evaluation.

    Given ``damaged``, an evaluation or evidence that cannot be read is left out, and what is wrong with it is put
    there by its path in the run; the stores of evidence are then not looked at.

    Raises:
        UserError: no run, no dictionary in it, or evidence of dictionaries that were made anew since.
    """
    folder = model_home(run, model)
    require((folder / "activations").is_dir(), f"{folder} is no folder of a run (no activations in it); give one")
    finished = [name for name in ("eval", "features") if (folder / name / MANIFEST).exists()]
    stages: dict[str, Manifest] = {}
    for name in finished:
        try:
            stages[name] = open_artifact(folder / name, whole=damaged is None)
        except UserError as error:
            if damaged is None:
                raise
            damaged[name] = str(error)
    # A name that two sources share is told apart by their order, which those who read them all wrote down.
    written = [content for manifest in stages.values() for content in manifest.parents.values()]
    paths = [path.parent for part in ("train", "baselines") for path in sorted((folder / part).glob(f"*/{MANIFEST}"))]
    contents = {path: open_artifact(path).content for path in paths}
    sources = sorted(
        paths, key=lambda path: written.index(contents[path]) if contents[path] in written else len(written)
    )
    listed = source_dictionaries(folder / "activations", sources, model)
    unordered = any(content not in written for content in contents.values())
    if damaged and unordered and any("/" in dictionary.name for dictionary in listed):
        # names that sources share could be exchanged
        raise UserError(next(iter(damaged.values())))
    if "features" not in stages:
        return listed
    features = stages["features"]
    stores = {(store["site"], store["name"]): folder / "features" / store["path"] for store in features.data["stores"]}
    for dictionary in listed:
        stale = contents[dictionary.source] not in features.parents.values()
        if stale and (store := stores.pop((dictionary.site, dictionary.name), None)):
            why = f"{folder / 'features'} was gathered before {dictionary.source} was made; gather again"
            if damaged is None:
                raise UserError(why)
            damaged[store.relative_to(run).as_posix()] = why
    return [replace(dictionary, evidence=stores.get((dictionary.site, dictionary.name))) for dictionary in listed]


def source_dictionaries(activations: Path, sources: Sequence[Path], model: str = SUBJECT) -> list[RunDictionary]:
    """The dictionaries in ``sources`` (sweeps and baselines), which were made from ``activations``, site by site.

    A name that two sources share gets the later source's folder in front.

    Raises:
        UserError: an artefact is not finished, a source was made from other activations, a member has changed since,
            or there is no dictionary.
    """
    content = open_artifact(activations, "activations").content
    sites: dict[str, dict[str, RunDictionary]] = {}
    for number, source in enumerate(sources):
        manifest = open_artifact(source)
        if manifest.kind not in ("sweep", "baselines"):
            raise UserError(f"{source} is an artefact of kind {manifest.kind}; give folders of sweeps or baselines")
        if manifest.parents.get("activations") != content:
            raise UserError(f"{source} was not made from {activations}; give the activations it was made from")
        for member in manifest.data["members"]:
            folder, site = source / member["path"], member["site"]
            _require_unchanged(folder / CONFIG, manifest.files.get(f"{member['path']}/{CONFIG}"))
            named = sites.setdefault(site, {})
            name = f"{source.name}/{folder.name}" if folder.name in named else folder.name
            twice = name in named or source in sources[:number]
            require(not twice, f"{source} is given twice, or two sources share its name")
            named[name] = RunDictionary(model, site, name, folder, read_config(folder), activations=activations)
    if not sites:
        raise UserError(f"no dictionaries to evaluate on {activations}; give a folder of a sweep or of baselines")
    return [dictionary for named in sites.values() for dictionary in named.values()]


def _require_unchanged(path: Path, entry: FileEntry | None) -> None:
    """Refuse another dictionary in the place of a member; what is in its weights, loading compares with its config."""
    if entry is not None and path.exists() and file_hash(path) != entry.sha256:
        raise UserError(f"{path} has changed since it was written; make this dictionary again")


def chosen_dictionaries(
    run: Path, sites: Sequence[str], patterns: Sequence[str], *, controls: bool
) -> list[RunDictionary]:
    """The dictionaries of a run at ``sites`` that fit ``patterns`` (all for none), by site in the order asked for.

    With ``controls`` those of its control models stand behind the subject's; these have fewer, so a pattern need not
    fit any of them. Constant sites are left out.

    Raises:
        UserError: no run, or a site or pattern that fits nothing.
    """
    listed = run_dictionaries(run)
    constant = constant_sites(run / "activations")
    known = dict.fromkeys((*by_site(listed), *constant))
    wanted = [site for site in select(sites, tuple(known), str(run)) if site not in constant]
    kept = choose([dictionary for dictionary in listed if dictionary.site in wanted], patterns)
    for model in control_models(run) if controls else ():
        kept += [
            dictionary
            for dictionary in run_dictionaries(run, model)
            if dictionary.site in wanted and (not patterns or fits(dictionary, patterns))
        ]
    return sorted(kept, key=lambda dictionary: wanted.index(dictionary.site))


def by_site(dictionaries: Iterable[RunDictionary]) -> dict[str, list[RunDictionary]]:
    """Dictionaries by site, in the order in which they come."""
    sites: dict[str, list[RunDictionary]] = {}
    for dictionary in dictionaries:
        sites.setdefault(dictionary.site, []).append(dictionary)
    return sites


def checkpoints(dictionary: RunDictionary) -> list[RunDictionary]:
    """What its sweep kept of a trained dictionary, in the order of training; nothing of a baseline."""
    kept = dictionary.source / CHECKPOINTS
    steps = sorted(int(path.name) for path in kept.glob("*") if path.name.isdecimal()) if dictionary.trained else []
    dictionary = replace(dictionary, evidence=None)
    folders = {step: kept / str(step) / dictionary.site / dictionary.folder.name for step in steps}
    return [
        replace(dictionary, name=f"{dictionary.name}@{step}", folder=folder, config=read_config(folder), step=step)
        for step, folder in folders.items()
    ]


def choose(listed: Sequence[RunDictionary], patterns: Sequence[str]) -> list[RunDictionary]:
    """Those that one of the patterns :func:`fits`; all where there is none.

    A pattern that fits nothing but what was given up is passed over, with a warning.

    Raises:
        UserError: a pattern fits nothing.
    """
    for pattern in patterns:
        if not any(fits(dictionary, (pattern,)) for dictionary in listed):
            if gone := _given_up(listed, pattern):
                log.warning("dictionaries = %r: %s is left out: %s", pattern, gone["name"], gone["reason"])
                continue
            hint = nearest(pattern, [dictionary.title for dictionary in listed])
            raise UserError(f"dictionaries = {pattern!r}: the run has none like it; {hint}")
    return [dictionary for dictionary in listed if not patterns or fits(dictionary, patterns)]


def _given_up(listed: Sequence[RunDictionary], pattern: str) -> dict[str, str] | None:
    """What a pattern may mean among the baselines that came to nothing where those listed come from."""
    for source in dict.fromkeys(dictionary.source for dictionary in listed):
        for gone in open_artifact(source).data.get("given_up", ()):
            if fnmatchcase(pattern.split("/")[-1], f"{gone['name']}*"):
                return gone
    return None


def fits(dictionary: RunDictionary, patterns: Sequence[str]) -> bool:
    """Whether its ``SITE/NAME``, site or name fits one of the patterns."""
    return name_fits(dictionary.site, dictionary.name, patterns)


def name_fits(site: str, name: str, patterns: Sequence[str], *others: str) -> bool:
    """Whether ``SITE/NAME``, the site, the name or one of the ``others`` fits one of the patterns."""
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in (f"{site}/{name}", site, name, *others))


def parents(folders: Mapping[str, Path]) -> dict[str, str]:
    """The content hash of every artefact that a stage reads, by the name that its request calls it."""
    return {name: open_artifact(folder).content for name, folder in folders.items()}


def given_folders(model: str, activations: Path, sources: Sequence[Path]) -> dict[str, Path]:
    """What a stage that is given folders reads of a model, for :func:`parents`: its sources are called by number."""
    numbered = {f"{model}.source.{number}": source for number, source in enumerate(sources)}
    return {f"{model}.activations": activations, **numbered}


def source_folders(used: Iterable[RunDictionary]) -> dict[str, Path]:
    """What a stage that is given a run reads dictionaries from, for :func:`parents`: ``MODEL.FOLDER.NAME``."""
    named = {f"{d.model}.{d.source.parent.name}.{d.source.name}": d.source for d in used}
    return dict(sorted(named.items()))
