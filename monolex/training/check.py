"""Which sites a sweep reads where nobody named them, and what no run of some sites can train."""

from collections.abc import Sequence

from monolex.config import ModelConfig, require
from monolex.train_config import TrainConfig


def read_of(stored: Sequence[str], config: TrainConfig) -> list[str]:
    """The stored sites that are read where none is named: of transcoders not what they reconstruct, nor what has
    nothing stored to reconstruct."""
    targets = {config.target_of(site) for site in stored}
    return [site for site in stored if site not in targets and config.target_of(site) in {"", *stored}]


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
