"""The sections of the report as plain values: the overview of a run, and one section a site."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup

from monolex.artifact import SUBJECT
from monolex.kinds import KINDS, TOPK, heading
from monolex.pages import svg
from monolex.pages.eval_charts import (
    EvaluatedDictionary,
    Looks,
    axes,
    control_label,
    curves,
    density_chart,
    frontier,
    nearest_l0,
)
from monolex.pages.html import number
from monolex.pages.tables import Column, Row, Table, bare, table

FVU, RECOVERED = "FVU, variance unexplained", "loss recovered vs zero-ablation"
CODES = (
    Column("l0", "L0", "mean number of active features an activation"),
    Column("fvu", "FVU", "fraction of the variance that the reconstruction leaves unexplained"),
)
FIDELITY = (
    *CODES,
    Column("loss_recovered_zero", "Recovered vs zero", "share of the loss: 1 is the whole model, 0 zero-ablation"),
    Column("loss_recovered_mean", "Recovered vs mean", "share of the loss: 1 is the whole model, 0 mean-ablation"),
    Column("ce", "Cross-entropy", "nats a prediction with the site replaced"),
    Column("kl", "KL", "KL(model ‖ model with the site replaced), nats a prediction"),
    Column("perplexity", "Perplexity", "exp of the cross-entropy"),
)
HEALTH = (
    Column("d_sae", "Features", "size of the dictionary", whole=True),
    Column("alive_paper", "Alive, > 10", "features active more than 10 times: the paper's rule", whole=True),
    Column("alive", "Alive, ≥ 1", "features active at least once: the usual rule", whole=True),
    Column("dead", "Dead", "fraction of features that were never active"),
    Column("negative_bias", "Bias < 0", "fraction of encoder biases below zero"),
    Column("norm_ratio", "Norm ratio", "mean length of the reconstruction over that of the activation"),
    Column("decoder_cosine", "Nearest cosine", "each feature's largest decoder cosine to another, mean over features"),
    Column("decoder_cosine_max", "Largest cosine", "the largest decoder cosine between two features"),
)
SIMILARITY = (
    Column("mmcs", "MMCS", "mean over features of the largest cosine to a feature of the other dictionary"),
    Column("mmcs_back", "MMCS back", "the same from the other dictionary's side"),
    Column("matched_cosine", "Matched cosine", "mean cosine of features matched one to one (Hungarian algorithm)"),
    Column("matched_above_0.7", "Matched > 0.7", "fraction of matched pairs with a cosine above 0.7"),
    Column("matched_above_0.9", "Matched > 0.9", "fraction of matched pairs with a cosine above 0.9"),
)
SEEDS = (
    Column("seed_overlap_0.7", "Overlap > 0.7", "fraction of features whose partner under another seed is that close"),
    Column("seed_overlap_0.9", "Overlap > 0.9", "fraction of features whose partner under another seed is that close"),
)
OTHER = (
    Column("density", "Density", "fraction of activations in which a feature is active, mean over features"),
    Column("cosine", "Cosine", "mean cosine of activation and reconstruction"),
    Column("ce_added", "Cross-entropy added", "nats a prediction more than the model as it is"),
    Column("embedding_cosine", "To embedding", "each feature's largest cosine to an embedding row, mean over features"),
    Column("unembedding_cosine", "To unembedding", "the same to an unembedding row"),
)
OVER_SEEDS = "Means and intervals over seeds"
REFERENCES = ("reference", "missing")
"""Kinds, as metrics.json calls them, of what is no dictionary."""
COUNTED = ("alive_paper", "alive")
SPARSE_DENSITY = 0.5


def overview(everything: Sequence[EvaluatedDictionary], looks: Looks) -> dict[str, Any]:
    """A small frontier of every site on shared axes, and the table at equal L0."""
    sites = list(dict.fromkeys(e.site for e in everything if e.site))
    by_site = {site: curves(_at(everything, site), "fvu", "FVU", looks) for site in sites}
    scales = axes([curve for series in by_site.values() for curve in series], "FVU")
    size = (530, 330) if len(sites) <= 2 else (345, 250)
    charts = [(s, frontier(series, scales, f"{s}: FVU over L0", *size)) for s, series in by_site.items()]
    return {
        "charts": charts,
        "legend": svg.legend(curve for series in by_site.values() for curve in series),
        "equal": _equal_l0(everything, sites),
    }


def section(
    position: int,
    site: str,
    everything: Sequence[EvaluatedDictionary],
    looks: Looks,
    densities: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Charts and tables of one site."""
    entries = _at(everything, site)
    fvu, recovered = (curves(entries, metric, metric, looks) for metric in ("fvu", "loss_recovered_zero"))
    key = f"site-{position}"
    return {
        "key": key,
        "name": site,
        "frontier": frontier(fvu, axes(fvu, FVU), f"{site}: FVU over L0", 530, 380),
        "recovered": frontier(recovered, axes(recovered, RECOVERED), f"{site}: loss recovered over L0", 530, 380),
        "legend": svg.legend([*fvu, *recovered]),
        "tables": _tables(key, entries),
        "densities": _densities(entries, looks, densities),
    }


def groups(entries: Iterable[EvaluatedDictionary]) -> list[tuple[str, list[EvaluatedDictionary]]]:
    """Entries under the headings of a table: what is about the model itself first, then every control model's."""
    by_heading: dict[str, list[EvaluatedDictionary]] = {
        label: [] for label in ("Trained", OVER_SEEDS, "Baselines", "References")
    }
    for entry in entries:
        by_heading.setdefault(_heading(entry), []).append(entry)
    return [(label, group) for label, group in by_heading.items() if group]


