"""The stage ``tree``: causal trees below some features of a run, as an artefact, one root at a time."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from monolex.activations.stored import stored_model
from monolex.artifact import Manifest
from monolex.causal.chosen_features import (
    ChosenFeature,
    chosen_features,
    finish,
    named_sites,
    token_text,
    used_folders,
    words,
)
from monolex.causal.config import TreeConfig
from monolex.causal.tree import grow
from monolex.config import ModelConfig, require
from monolex.dictionaries.listing import RunDictionary, fits, parents, run_dictionaries
from monolex.errors import UserError
from monolex.lock import alone
from monolex.model.sites import Site
from monolex.pieces import Piece, Work


@alone
def tree(folder: str | Path, run: str | Path, config: TreeConfig) -> Manifest:
    """Causal trees below some features of a run; writes ``tree.json``.

    Raises:
        UserError: no run, a feature that does not exist or is never active, or no earlier site with one dictionary.
    """
    folder, run = Path(folder), Path(run)
    chosen = chosen_features(run, config.features)
    listed = run_dictionaries(run)
    dictionaries = {root.key: below(listed, root, config) for root in chosen}
    used = [dictionary for path in dictionaries.values() for dictionary in path.values()]
    work = Work(folder, "tree", config, parents(used_folders(run, used, evidence=True)))
    if manifest := work.answer():
        return manifest
    lm = stored_model(run / "activations", config.tree_device)

    def piece(root: ChosenFeature) -> Piece:
        def grown(_path: Path) -> dict[str, Any]:
            path = dictionaries[root.key]
            grown_tree = grow.tree(
                lm,
                {site: dictionary.weights(lm.device) for site, dictionary in path.items()},
                root.dictionary.site,
                root.feature,
                run / "activations",
                config,
                label=lambda site, feature: words(path[site], feature),
                text=token_text(lm),
            )
            names = {site: dictionary.name for site, dictionary in path.items()}
            return {"root": root.key, "dictionaries": names} | grown_tree.to_json()

        return grown

    used_by = {key: path.values() for key, path in dictionaries.items()}
    return finish(work, "trees", {root.key: piece(root) for root in chosen}, used_by)


def below(listed: Sequence[RunDictionary], root: ChosenFeature, config: TreeConfig) -> dict[str, RunDictionary]:
    """The dictionary of every site that the tree may reach: the root's, and of earlier residual sites, the nearest
    first, the one that fits; sites without any are gone over.

    Raises:
        UserError: a root outside the residual stream, several that fit at a site, or none before the root.
    """
    site = _residual(root.key, root.dictionary.site)
    patterns = config.dictionaries or (root.dictionary.name,)
    path = {root.dictionary.site: root.dictionary}
    earlier = [each for each in listed if _before(each.site, site) and not each.config.target]
    by_site: dict[str, list[RunDictionary]] = {}
    for dictionary in sorted(earlier, key=lambda dictionary: -Site.parse(dictionary.site).layer):
        if fits(dictionary, patterns):
            by_site.setdefault(dictionary.site, []).append(dictionary)
    for name, fitting in islice(by_site.items(), config.depth):
        if len(fitting) > 1:
            what = f"{len(fitting)} dictionaries at {name} fit {', '.join(patterns)}"
            raise UserError(f"{what}: give --dictionaries that fit one at each site, such as {fitting[0].name}")
        path[name] = fitting[0]
    if config.depth and len(path) == 1:
        known = ", ".join(dict.fromkeys(dictionary.title for dictionary in earlier)) or "no dictionary there at all"
        what = f"features = {root.key!r}: nothing before {root.dictionary.site} fits {', '.join(patterns)}"
        raise UserError(f"{what}; the run has {known}; give --dictionaries, or --depth 0")
    return path


def check(config: TreeConfig, _model: ModelConfig, harvested: Sequence[str]) -> None:
    """Refuse roots that no run of the ``harvested`` sites can grow a tree below.

    Raises:
        UserError: a root outside the residual stream, at a site that is not harvested, or with no residual site before.
    """
    for text, name in named_sites(config.features, harvested).items():
        site = _residual(text, name)
        before = any(_before(other, site) for other in harvested) or (site.layer and "resid_post.*" in harvested)
        require(
            bool(before) or not config.depth,
            f"features = {text!r}: a tree needs dictionaries of an earlier resid_post, and the harvest stores none "
            f"before {name}; add such a site, or ask for depth = 0",
        )


def _residual(key: str, site: str) -> Site:
    parsed = Site.parse(site)
    require(parsed.kind == "resid_post", f"features = {key!r}: a tree grows between residual sites, resid_post.*")
    return parsed


def _before(name: str, site: Site) -> bool:
    if name.endswith("*"):
        return False
    return (other := Site.parse(name)).kind == "resid_post" and other.layer < site.layer
