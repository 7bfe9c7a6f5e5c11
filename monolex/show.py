"""``monolex show PATH``: anything monolex wrote, as text a person reads."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, Manifest, open_artifact, read_json, verify
from monolex.errors import UserError
from monolex.pieces import UNANSWERED
from monolex.runtime import read_jsonl, size

EXAMPLES, LETTERS = 12, 100
"""Explanations that are shown of an artefact, and how much of each."""
UNFINISHED = {"progress.json": "harvest, fit or gathering", "state": "training", "partial": "evaluation"}
TABLES = (
    ("decomposition", ("fvu", "l0", "alive_paper", "dead", "norm_ratio")),
    ("fidelity", ("ce", "kl", "loss_recovered_zero", "loss_recovered_mean")),
)


def show(path: Path) -> str:
    """What lies at ``path``.

    Raises:
        UserError: nothing there, or nothing monolex wrote.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run, an artefact, a dictionary or a file of one")
    if path.suffix == ".safetensors":
        return show_tensors(path)
    if path.suffix == ".sqlite":
        return show_store(path)
    if path.suffix == ".jsonl":
        return show_metrics(path)
    if path.suffix == ".json":
        return json.dumps(read_json(path), indent=1, ensure_ascii=False)
    if (path / MANIFEST).exists():
        manifest = open_artifact(path)
        left = manifest.data.get(UNANSWERED)
        again = [f"calls went unanswered: {_counts(left)}; the command that made this tries them again"] if left else []
        return "\n".join([_head(path, manifest), *again, *KINDS[manifest.kind](path, manifest)])
    if (path / "weights.safetensors").exists():
        return show_dictionary(path)
    for name, what in UNFINISHED.items():
        if (path / name).exists():
            raise UserError(f"{path} is an unfinished {what} ({name}); repeat its command and it goes on from there")
    inner = _artifacts(path)
    if not inner:
        raise UserError(f"{path} is nothing monolex wrote; give a run, an artefact, a dictionary or a shard")
    return "\n\n".join(show(folder) for folder in inner)


def check(path: Path) -> Iterator[str]:
    """Recompute every hash of the artefact at ``path``, or of all below it; a line for each that is whole.

    Raises:
        UserError: the first that is not, after the lines of the others, or no artefact there.
    """
    found, broken = _artifacts(path), []
    if not found:
        raise UserError(f"{path} holds no finished artefact to verify; give an artefact or a run")
    for folder in found:
        try:
            yield f"{_head(folder, verify(folder))}, whole"
        except UserError as error:
            broken.append(error)
    if broken:
        raise broken[0]


def _artifacts(path: Path) -> list[Path]:
    """The finished artefacts at or below a path."""
    return sorted(manifest.parent for manifest in path.rglob(MANIFEST)) if path.is_dir() else []


def show_activations(_path: Path, manifest: Manifest) -> list[str]:
    """Sites, rows and what was dropped."""
    data = manifest.data
    sites = [[s, str(v["d_in"]), v["dtype"], f"{v['sampled_max']:.3g}"] for s, v in data["sites"].items()]
    model = data["model"]
    return [
        f"model    {model['name']} ({model['architecture']}), fingerprint {model['fingerprint'][:12]}",
        f"rows     {', '.join(f'{split} {rows:,}' for split, rows in data['rows'].items())}",
        f"dropped  {json.dumps(data['dropped'])}",
        f"corpus   {json.dumps(data['corpus']['report'])[:400]}",
        columns([["site", "d_in", "stored as", "sampled maximum"], *sites]),
    ]


def show_members(_path: Path, manifest: Manifest) -> list[str]:
    """The dictionaries of a sweep or of a folder of baselines."""
    return [f"{len(manifest.data['members'])} dictionaries", _records(manifest.data["members"])]


def show_eval(path: Path, _manifest: Manifest) -> list[str]:
    """The metrics as tables, one row a dictionary."""
    from monolex.evals.table import table

    rows = read_json(path / "metrics.json")
    return [f"\n{title}\n{table(rows, metrics)}" for title, metrics in TABLES]


def show_features(_path: Path, manifest: Manifest) -> list[str]:
    """The stores of evidence."""
    return [f"{len(manifest.data['stores'])} stores of evidence", _records(manifest.data["stores"])]


