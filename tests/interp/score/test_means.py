"""Which means are subtracted from which."""

import itertools

import numpy as np

from monolex.interp.score.bootstrap import Mean
from monolex.interp.score.means import COMPARED, differences
from monolex.stats import Estimate

SITES, EXPLAINERS = ("resid_post.0", "resid_post.1"), ("token", "ngram")
NAMES = (("subject", "tied", True), ("subject", "topk", True), ("subject", "pca", False), ("random", "tied", True))


def test_differences_are_of_one_site_and_explainer_from_baselines_and_controls():
    means, value = {}, {}
    for number, (site, (model, name, trained), explainer) in enumerate(itertools.product(SITES, NAMES, EXPLAINERS)):
        facts = {"model": model, "site": site, "layer": int(site[-1]), "name": name, "trained": trained}
        value[model, site, name, explainer] = float(number**2)
        mean = Mean(Estimate(float(number**2), n=5), np.zeros(0), {})
        means[f"{model}/{site}/{name}", explainer] = facts, dict.fromkeys(COMPARED, mean)
    rows = differences(means, 0.95)
    pairs = {(r["site"], r["explainer"], r["name"], r["against_model"], r["against"], r["metric"]) for r in rows}
    assert len(rows) == len(pairs)
    others = (("subject", "pca"), ("random", "tied"))
    assert pairs == {
        (site, explainer, name, *other, metric)
        for site, explainer, name, other, metric in itertools.product(
            SITES, EXPLAINERS, ("tied", "topk"), others, COMPARED
        )
    }
    for row in rows:
        mine = value["subject", row["site"], row["name"], row["explainer"]]
        theirs = value[row["against_model"], row["site"], row["against"], row["explainer"]]
        assert row["value"] == mine - theirs and row["layer"] == int(row["site"][-1])
