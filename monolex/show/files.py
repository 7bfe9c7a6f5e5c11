"""What is said of a dictionary, a store, one feature in it, tensors and metrics."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from monolex.artifact import read_json
from monolex.errors import UserError
from monolex.runtime import read_jsonl, size
from monolex.show.text import cell, columns, records
from monolex.text.characters import json_quoted, pieces

if TYPE_CHECKING:
    from monolex.features.evidence import Evidence


def show_dictionary(path: Path) -> str:
    """One dictionary: its configuration and the sizes of its weights."""
    from monolex.dictionaries.base import load

    dictionary = load(path)
    norms = dictionary.W_dec.norm(dim=1)
    shapes = [[name, " × ".join(map(str, w.shape)), f"{w.norm():.4g}"] for name, w in dictionary.weights.items()]
    return "\n".join(
        [
            f"{path}: {dictionary}",
            json.dumps(read_json(path / "config.json"), indent=1, ensure_ascii=False),
            f"decoder row norms {norms.min():.3g} to {norms.max():.3g}",
            columns([["weight", "shape", "norm"], *shapes]),
        ]
    )


def show_store(path: Path) -> str:
    """The evidence of one dictionary: what it is of, and the features that one token says most about."""
    from monolex.features.store import FeatureStore

    with closing(FeatureStore(path)) as store:
        summaries = store.summaries("top_share IS NOT NULL", order="top_share DESC, id", limit=20)
        texts = [json_quoted(store.text(summary.top_token)) for summary in summaries]
        meta = "\n".join(f"{key}  {json.dumps(value, ensure_ascii=False)}" for key, value in store.meta.items())
    keys = ("id", "n_active", "density", "max", "kurtosis", "distinct_tokens", "top_share")
    rows = [[*(cell(getattr(o, key)) for key in keys), text] for o, text in zip(summaries, texts, strict=True)]
    return f"{path}\n{meta}\nThe features with the largest share of one token:\n{columns([[*keys, 'token'], *rows])}"


def show_feature(path: Path, number: int) -> str:
    """What a store, or a batch of another tool, knows of one feature, as text.

    Raises:
        UserError: no such store, batch or feature.
    """
    from monolex.features.store import FeatureStore
    from monolex.publish.read_batch import read_batch

    if path.name.endswith((".json", ".json.gz")):
        batch = read_batch(path)
        return said_of(batch.evidence(number), batch.title)
    with closing(FeatureStore(path)) as store:
        return said_of(store.feature(number), store.meta["name"])


def said_of(evidence: "Evidence", name: str) -> str:
    """All evidence of one feature of the dictionary ``name``; the strongest token of a context stands in «»."""
    number = evidence.summary.id
    lines = [f"feature {number} of {name}", *(f"{k}  {cell(v)}" for k, v in evidence.summary._asdict().items())]
    for title, shares in (("on", evidence.tokens), ("after", evidence.before)):
        lines.append(f"{title}  " + ", ".join(f"{json_quoted(t.text)} {t.share:.1%}" for t in shares))
    for title, side in (("promotes", evidence.promoted), ("suppresses", evidence.suppressed)):
        texts = (f"{json_quoted(t.text)} {t.weight:.3g}" for t in side)
        lines.append(f"{title} directly  " + ", ".join(texts))
    for title, others in (("similar", evidence.neighbours), ("active together", evidence.coactive)):
        lines.append(f"{title}  " + ", ".join(f"{n.feature} ({n.value:.3g})" for n in others))
    for group, contexts in evidence.examples.items():
        for context in contexts:
            strongest = min if group == "negative" else max
            peak = strongest(context.activations)
            shown = ((strongest(context.activations[p.start : p.stop]), p.text) for p in pieces(context.texts))
            marked = "".join(f"«{text}»" if activation == peak != 0 else text for activation, text in shown)
            part = f" {context.part}" if group == "quantile" else ""
            lines.append(f"{group}{part}  {peak:.4g}  {json.dumps(marked, ensure_ascii=False)}")
    return "\n".join(lines)


def show_tensors(path: Path) -> str:
    """The tensors of a safetensors file, with their first values."""
    from safetensors import SafetensorError, safe_open

    rows = [["tensor", "dtype", "shape", "first values"]]
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                first = part[:1].flatten()[:6].tolist() if part.get_shape() else []
                shape = " × ".join(map(str, part.get_shape()))
                rows.append([name, part.get_dtype(), shape, " ".join(f"{v:.4g}" for v in first)])
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); run its stage again") from error
    return f"{path}: {size(path.stat().st_size)}\n{columns(rows)}"


def show_metrics(path: Path) -> str:
    """The last line of every member in a metrics.jsonl; of other lines how many there are, and the first."""
    first = next(read_jsonl(path), {})
    if "step" not in first:
        count = sum(1 for _ in read_jsonl(path))
        return f"{path}: {count:,} lines; the first:\n{json.dumps(first, indent=1, ensure_ascii=False)}"
    last = {(row.get("site"), row.get("member")): row for row in read_jsonl(path)}
    return f"{path}: last values of {len(last)} members\n{records(list(last.values()))}"