def show_patch(path: Path, _manifest: Manifest) -> list[str]:
    """Behaviour first, then the KL of every dictionary at some sizes, and what became of the paper's claims."""
    from monolex.pages.causal import SIZES, nearest

    patch = read_json(path / "patch.json")
    own, corruption = patch["behaviour"], patch["corruption"]
    rows = [["prompts", "names", "accuracy", "logit difference"]]
    rows += [[patch["task"], "–", _estimate(own["accuracy"]), _estimate(own["logit_difference"])]]
    for row in patch["table"]:
        rows.append([row["wordings"], row["names"], _estimate(row["accuracy"]), _estimate(row["logit_difference"])])
    heads = ["model", "site", "dictionary", "features", "KL none", "KL all", *(f"KL near {size}" for size in SIZES)]
    kept = [heads]
    for one in patch["curves"]:
        near = [nearest(one["curves"].get("ranking", ()), size) for size in SIZES]
        ends = [_estimate(one["floors"][name]["kl"]) for name in ("none", "all")]
        kls = [_cell(point and point["kl"]["value"]) for point in near]
        kept.append([one["model"], one["site"], one["name"], str(one["candidates"]), *ends, *kls])
    claims = [["statement", "dictionary", "against", "at", "ratio or floor", "verdict"]]
    for claim in patch["claims"]:
        names = [claim["statement"], claim["dictionary"], claim["against"] or "–", _cell(claim["level"])]
        claims.append([*names, _estimate(claim["estimate"]), claim["verdict"]])
    return [
        f"task {patch['task']}{', corruption ' + corruption if corruption else ''}, {patch['pairs']} pairs of prompts",
        f"{'able' if own['able'] else 'NOT ABLE'}: {own['verdict']}",
        columns(rows),
        f"\nKL to the donor in nats, by the ranking of integrated gradients\n{columns(kept)}",
        f"\n{columns(claims)}",
    ]


def show_explain(path: Path, _manifest: Manifest) -> list[str]:
    """What was asked, skipped and failed, dictionary by dictionary, and some explanations."""
    facts = read_json(path / "explain.json")
    kept = [["model", "site", "dictionary", "asked", "explained", "skipped and failed"]]
    for one in facts["dictionaries"]:
        failed = [f"{name}: {_counts(some)}" for name, some in one["failures"].items() if some]
        said = "; ".join([_counts(one["skipped"]), *failed]).strip("; ")
        kept.append([one["model"], one["site"], one["name"], str(one["asked"]), str(one["explained"]), said or "–"])
    fragments = ", ".join(f"{model} {count:,}" for model, count in facts["fragments"].items())
    shown = [["feature", "explainer", "explanation"]]
    # what directions write stands among the lines too, and is no explanation
    rows = (row for row in read_jsonl(path / "explanations.jsonl") if row["explainer"] != "output")
    for row in itertools.islice(rows, EXAMPLES):
        text = row["text"] if row["failure"] is None else f"failed: {row['failure']}"
        shown.append([f"{row['site']}/{row['name']}:{row['feature']}", row["explainer"], text[:LETTERS]])
    left = [f"{model}: {_counts(some)}" for model, some in facts["left_out"].items() if some]
    return [
        f"mode {facts['mode']}, explainers {', '.join(facts['explainers'])}",
        f"fragments: {fragments}; left out: {'; '.join(left) or 'none'}",
        columns(kept),
        f"\n{columns(shown)}",
    ]


def show_score(path: Path, _manifest: Manifest) -> list[str]:
    """Mean scores by dictionary and explainer, with intervals and how many features have none."""
    facts = read_json(path / "score.json")
    heads = ["top and random", "random", "chance", "detection", "fuzz", "features", "without a score"]
    kept = [["model", "site", "dictionary", "explainer", *heads]]
    names = ("top_and_random", "random", "chance", "detection", "fuzz")
    for one in facts["dictionaries"]:
        for explainer, some in one["explainers"].items():
            main = some["top_and_random"]
            cells = [_mean(some[name], main["n"]) if name in some else "–" for name in names]
            counts = [str(main["n"]), _counts({**one["skipped"], **main["missing"]}) or "–"]
            kept.append([one["model"], one["site"], one["name"], explainer, *cells, *counts])
    return [f"simulator {facts['simulator']}, fragments of mode {facts['mode']}", columns(kept)]


def _mean(found: dict[str, Any], features: int) -> str:
    """A mean, and over how many features where it is not over ``features`` of them."""
    return _estimate(found) + (f" (n {found['n']})" if found["n"] not in (0, features) else "")


def _counts(some: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in some.items())


def show_ablate(path: Path, _manifest: Manifest) -> list[str]:
    """Of every feature how much predictions change beside its controls, and the tokens that lose most."""
    lines = []
    for one in read_json(path / "ablate.json")["ablations"]:
        kl = one["kl"]
        effects = [["ablated", "KL, nats", "p"], ["the feature", _estimate(kl["feature"]), "–"]]
        effects.append(["a matched feature", _estimate(kl["control_feature"]), _cell(kl["p_feature"])])
        effects.append(["a random direction", _estimate(kl["control_direction"]), _cell(kl["p_direction"])])
        rows = [["token", "change of probability", "direct", "control", "p"]]
        for token in one["measures"]["probability"]["suppressed"][:10]:
            change = _estimate({**token, "value": token["change"], "reason": ""})
            rest = [_cell(token[key]) for key in ("direct", "control", "p")]
            rows.append([json.dumps(token["text"], ensure_ascii=False), change, *rest])
        where = f"{one['occurrences']} tokens of {one['documents']} documents"
        lines += [f"\nfeature {one['feature']} of {one['site']}/{one['name']} {one['words']}, {where}"]
        lines += [columns(effects), columns(rows)]
    return lines


