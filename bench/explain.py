"""Explain and score 1,000 features of a run without a language model: seconds and peak memory, explainer by explainer.

    python bench/explain.py RUN

takes the features of the run's residual dictionaries in turn, as ``monolex explain`` and ``monolex score`` do, into a
folder that is thrown away.
"""

import argparse
import tempfile
import time
from pathlib import Path

from monolex.dictionaries.listing import run_dictionaries
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain.stage import explain
from monolex.interp.score.stage import score
from monolex.runtime import peak_memory, setup_logging, size

FEATURES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mode", choices=("paper", "modern"), default="modern")
    parser.add_argument("--explainers", nargs="+", default=["token", "ngram", "pattern"])
    asked = parser.parse_args()
    setup_logging()
    there = [
        one for one in run_dictionaries(asked.run) if one.site.startswith("resid_post.") and "topk-k24" in one.name
    ]
    titles = [one.title for one in there if not one.name.startswith(("pca", "ica", "random"))]
    config = ExplainConfig(
        dictionaries=tuple(titles),
        controls=False,
        mode=asked.mode,
        pick="alive",
        features=-(-FEATURES // len(titles)),
        explainers=tuple(asked.explainers),
    )
    before = peak_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.monotonic()
        made = explain(folder / "explain", asked.run, config)
        explained = time.monotonic()
        score(folder / "score", folder / "explain", ScoreConfig(), folder)
        scored = time.monotonic()
    print(f"{made.data['features']} features of {len(titles)} dictionaries, {asked.mode} mode")
    print(f"explainers {', '.join(config.explainers)}")
    print(f"explained in {explained - started:.0f} s, scored in {scored - explained:.0f} s")
    print(f"peak memory {size(peak_memory())}, of which {size(before)} before anything was read")


if __name__ == "__main__":
    main()
