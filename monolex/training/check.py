"""What no run of some sites can train, before anything of it is done."""

from collections.abc import Sequence

from monolex.config import ModelConfig, require
from monolex.train_config import TrainConfig


def check(config: TrainConfig, _model: ModelConfig, harvested: Sequence[str]) -> None:
    """Refuse transcoders of sites that are not ``harvested``.

    Raises:
        UserError: a target that [harvest] does not name.
    """
    targets = {config.target_of(site) for site in config.sites} - {""}
    if config.target and not config.sites:
        kinds = {site.rpartition(".")[0] for site in harvested}
        stored = config.target in harvested or config.target.rpartition(".")[0] in kinds or config.target in kinds
        targets = set() if stored else {config.target}
    for target in sorted(targets):
        kind, _, layer = target.rpartition(".")
        stored = target in harvested or f"{kind}.*" in harvested
        stored = stored or (layer == "*" and any(site.startswith(f"{kind}.") for site in harvested))
        require(stored, f"target = {config.target!r}: [harvest] sites holds no {target}; add it there")
