"""What fitting baselines takes."""

from collections.abc import Callable, Iterator

import numpy as np

from monolex.config import BaselineConfig
from monolex.cost import Cost, Planned, PlannedDictionary
from monolex.dictionaries.axes import ICA_ALONE, few_threads
from monolex.dictionaries.baselines import MATCH_ROWS
from monolex.kinds import BASELINES, TOPK
from monolex.speed import Speed
from monolex.train_config import TrainConfig

ICA_ROUNDS, ICA_ROWS, TANH = 120, 8192, 80
"""Rounds that ICA takes (nobody knows before: 46 to 88 at the demo's sites; 70 at one of SmolLM2's, all 400 at three),
rows of the one that is timed, and what a hyperbolic tangent costs, in multiplications."""
IMPORTING = 2.0
"""Seconds of importing scikit-learn."""
WRITE, BYTE = 0.02, 1.5e-9
"""Seconds of writing a dictionary, and of a byte of it."""
IMPORTED = 100 * 10**6
"""Bytes of scikit-learn."""


def cost(planned: Planned) -> Cost:
    """Of all families at all sites; the baselines are planned from here on."""
    config, shape = planned.config, planned.shape
    fitted = planned.dictionaries[planned.folder] = list(_fitted(planned, config))
    widths = [shape.widths[site] for site in dict.fromkeys(baseline.site for baseline in fitted)]
    disk = sum(8 * shape.widths[baseline.site] * baseline.features for baseline in fitted)
    ica = config.ica_rows if any(BASELINES[kind].rows == "ica_rows" for kind in config.kinds) else 0
    rows, speed = planned.rows, planned.speed
    seconds = sum(_seconds(min(config.fit_rows, rows), min(ica, rows), w, speed) for w in widths)
    seconds += speed.python(IMPORTING) if ica else 0.0
    matched = list(_matched(planned))
    seconds += sum(min(MATCH_ROWS, rows) * speed.coded(shape.widths[d.site], d.features) / 2 for d in matched)
    seconds += speed.python(WRITE * len(fitted) + BYTE * disk)
    memory = max(24 * max(min(ica, rows), min(8192, rows)) * w + 40 * w * w for w in widths) + IMPORTED
    return Cost(disk, memory + planned.mapped((d.site for d in fitted), rows), 0.0, seconds)


def _seconds(rows: int, ica: int, width: int, speed: Speed) -> float:
    """Of the fits at a site: in float64 a covariance, its axes and the codes that turn them; and the rounds of ICA."""
    seconds = speed.product(2 * (4.0 * rows * width * width + 25.0 * width**3))
    if not ica:
        return seconds
    narrow = min(width, ICA_ALONE)  # beyond that time goes with the square of the width
    once = speed.timed(("ica", narrow), _round(narrow), 4.0 * ICA_ROWS * narrow * (narrow + TANH))
    return seconds + ICA_ROUNDS * once * ica / ICA_ROWS * (width / narrow) ** 2


def _round(width: int) -> Callable[[], object]:
    """A round of FastICA: the nonlinearity and its slope at the rows, and axes made orthogonal again."""
    noise = np.random.default_rng(0)
    x, axes = noise.standard_normal((width, ICA_ROWS), np.float32), noise.standard_normal((width, width), np.float32)

    def work() -> object:
        with few_threads(width):
            g = np.tanh(axes @ x)
            turned = g @ x.T - (1 - g * g).mean(1)[:, None] * axes
            variances, directions = np.linalg.eigh(turned @ turned.T)
            return (directions / np.sqrt(np.abs(variances) + 1)) @ directions.T @ turned

    return work


def _matched(planned: Planned) -> Iterator[PlannedDictionary]:
    """The dictionaries of the matched sweeps."""
    for path in planned.needs:
        if path in planned.earlier and isinstance(planned.earlier[path].config, TrainConfig):
            yield from planned.dictionaries[path]


def _fitted(planned: Planned, config: BaselineConfig) -> Iterator[PlannedDictionary]:
    """Every baseline; of the top-k kinds one for every dictionary of the matched sweeps at the site."""
    matched = list(_matched(planned))
    home = planned.folder.parents[1]
    for site in planned.sites(config.sites):
        ks = len(config.ks or ()) + sum(dictionary.site == site for dictionary in matched) or 1
        for kind in config.kinds:
            features = BASELINES[kind].directions(planned.shape.widths[site], config.ratio)
            names = [f"{kind}-k{number}" for number in range(ks)] if kind.endswith(TOPK) else [kind]
            yield from (PlannedDictionary(site, name, features, home, trained=False) for name in names)
