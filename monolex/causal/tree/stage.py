"""The stage ``tree``: causal trees below some features of a run, as an artefact, one root at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monolex.activations.stored import stored_model
from monolex.artifact import Manifest
from monolex.causal.chosen_features import ChosenFeature, chosen_features, finish, token_text, used_folders, words
from monolex.causal.config import TreeConfig
from monolex.causal.tree import grow
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, fits, parents, run_dictionaries
from monolex.errors import UserError
from monolex.model.sites import Site
from monolex.pieces import Piece, Work


def tree(folder: str | Path, run: str | Path, config: TreeConfig) -> Manifest:
    """Causal trees below some features of a run; writes ``tree.json``.

    Raises:
        UserError: no run, a feature that does not exist or is never active, or earlier sites without one dictionary.
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

    return finish(work, "trees", {root.key: piece(root) for root in chosen})


def below(listed: Sequence[RunDictionary], root: ChosenFeature, config: TreeConfig) -> dict[str, RunDictionary]:
    """The dictionary of every site that the tree may reach: the root's, and one for each residual site before it."""
    site = Site.parse(root.dictionary.site)
    require(site.kind == "resid_post", f"features = {root.key!r}: a tree grows between residual sites, resid_post.*")
    patterns = config.dictionaries or (root.dictionary.name,)
    path = {root.dictionary.site: root.dictionary}
    for layer in range(site.layer - 1, max(site.layer - 1 - config.depth, -1), -1):
        earlier = str(Site("resid_post", layer))
        at_site = [dictionary for dictionary in listed if dictionary.site == earlier]
        if not at_site and len(path) > 1:
            break  # the tree ends where the run has no dictionaries
        fitting = [dictionary for dictionary in at_site if fits(dictionary, patterns)]
        if len(fitting) != 1:
            what = f"{len(fitting)} dictionaries at {earlier} fit {', '.join(patterns)}"
            example = at_site[0].name if at_site else "those of another run (this one has none there)"
            raise UserError(f"{what}: give --dictionaries that fit one at each site, such as {example}")
        path[earlier] = fitting[0]
    return path
