"""Scores of explanations by how often a feature is active: does a dictionary's size change them, or its rare features?

    python bench/strata.py RUN SITE DICTIONARY… [--scores paper] [--rows 60000]

Of every dictionary the share of rarest features and, for each explainer, the mean score (strongest and random
fragments; a constant prediction counts 0) of the features of each stratum of density, with a 95 % bootstrap interval
over features. Densities are of held-out rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from monolex.activations.reader import Reader
from monolex.lexicon import open_run
from monolex.stats import mean

EDGES = (0.0, 5e-4, 3e-3, 2e-2, 1.0)
FEWEST = 3
"""Features that a stratum must have to be told."""
RESAMPLES = 1000


def densities(run: Path, site: str, name: str, rows: torch.Tensor) -> np.ndarray:
    """How often each feature of the run's dictionary is active."""
    dictionary = open_run(run).site(site).dictionary(name).weights
    active = torch.zeros(dictionary.d_sae)
    with torch.no_grad():
        for part in rows.split(4096):
            active += (dictionary.encode(part) != 0).sum(0)
    return (active / len(rows)).numpy()


def told(values: np.ndarray) -> str:
    """Their mean, with an interval over features."""
    score = mean(values, "features", resamples=RESAMPLES)
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("site")
    parser.add_argument("dictionaries", nargs="+")
    parser.add_argument("--scores", default="paper")
    parser.add_argument("--rows", type=int, default=60_000)
    asked = parser.parse_args()
    lines = (asked.run / "score" / asked.scores / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [row for row in map(json.loads, lines) if (row["model"], row["site"]) == ("subject", asked.site)]
    reader = Reader(asked.run / "activations", asked.site, "held_out")
    rows = reader.read(0, min(asked.rows, reader.n_rows)).float()
    for name in asked.dictionaries:
        density = densities(asked.run, asked.site, name, rows)
        print(f"{name}: median density {np.median(density):.2g}, {(density < EDGES[1]).mean():.0%} below {EDGES[1]:g}")
        of_name = [row for row in scores if row["name"] == name]
        for explainer in dict.fromkeys(row["explainer"] for row in of_name):
            mine = [row for row in of_name if row["explainer"] == explainer]
            value = np.array([row["scores"]["top_and_random"]["value"] or 0.0 for row in mine])
            often = density[[row["feature"] for row in mine]]
            parts = [f"all {told(value)}"]
            for low, high in zip(EDGES, EDGES[1:], strict=False):
                inside = (often >= low) & (often < high)
                score = told(value[inside]) if inside.sum() >= FEWEST else "too few"
                parts.append(f"{low:g} to {high:g} (n = {inside.sum()}): {score}")
            print(f"  {explainer}, {'; '.join(parts)}")


if __name__ == "__main__":
    main()
