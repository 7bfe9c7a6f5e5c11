"""The template of a first run.toml, filled for a model, a text and sizes."""

import json
import math
from pathlib import Path
from string import Template

from monolex.new_run.sizes import Sizes, Subject, Text
from monolex.training.members import short

TEMPLATE = Path(__file__).with_name("template.toml")
DEMO_WIDTH = 192
"""Width of the model on which the sparsities below were found to suit."""
ALPHAS = (0.006, 0.015, 0.003)
"""L1 coefficients there, the one to have first; the threshold of a feature relative to a row goes with their product
with the square root of the width."""
KS = (24, 8, 72)
"""Likewise active features; how many a row has goes with the width, up to what the field uses on large models."""
LARGEST_KS = (96, 32, 256)
BATCH_BYTES = 3e8
"""What the forward passes of the harvest and of the evaluation may hold."""


def written(subject: Subject, text: Text, sizes: Sizes, path: Path = Path("run.toml"), minutes: float = 0) -> str:
    """The file."""
    rung, width, positions = sizes.rung, subject.width, subject.context
    alphas = [_rounded(alpha * math.sqrt(DEMO_WIDTH / width)) for alpha in ALPHAS[: rung.sparsities]]
    ks = [_active(k, most, width) for k, most in zip(KS, LARGEST_KS, strict=True)][: rung.sparsities]
    batch = _batch(sizes.rows)
    steps = max(sizes.rows // batch, 1)
    widest = max(subject.shape.widths.values())
    practised = "practised" if subject.name == "demo" else ""
    values = {
        "out": path,
        "minutes": f"{minutes:g}",
        "model": json.dumps(subject.name, ensure_ascii=False),
        "dtype": "auto" if subject.automatic else subject.dtype,
        "found": f"{subject.dtype}: {subject.why}",
        "corpus": json.dumps(text.name, ensure_ascii=False),
        "text_field": json.dumps(text.text_field, ensure_ascii=False),
        "tokens": f"{sizes.tokens:_}",
        "document_tokens": f"{'# ' * (not _cuts(text))}document_tokens = {_cut(text, sizes.tokens, positions):_}",
        "context": positions,
        "positions": f"{subject.positions:,}",
        "sites": json.dumps(subject.sites),
        "middle": subject.middle,
        "batch_rows": _power(BATCH_BYTES / (positions * (16 * width + 16 * widest)), 1, 16),
        "ratio": rung.ratio,
        "r": short(rung.ratio),
        "alphas": alphas,
        "ks": ks,
        "k": ks[0],
        "lr": _rounded(learning_rate(rung.ratio * width, steps)),
        "batch": batch,
        "steps": f"{steps:,}",
        "epochs": f"{sizes.epochs}.0",
        "baselines": json.dumps(["neurons", "random-topk", "pca", "pca-topk", *["ica-topk"] * rung.ica]),
        "controls": json.dumps(rung.controls),
        "rows": f"{min(50_000, max(sizes.tokens // 10, 1)):_}",
        "contexts": rung.contexts,
        "batch_contexts": _power(BATCH_BYTES / (12 * positions * subject.shape.vocab), 1, 16),
        "memory_mb": 512,
        "explained": rung.explained,
        "fragments": f"{max(min(2_000, sizes.tokens // 100), 1):_}",
        # a row holds its separator too, and ends of documents
        "fragment_tokens": int(max(min(64, positions // 2, text.mean / 2), 2)),
        "patch_note": f"# Left out: {subject.unspelled}.\n" if subject.unspelled else "",
        "p": "# " if subject.unspelled else "",
        "words": practised or "standard",
        "names": practised or "common",
        "pairs": rung.pairs,
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def learning_rate(d_sae: float, steps: int) -> float:
    """The rate of the preset `modern` (Gao et al. 2024), up to four times as large where a run is shorter than 10,000
    steps; the rates that were found for the demo and for docs/results.md lie on it."""
    return 2e-4 / math.sqrt(d_sae / 2**14) * min(max(math.sqrt(10_000 / steps), 1), 4)


def _batch(rows: int) -> int:
    """Larger where there are more activations, and more steps too."""
    return _power(math.sqrt(rows) / 1.5 * math.sqrt(2), 32, 4096)


def _power(number: float, least: int, most: int) -> int:
    """The largest power of two that is not above ``number``, within bounds."""
    return min(max(2 ** int(math.log2(max(number, 1))), least), most)


def _active(k: int, most: int, width: int) -> int:
    return min(max(4 * round(k * width / DEMO_WIDTH / 4), 1 + k // 6), most)


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")


def _cuts(text: Text) -> bool:
    """Whether documents are long enough to be cut."""
    return text.mean > text.document_tokens / 8


def _cut(text: Text, tokens: int, context: int) -> int:
    """Tokens of a document, so that fewer tokens come of as many documents."""
    return max(2 * context, text.document_tokens * tokens // text.tokens)
