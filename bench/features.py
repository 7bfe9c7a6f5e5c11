"""What the evidence of every feature costs: time beside encoding alone, and memory and disk of a wide dictionary.

``python bench/features.py`` runs, alternately in one process, ``encode_sparse`` and ``encode`` over the rows of a demo
site and all that `monolex features` does with them, for dictionaries of L0 24 and 84, and prints the median ratios.
``--wide`` gathers the evidence of one wide random dictionary over rows of the Pythia-70M shape that are drawn as they
are read, and prints time, peak memory and bytes a feature. Activations and tokens are random; tokens follow Zipf's law.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harvest import pythia_70m
from torch import Tensor

from monolex import runtime
from monolex.config import FeaturesConfig
from monolex.corpus import Rows
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.features.rows import Table, tabulate
from monolex.features.stage import from_source
from monolex.model import LanguageModel, load

CONTEXT, DOCUMENT = 256, 700


@dataclass
class RandomRows:
    """Gaussian rows, each a function of its number, in documents of one length."""

    rows: int
    d_in: int
    vocab: int
    config: FeaturesConfig
    kept: Tensor | None = None
    site: str = "resid_post.3"

    def __post_init__(self) -> None:
        packed = -(-self.rows // CONTEXT)
        ranks = np.random.default_rng(0).zipf(1.2, (packed, CONTEXT)) % self.vocab
        docs = np.arange(packed * CONTEXT).reshape(packed, CONTEXT) // DOCUMENT
        tensors = (torch.from_numpy(part.astype(np.int32)) for part in (ranks, docs))
        text = Rows(*tensors, torch.ones(packed, CONTEXT, dtype=torch.bool))
        places = np.arange(self.rows, dtype=np.int32)
        self.table: Table = tabulate(text, places // CONTEXT, places % CONTEXT, self.config.fragment_tokens)

    def chunks(self, size: int) -> Iterator[Tensor]:
        if self.kept is not None:
            yield from self.kept.split(size)
            return
        for start in range(0, self.rows, size):
            generator = torch.Generator().manual_seed(start)
            yield torch.randn(min(size, self.rows - start), self.d_in, generator=generator)


def dictionary(d_in: int, d_sae: int, l0: float, activation: str) -> Dictionary:
    """Random unit directions with one threshold that leaves ``l0`` of them active on Gaussian rows."""
    weights = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)))
    threshold = float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - l0 / d_sae)))
    relu = activation == "relu"
    return Dictionary(
        DictionaryConfig(activation, activation, d_in, d_in, d_sae, threshold=threshold, site="resid_post.3"),
        {
            "W_enc": weights,
            "W_dec": weights,
            "b_enc": torch.full((d_sae,), -threshold if relu else 0.0),
            "b_dec": torch.zeros(d_in),
            "centre": torch.zeros(d_in),
        },
    )


@torch.no_grad()
def encoded(made: Dictionary, source: RandomRows, size: int, *, sparse: bool) -> tuple[float, float]:
    """Seconds of wall and processor of encoding alone."""
    started, used = time.perf_counter(), time.process_time()
    for x in source.chunks(size):
        (made.encode_sparse if sparse else made.encode)(x.to(made.W_enc.device))
    return time.perf_counter() - started, time.process_time() - used


def gathered(made: Dictionary, source: RandomRows, lm: LanguageModel, scratch: Path) -> tuple[float, float, int]:
    """Seconds of wall and processor of all the evidence, and bytes of the store."""
    started, used = time.perf_counter(), time.process_time()
    path = from_source(scratch, source, lm, {"it": made}, source.config)["it"]
    return time.perf_counter() - started, time.process_time() - used, path.stat().st_size


def ratios(args: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    """The demo's site: all evidence over encoding alone."""
    lm, config, found = load("demo"), FeaturesConfig(features_device="cpu"), {}
    assert len(lm.fingerprint) == 64  # hashed once a stage, outside the clock
    rows = args.rows or 110_000
    kept = torch.randn(rows, lm.d_model, generator=torch.Generator().manual_seed(1))
    source = RandomRows(rows, lm.d_model, lm.vocab_size, config, kept)
    for l0, activation in ((24, "threshold"), (84, "relu")):
        made = dictionary(lm.d_model, 2 * lm.d_model, l0, activation)
        sparse, dense, whole = [], [], []
        for repeat in range(args.repeats + 1):
            measured = (
                encoded(made, source, args.chunk, sparse=True),
                encoded(made, source, args.chunk, sparse=False),
                gathered(made, source, lm, scratch),
            )
            if repeat > 0:  # the first warms up
                for times, one in zip((sparse, dense, whole), measured, strict=True):
                    times.append(one)
        each = sorted(a[0] / b[0] for a, b in zip(whole, sparse, strict=True))
        found[f"l0_{l0}"] = {
            "ratio": round(statistics.median(each), 2),
            "ratio_low": round(each[0], 2),
            "ratio_high": round(each[-1], 2),
            "cpu_time_ratio": round(sum(t[1] for t in whole) / sum(t[1] for t in sparse), 2),
            "ratio_to_dense_encoding": round(sum(t[0] for t in whole) / sum(t[0] for t in dense), 2),
            "encode_sparse_seconds": round(statistics.median(t[0] for t in sparse), 3),
            "encode_seconds": round(statistics.median(t[0] for t in dense), 3),
            "evidence_seconds": round(statistics.median(t[0] for t in whole), 3),
            "bytes_a_feature": round(whole[0][2] / made.d_sae),
        }
    return found


def wide(args: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """One wide dictionary: time, memory, disk."""
    config = FeaturesConfig(features_device=args.device, memory_mb=args.memory_mb)
    lm, rows = pythia_70m(torch.device("cpu")), args.rows or 100_000
    before = runtime.peak_memory()
    source = RandomRows(rows, lm.d_model, lm.vocab_size, config)
    made = dictionary(lm.d_model, args.features, args.l0, "relu")
    first = -(-rows // 20)
    alone = encoded(made.to(runtime.device(args.device)), RandomRows(first, lm.d_model, 2, config), 256, sparse=False)
    seconds, cpu, size = gathered(made, source, lm, scratch)
    return {
        "features": args.features,
        "rows": rows,
        "l0": args.l0,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "encoding_alone_seconds": round(alone[0] * rows / first, 1),
        "peak_rss_mb": round(runtime.peak_memory() / 1e6),
        "rss_before_mb": round(before / 1e6),
        "store_mb": round(size / 1e6, 1),
        "bytes_a_feature": round(size / args.features),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", action="store_true", help="measure the wide dictionary instead")
    parser.add_argument("--rows", type=int, default=None, help="rows; default 110,000, with --wide 100,000")
    parser.add_argument("--repeats", type=int, default=5, help="alternations after one warm-up")
    parser.add_argument("--chunk", type=int, default=8192, help="rows of a chunk of encoding alone")
    parser.add_argument("--features", type=int, default=32_768, help="features of the wide dictionary")
    parser.add_argument("--l0", type=float, default=32, help="active features of a row of the wide dictionary")
    parser.add_argument("--memory-mb", type=int, default=512, help="working memory of the wide dictionary")
    parser.add_argument("--device", default="cpu", help="where the wide dictionary encodes")
    parser.add_argument("--threads", type=int, default=1, help="torch's CPU threads")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        print(json.dumps((wide if args.wide else ratios)(args, Path(scratch)), indent=1))


if __name__ == "__main__":
    main()
