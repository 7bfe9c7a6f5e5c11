"""What is said of a dictionary, a store, one feature in it, tensors and metrics."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monolex.artifact import read_json
from monolex.errors import UserError
from monolex.runtime import read_jsonl, size
from monolex.show.text import cell, columns, records
from monolex.text.characters import json_quoted, pieces

if TYPE_CHECKING:
    from monolex.features.evidence import Evidence


def dictionary_data(path: Path) -> dict[str, Any]:
    """One dictionary: its configuration, the sizes of its weights, and the norms of its decoder's rows."""
    from monolex.dictionaries.base import load

    dictionary = load(path)
    norms = dictionary.W_dec.norm(dim=1)
    weights = [
        {"weight": name, "shape": list(w.shape), "norm": float(w.norm())} for name, w in dictionary.weights.items()
    ]
    return {
        "path": str(path),
        "dictionary": str(dictionary),
        "config": read_json(path / "config.json"),
        "decoder_norms": {"min": float(norms.min()), "max": float(norms.max())},
        "weights": weights,
    }


def show_dictionary(path: Path) -> str:
    """One dictionary: its configuration and the sizes of its weights."""
    facts = dictionary_data(path)
    norms = facts["decoder_norms"]
    shapes = [[w["weight"], " × ".join(map(str, w["shape"])), f"{w['norm']:.4g}"] for w in facts["weights"]]
    return "\n".join(
        [
            f"{path}: {facts['dictionary']}",
            json.dumps(facts["config"], indent=1, ensure_ascii=False),
            f"decoder row norms {norms['min']:.3g} to {norms['max']:.3g}",
            columns([["weight", "shape", "norm"], *shapes]),
        ]
    )


def store_data(path: Path) -> dict[str, Any]:
    """The evidence of one dictionary: what it is of, and the features that one token says most about."""
    from monolex.features.store import FeatureStore

    with closing(FeatureStore(path)) as store:
        summaries = store.summaries("top_share IS NOT NULL", order="top_share DESC, id", limit=20)
        features = [{**summary._asdict(), "token": store.text(summary.top_token)} for summary in summaries]
        return {"path": str(path), "meta": dict(store.meta), "features": features}


def show_store(path: Path) -> str:
    """The same as text."""
    facts = store_data(path)
    meta = "\n".join(f"{key}  {json.dumps(value, ensure_ascii=False)}" for key, value in facts["meta"].items())
    keys = ("id", "n_active", "density", "max", "kurtosis", "distinct_tokens", "top_share")
    rows = [[*(cell(row[key]) for key in keys), json_quoted(row["token"])] for row in facts["features"]]
    return f"{path}\n{meta}\nThe features with the largest share of one token:\n{columns([[*keys, 'token'], *rows])}"


def feature_data(path: Path, number: int) -> dict[str, Any]:
    """What a store, or a batch of another tool, knows of one feature.

    Raises:
        UserError: no such store, batch or feature.
    """
    name, evidence = _feature(path, number)
    return {"path": str(path), "name": name, "evidence": evidence}


def show_feature(path: Path, number: int) -> str:
    """What a store, or a batch of another tool, knows of one feature, as text.

    Raises:
        UserError: no such store, batch or feature.
    """
    name, evidence = _feature(path, number)
    return said_of(evidence, name)


def _feature(path: Path, number: int) -> tuple[str, "Evidence"]:
    """What a feature's dictionary is called, and its evidence."""
    from monolex.features.store import FeatureStore
    from monolex.publish.read_batch import read_batch

    if path.name.endswith((".json", ".json.gz")):
        batch = read_batch(path)
        return batch.title, batch.evidence(number)
    with closing(FeatureStore(path)) as store:
        return store.meta["name"], store.feature(number)


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


def tensors_data(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, with their first values.

    Raises:
        UserError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors = []
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                first = part[:1].flatten()[:6].tolist() if part.get_shape() else []
                facts = {"tensor": name, "dtype": part.get_dtype(), "shape": list(part.get_shape())}
                tensors.append(facts | {"first_values": first})
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); run its stage again") from error
    return {"path": str(path), "bytes": path.stat().st_size, "tensors": tensors}


def show_tensors(path: Path) -> str:
    """The same as text."""
    facts, rows = tensors_data(path), [["tensor", "dtype", "shape", "first values"]]
    for tensor in facts["tensors"]:
        shape, first = " × ".join(map(str, tensor["shape"])), " ".join(f"{v:.4g}" for v in tensor["first_values"])
        rows.append([tensor["tensor"], tensor["dtype"], shape, first])
    return f"{path}: {size(facts['bytes'])}\n{columns(rows)}"


def metrics_data(path: Path) -> dict[str, Any]:
    """The last line of every member in a metrics.jsonl; of other lines how many there are, and the first."""
    first = next(read_jsonl(path), {})
    if "step" not in first:
        return {"path": str(path), "lines": sum(1 for _ in read_jsonl(path)), "first": first}
    last = {(row.get("site"), row.get("member")): row for row in read_jsonl(path)}
    return {"path": str(path), "members": list(last.values())}


def show_metrics(path: Path) -> str:
    """The same as text."""
    facts = metrics_data(path)
    if "members" not in facts:
        return (
            f"{path}: {facts['lines']:,} lines; the first:\n{json.dumps(facts['first'], indent=1, ensure_ascii=False)}"
        )
    return f"{path}: last values of {len(facts['members'])} members\n{records(facts['members'])}"
