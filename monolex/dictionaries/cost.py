"""What fitting baselines takes."""

from collections.abc import Iterator

from monolex.config import BaselineConfig, TrainConfig
from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.kinds import BASELINES, TOPK


def cost(planned: Planned) -> Cost:
    """Of all families at all sites; the baselines are planned from here on."""
    config, shape = planned.config, planned.shape
    fitted = planned.dictionaries[planned.folder] = list(_fitted(planned, config))
    widths = [shape.widths[site] for site in dict.fromkeys(baseline.site for baseline in fitted)]
    disk = sum(8 * shape.widths[baseline.site] * baseline.features for baseline in fitted)
    ica = config.ica_rows if any(BASELINES[kind].rows == "ica_rows" for kind in config.kinds) else 0
    rows = planned.rows
    flops = sum(2.0 * min(config.fit_rows, rows) * w * w + 200 * 4.0 * min(ica, rows) * w * w for w in widths)
    memory = max(24 * max(ica, 8192) * w + 40 * w * w for w in widths)
    return Cost(disk, memory, flops)


def _fitted(planned: Planned, config: BaselineConfig) -> Iterator[PlannedDictionary]:
    """Every baseline; of the top-k kinds one for every dictionary of the matched sweeps at the site."""
    matched = [
        dictionary
        for path in planned.needs
        if path in planned.earlier and isinstance(planned.earlier[path].config, TrainConfig)
        for dictionary in planned.dictionaries[path]
    ]
    home = planned.folder.parents[1]
    for site in planned.sites(config.sites):
        ks = len(config.ks or ()) + sum(dictionary.site == site for dictionary in matched) or 1
        for kind in config.kinds:
            features = BASELINES[kind].directions(planned.shape.widths[site], config.ratio)
            names = [f"{kind}-k{number}" for number in range(ks)] if kind.endswith(TOPK) else [kind]
            yield from (PlannedDictionary(site, name, features, home, trained=False) for name in names)
