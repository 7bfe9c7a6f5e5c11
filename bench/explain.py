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
    options = parser.parse_args()
    setup_logging()
    residual = [dictionary for dictionary in run_dictionaries(options.run) if dictionary.site.startswith("resid_post.")]
    baselines = ("pca", "ica", "random")
    titles = [d.title for d in residual if "topk-k24" in d.name and not d.name.startswith(baselines)]
    config = ExplainConfig(
        dictionaries=tuple(titles),
        controls=False,
        mode=options.mode,
        pick="alive",
        features=-(-FEATURES // len(titles)),
        explainers=tuple(options.explainers),
    )
    before = peak_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.monotonic()
        explanations = explain(folder / "explain", options.run, config)
        explained = time.monotonic()
        score(folder / "score", folder / "explain", ScoreConfig(), folder)
        scored = time.monotonic()
    print(f"{explanations.data['features']} features of {len(titles)} dictionaries, {options.mode} mode")
    print(f"explainers {', '.join(config.explainers)}")
    print(f"explained in {explained - started:.0f} s, scored in {scored - explained:.0f} s")
    print(f"peak memory {size(peak_memory())}, of which {size(before)} before anything was read")


if __name__ == "__main__":
    main()