def show_tree(path: Path, _manifest: Manifest) -> list[str]:
    """Every tree as indented text, strongest first, with effects ± standard errors and shares."""
    from monolex.pages.trees import called, effect, ordered

    lines = []

    def grow(nodes: list[dict[str, Any]], parent: int | None, depth: int) -> None:
        for node in ordered(nodes, parent):
            words = f" {node['label']}" if node["kind"] == "feature" and node["label"] else ""
            lines.append(f"{'  ' * depth}{called(node)}{words}  {effect(node)}")
            grow(nodes, node["id"], depth + 1)

    for one in read_json(path / "tree.json")["trees"]:
        lines.append(f"\n{one['root']}")
        grow(one["nodes"], None, 0)
        falls = [f"{json.dumps(t['text'], ensure_ascii=False)} {_estimate(t['effect'])}" for t in one["logits"]]
        lines.append(f"without it tokens lose, in nats: {', '.join(falls)}" if falls else "no token loses without it")
    return lines


KINDS: dict[str, Callable[[Path, Manifest], list[str]]] = {
    "activations": show_activations,
    "sweep": show_members,
    "baselines": show_members,
    "eval": show_eval,
    "features": show_features,
    "patch": show_patch,
    "ablate": show_ablate,
    "explain": show_explain,
    "score": show_score,
    "tree": show_tree,
}


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
    from contextlib import closing

    from monolex.features.store import FeatureStore

    with closing(FeatureStore(path)) as store:
        found = store.summaries("top_share IS NOT NULL", order="top_share DESC, id", limit=20)
        texts = [json.dumps(store.text(one.top_token), ensure_ascii=False) for one in found]
        meta = "\n".join(f"{key}  {json.dumps(value, ensure_ascii=False)}" for key, value in store.meta.items())
    keys = ("id", "n_active", "density", "max", "kurtosis", "distinct_tokens", "top_share")
    rows = [[*(_cell(getattr(o, key)) for key in keys), text] for o, text in zip(found, texts, strict=True)]
    return f"{path}\n{meta}\nThe features with the largest share of one token:\n{columns([[*keys, 'token'], *rows])}"


def show_feature(path: Path, number: int) -> str:
    """What a store knows of one feature, as text; the strongest token of a context stands in «».

    Raises:
        UserError: no such store or feature.
    """
    from contextlib import closing

    from monolex.features.store import FeatureStore

    with closing(FeatureStore(path)) as store:
        found, name = store.feature(number), store.meta["name"]
    lines = [f"feature {number} of {name}", *(f"{k}  {_cell(v)}" for k, v in found.summary._asdict().items())]
    for title, shares in (("on", found.tokens), ("after", found.before)):
        lines.append(
            f"{title}  " + ", ".join(f"{json.dumps(t.text, ensure_ascii=False)} {t.share:.1%}" for t in shares)
        )
    for title, side in (("promotes", found.promoted), ("suppresses", found.suppressed)):
        texts = (f"{json.dumps(t.text, ensure_ascii=False)} {t.weight:.3g}" for t in side)
        lines.append(f"{title} directly  " + ", ".join(texts))
    for title, others in (("similar", found.neighbours), ("active together", found.coactive)):
        lines.append(f"{title}  " + ", ".join(f"{n.feature} ({n.value:.3g})" for n in others))
    for group, contexts in found.examples.items():
        for one in contexts:
            peak = max(one.activations)
            marked = "".join(f"«{t}»" if a == peak > 0 else t for t, a in zip(one.texts, one.activations, strict=True))
            part = f" {one.part}" if group == "quantile" else ""
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
    return f"{path}: last values of {len(last)} members\n{_records(list(last.values()))}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, aligned; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _records(records: Sequence[dict[str, Any]]) -> str:
    keys = [key for key in dict.fromkeys(k for r in records for k in r) if key != "path"]
    return columns([keys, *[[_cell(record.get(key)) for key in keys] for record in records]]) if records else ""


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _estimate(found: dict[str, Any]) -> str:
    """A number with its interval, or why it has none."""
    if found["value"] is None:
        return f"n/a: {found['reason']}"
    span = "" if found["low"] is None or found["high"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['value']:.3g}{span}"


def _head(path: Path, manifest: Manifest) -> str:
    total = sum(entry.bytes for entry in manifest.files.values())
    files = len(manifest.files)
    return f"{path}: {manifest.kind}, {files} files, {size(total)}, content {manifest.content[:12]}"