def _heading(entry: EvaluatedDictionary) -> str:
    if entry.model != SUBJECT:
        return f"Control: {control_label(entry.model)}"
    if entry.kind in REFERENCES:
        return "References"
    return OVER_SEEDS if entry.kind in KINDS and not entry.head["path"] else heading(entry.kind)


def _at(everything: Iterable[EvaluatedDictionary], site: str) -> list[EvaluatedDictionary]:
    return [e for e in everything if e.site == site]


def _tables(key: str, entries: Sequence[EvaluatedDictionary]) -> list[Table]:
    """The tables of a site; the last two are for looking things up and start folded."""
    single, pairs = [e for e in entries if not e.head["other"]], [e for e in entries if e.head["other"]]
    measured = [e for e in single if "l0" in e.rows]
    known = {column.metric for column in (*FIDELITY, *HEALTH, *SIMILARITY, *SEEDS, *OTHER)} | {"rows"}
    unknown = dict.fromkeys(metric for e in measured for metric in e.rows if metric not in known)
    other = (*OTHER, *(Column(metric, metric.replace("_", " ")) for metric in unknown))
    plans = (
        ("fidelity", "Sparsity, reconstruction, and what the model loses when it runs on it", FIDELITY, False),
        ("health", "Features: how many are alive, and the geometry of the decoder", HEALTH, False),
        ("seeds", "Seeds: features found again from another start", SEEDS, False),
        ("similarity", "Similarity to neighbours in the sweep and to random directions", SIMILARITY, True),
        ("other", "Further measurements", other, True),
    )
    chosen = {
        "fidelity": [e for e in single if "ce" in e.rows or "l0" in e.rows],
        "health": measured,
        "seeds": [e for e in single if any(e.value(column.metric) is not None for column in SEEDS)],
        "similarity": pairs,
        "other": measured,
    }
    return [
        _table(f"{key}-{name}", caption, columns, chosen[name], folded)
        for name, caption, columns, folded in plans
        if chosen[name]
    ]


def _table(
    key: str, caption: str, columns: Sequence[Column], chosen: Sequence[EvaluatedDictionary], folded: bool
) -> Table:
    shown = [(label, [(e.name, partial(_look_up, e)) for e in group]) for label, group in groups(chosen)]
    return table(key, caption, "Dictionary", columns, shown, folded=folded)


def _look_up(entry: EvaluatedDictionary, metric: str) -> Row | None:
    """A row of metrics.json; fractions of features are shown as counts of them."""
    row = entry.rows.get(metric)
    features = entry.head["d_sae"]
    if metric == "d_sae":
        return bare(features)
    if row is None and entry.kind == "reference":
        return bare(None, "a reference has no features")
    if row is None or features is None or metric not in COUNTED:
        return row
    return {
        **row,
        **{end: None if row[end] is None else round(row[end] * features) for end in ("value", "low", "high")},
    }


def _equal_l0(everything: Sequence[EvaluatedDictionary], sites: Sequence[str]) -> Table:
    columns = (*CODES, FIDELITY[2], FIDELITY[5])
    shown = []
    for site in sites:
        at = _at(everything, site)
        # what reconstructs another site has other numbers to be compared with
        for target in dict.fromkeys(e.target for e in at):
            for chosen in _matched([e for e in at if e.target == target]):
                where = f"{site} to {target}" if target else site
                label = f"{where}, L0 = {number(chosen[0].value('l0'))} ± 10 %"
                shown.append((label, [(_full_name(e), partial(_look_up, e)) for e in chosen]))
    return table("equal", "Dictionaries at equal L0: within 10 %, or half a feature", "Dictionary", columns, shown)


def _matched(entries: Sequence[EvaluatedDictionary]) -> list[list[EvaluatedDictionary]]:
    """For one dictionary of every trained kind, the one of median L0 that has most of its like, those at the same L0.

    Its like are the other trained kinds, the top-k baselines, and the kinds of the control models.
    """
    trained = [e for e in entries if e.trained and e.head["path"] and e.value("l0")]
    rest = [e for e in entries if e.baseline and e.kind.endswith(TOPK) and e.value("l0")]
    matched = []
    for kind in dict.fromkeys(e.kind for e in trained if e.model == SUBJECT):
        pools: dict[tuple[str, str], list[EvaluatedDictionary]] = {}
        for entry in (*trained, *rest):
            if (entry.model, entry.kind) != (SUBJECT, kind):
                pools.setdefault((entry.model, entry.kind), []).append(entry)
        alike = [e for e in trained if (e.model, e.kind) == (SUBJECT, kind)]
        middle = statistics.median_low(e.value("l0") or 0 for e in alike)
        groups = [[e, *_alike(pools.values(), e.value("l0") or 0)] for e in alike]
        matched.append(max(groups, key=lambda group: (len(group), -abs((group[0].value("l0") or 0) - middle))))
    return matched


def _alike(pools: Iterable[Sequence[EvaluatedDictionary]], l0: float) -> list[EvaluatedDictionary]:
    return [entry for pool in pools if (entry := nearest_l0(pool, l0))]


def _full_name(entry: EvaluatedDictionary) -> str:
    return entry.name if entry.model == SUBJECT else f"{entry.name}, {control_label(entry.model)}"


def _densities(
    entries: Sequence[EvaluatedDictionary], looks: Looks, densities: Mapping[str, Sequence[int]]
) -> list[tuple[str, Markup]]:
    """Histograms of the dictionaries whose codes are sparse (the others fire everywhere: nothing to see)."""
    shown = []
    for _, group in groups(entries):
        for entry in group:
            counts, density, rows = densities.get(entry.key), entry.value("density"), entry.value("rows")
            if counts is not None and rows and density is not None and density < SPARSE_DENSITY:
                colour = looks.series(entry, ()).colour
                shown.append((_full_name(entry), density_chart(counts, int(rows), _full_name(entry), colour)))
    return shown
