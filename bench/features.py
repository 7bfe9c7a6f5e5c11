"""What the evidence of every feature costs.

``python bench/features.py RUN`` takes the dictionaries of ``RUN/train`` one by one and runs, alternately in one
process, the encoding pass alone (``encode_sparse`` of every stored row) and the whole gathering of the evidence into a
store, and prints the median ratio. ``python bench/features.py --wide FOLDER`` gathers the evidence of 32,768 features
(random directions with a threshold that leaves about 32 active) over a million tokens of a random model of the shape
of Pythia-70M, harvested into FOLDER by a process of its own, and prints time, peak memory and bytes a feature.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harvest import pythia_70m, write_corpus

from monolex import runtime
from monolex.activations.harvest import harvest
from monolex.activations.reader import Reader
from monolex.activations.stored import packed_rows, stored_model
from monolex.artifact import open_artifact
from monolex.config import CorpusConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.dictionaries.base import Dictionary, DictionaryConfig, load
from monolex.features.rows import StoredRows
from monolex.features.stage import from_source
from monolex.model.language_model import LanguageModel

SITE = "resid_post.2"
CONFIG = FeaturesConfig(features_device="cpu")


def encoding(rows: StoredRows, dictionary: Dictionary) -> float:
    """Seconds of the encoding pass alone."""
    started = time.perf_counter()
    with torch.no_grad():
        for x in rows.chunks(4096):
            dictionary.encode_sparse(x)
    return time.perf_counter() - started


def evidence(acts: Path, dictionary: Dictionary, lm: LanguageModel, folder: Path) -> float:
    """Seconds of the whole evidence, from stored rows to a store."""
    started = time.perf_counter()
    from_source(folder, stored(acts, dictionary.config.site), lm, {"one": dictionary}, CONFIG)
    return time.perf_counter() - started


def stored(acts: Path, site: str) -> StoredRows:
    """All training rows of a site."""
    return StoredRows(Reader(acts, site), packed_rows(acts, "train"), CONFIG)


def compare(run: Path, pattern: str, repeats: int) -> None:
    """The ratio for every member that matches."""
    acts = run / "activations"
    lm = stored_model(acts, "cpu")
    print(f"fingerprint {lm.fingerprint[:12]}, {torch.get_num_threads()} threads")
    for folder in sorted(run.glob(f"train/*/{pattern}")):
        dictionary = load(folder)
        rows = stored(acts, dictionary.config.site)
        alone, whole = [], []
        with tempfile.TemporaryDirectory() as scratch:
            for _ in range(repeats):
                alone.append(encoding(rows, dictionary))
                whole.append(evidence(acts, dictionary, lm, Path(scratch)))
        ratios = [b / a for a, b in zip(alone, whole, strict=True)]
        row = {"dictionary": folder.name, "site": folder.parent.name, "rows": len(rows.table)}
        row |= {"d_sae": dictionary.d_sae}
        row |= {"encoding_s": round(statistics.median(alone), 2), "evidence_s": round(statistics.median(whole), 2)}
        print(json.dumps(row | {"ratio": round(statistics.median(ratios), 2), "ratios": [round(r, 2) for r in ratios]}))


def prepare(folder: Path, tokens: int) -> None:
    """Harvest the activations of the wide case."""
    torch.manual_seed(0)
    lm = pythia_70m(torch.device("cpu"))
    write_corpus(folder / "text.jsonl", int(tokens * 1.02))
    corpus = CorpusConfig(corpus=str(folder / "text.jsonl"), max_tokens=tokens, held_out=0.0)
    harvest(folder / "acts", ModelConfig(device="cpu"), corpus, HarvestConfig(sites=(SITE,)), lm=lm)


def wide(folder: Path, tokens: int, width: int, active: int) -> None:
    """The wide case, in a process that does nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--prepare", str(folder), "--tokens", str(tokens)]
    subprocess.run(command, check=True)
    torch.manual_seed(0)
    lm = pythia_70m(torch.device("cpu"))
    rows = stored(folder / "acts", SITE)
    sample = next(iter(rows.chunks(2048)))
    directions = torch.nn.functional.normalize(torch.randn(width, lm.d_model), dim=1)
    centre = sample.mean(0)
    pre = (sample[:256] - centre) @ directions.T
    threshold = pre.flatten().kthvalue(int(pre.numel() * (1 - active / width))).values
    weights = {"W_enc": directions, "W_dec": directions.clone(), "b_enc": -threshold.expand(width).clone()}
    config = DictionaryConfig("untied", "relu", lm.d_model, lm.d_model, width, site=SITE)
    dictionary = Dictionary(config, weights | {"centre": centre, "b_dec": centre.clone()})
    before = runtime.peak_memory()
    path = folder / "one.sqlite"
    whole, peak = evidence(folder / "acts", dictionary, lm, folder), runtime.peak_memory()
    result = {
        "rows": len(rows.table), "d_sae": width, "evidence_s": round(whole), "peak": runtime.size(peak),
        "before": runtime.size(before), "store": runtime.size(path.stat().st_size),
        "bytes_a_feature": path.stat().st_size // width, "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    alone = encoding(rows, dictionary)
    print(json.dumps({"encoding_s": round(alone), "ratio": round(whole / alone, 2)}))


def main() -> None:
    """One of the two cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--pattern", default="resid_post.3/*-s0", help="dictionaries of RUN/train/NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wide", type=Path, metavar="FOLDER")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="only harvest for --wide")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=32)
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare, options.tokens)
    elif options.wide:
        wide(options.wide, options.tokens, options.width, options.active)
    elif options.run:
        open_artifact(options.run / "activations", "activations")
        compare(options.run, options.pattern, options.repeats)
    else:
        parser.error("give a run, or --wide FOLDER")


if __name__ == "__main__":
    main()
