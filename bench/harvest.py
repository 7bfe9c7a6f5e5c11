"""What harvesting costs beside the forward pass it needs: six residual sites of the Pythia-70M shape, to disk in fp16.

Runs the bare forward pass truncated after block 5 (no unembedding, one hook that stops it) and the whole harvest of the
same batches alternately in one process, and prints the median ratio of their times. Weights and tokens are random.
`cpu_time_ratio` (tokenising included) tells the same on a machine that others use at the time.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from monolex import runtime
from monolex.activations.harvest import harvest
from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.text.corpus import build
from monolex.text.rows import Rows

LAYERS = 6


def pythia_70m(device: torch.device) -> LanguageModel:
    """A random model of the shape of Pythia-70M with a tokenizer of one word a token."""
    shape = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        intermediate_size=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        max_position_embeddings=2048,
    )
    words = Tokenizer(models.WordLevel({"<s>": 0, **{f"w{i}": i for i in range(1, 50304)}}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    return wrap(GPTNeoXForCausalLM(shape).eval().to(device), tokenizer, "pythia-70m-shape")  # pyright: ignore[reportArgumentType]


def write_corpus(path: Path, tokens: int, per_document: int = 1000) -> None:
    """JSONL of random words."""
    ids = torch.randint(
        1, 50304, (tokens // per_document, per_document - 1), generator=torch.Generator().manual_seed(0)
    )
    lines = (json.dumps({"text": " ".join(f"w{i}" for i in row)}) for row in ids.tolist())
    path.write_text("\n".join(lines) + "\n")


class Stop(Exception):
    """Ends the bare forward after the last block."""


@torch.no_grad()
def bare(lm: LanguageModel, rows: Rows, batch: int) -> float:
    """Seconds of the forward pass alone over all rows."""

    def stop(*_: object) -> None:
        raise Stop

    handle = lm.structure.blocks[LAYERS - 1].register_forward_hook(stop)
    start = time.perf_counter()
    for part in rows.tokens.long().split(batch):
        try:
            lm.hf(part.to(lm.device), use_cache=False)
        except Stop:
            continue
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    handle.remove()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=60_000, help="tokens of a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="alternations after one warm-up")
    parser.add_argument("--batch-rows", type=int, default=16, help="packed rows in a forward pass")
    parser.add_argument("--context", type=int, default=256, help="tokens in a packed row")
    parser.add_argument("--shard-mb", type=int, default=128, help="size of a shard over all sites")
    parser.add_argument("--threads", type=int, default=2, help="torch's CPU threads")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = pythia_70m(runtime.device(args.device))
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        print(json.dumps(measure(lm, Path(scratch), args), indent=1))


def measure(lm: LanguageModel, scratch: Path, args: argparse.Namespace) -> dict[str, float]:
    """Alternate the bare forward and the harvest; the corpus is tokenised and hashed outside the clock."""
    write_corpus(scratch / "corpus.jsonl", args.tokens)
    corpus = CorpusConfig(
        corpus=str(scratch / "corpus.jsonl"), context_length=args.context, held_out=0.0, max_tokens=args.tokens
    )
    sites = tuple(f"resid_post.{layer}" for layer in range(LAYERS))
    config = HarvestConfig(sites=sites, dtype="fp16", shard_mb=args.shard_mb, batch_rows=args.batch_rows)
    start = time.perf_counter()
    rows = build(corpus, lm.tokenizer, max_context=lm.max_context).train  # pyright: ignore[reportArgumentType]
    tokenising = time.perf_counter() - start
    times: dict[str, list[float]] = {"bare": [], "harvest": []}
    cpu: dict[str, list[float]] = {"bare": [], "harvest": []}
    manifest = harvest(scratch / "warm-up", ModelConfig(), corpus, config, lm=lm)
    for repeat in range(args.repeats):
        start = time.process_time()
        times["bare"].append(bare(lm, rows, args.batch_rows))
        cpu["bare"].append(time.process_time() - start)
        start, cpu_start = time.perf_counter(), time.process_time()
        harvest(scratch / f"out-{repeat}", ModelConfig(), corpus, config, lm=lm)
        times["harvest"].append(time.perf_counter() - start - tokenising)
        cpu["harvest"].append(time.process_time() - cpu_start)
    ratios = [whole / forward for whole, forward in zip(times["harvest"], times["bare"], strict=True)]
    tokens = rows.tokens.numel()
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "cpu_time_ratio": round(sum(cpu["harvest"]) / sum(cpu["bare"]), 3),
        "tokens": tokens,
        "bare_tokens_per_second": round(tokens / statistics.median(times["bare"])),
        "harvest_tokens_per_second": round(tokens / statistics.median(times["harvest"])),
        "tokenising_seconds": round(tokenising, 2),
        "peak_rss_mb": round(runtime.peak_memory() / 1e6),
        "disk_mb": round(sum(entry.bytes for entry in manifest.files.values()) / 1e6, 1),
    }


if __name__ == "__main__":
    main()
