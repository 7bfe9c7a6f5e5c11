"""What the page says of a run as a whole: its model, corpus and measuring, and how it was made."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monolex.artifact import SUBJECT, Manifest
from monolex.model import gguf
from monolex.pages.eval_charts import EvaluatedDictionary
from monolex.pages.html import number, short


def subject(activations: Manifest | None, everything: Sequence[EvaluatedDictionary]) -> dict[str, str]:
    """Title and first sentence."""
    subject = [e for e in everything if e.model == SUBJECT]
    trained, baselines = sum(e.trained for e in subject), sum(e.baseline for e in subject)
    controls = len({e.model for e in everything} - {SUBJECT})
    sites = len({e.site for e in everything if e.site})
    lead = f"{_counted(trained, 'dictionary', 'dictionaries')} trained at {_counted(sites, 'site')}"
    if activations:
        corpus = _short(activations.config.get("corpus", "its corpus"))
        lead += f" on {activations.data['rows']['train']:,} activations{_streamed(activations)} over {corpus}"
    beside = [_counted(n, word) for n, word in ((baselines, "baseline"), (controls, "control model")) if n]
    lead += f", beside {' and '.join(beside)}." if beside else "; no baselines and no control models."
    stored = activations.data["model"] if activations else {"name": "a language model"}
    # an artefact of before has no title
    model = stored.get("title") or _short(stored["name"])
    return {"model": model, "lead": lead}


def _streamed(activations: Manifest) -> str:
    """What dictionaries read that is not stored, if anything."""
    tokens = activations.data.get("streamed")
    return f" and those of {tokens:,} more tokens (not stored)" if tokens else ""


def _short(place: str) -> str:
    """The last part of a path; a name as it is."""
    return Path(place).name if Path(place).is_absolute() else place


def facts(activations: Manifest | None) -> list[tuple[str, str]]:
    """Model, corpus and activations, each with its label."""
    if activations is None:
        return []
    data, config = activations.data, activations.config
    model, read = data["model"], data["corpus"]["report"]
    sites = [f"{site} ({stored['d_in']} wide, {stored['dtype']})" for site, stored in data["sites"].items()]
    chosen = model.get("precision")
    dtype = model["model_config"]["model_dtype"] + (f" ({chosen['reason']})" if chosen and chosen["kl"] else "")
    rows = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in data["rows"].items())
    return [
        ("Model", f"{model['name']}, {model['architecture']}, {dtype}, fingerprint {short(model['fingerprint'])}"),
        *([("Weights", gguf.sentence(model["gguf"]))] if model.get("gguf") else []),
        ("Corpus", f"{config.get('corpus')}, digest {short(data['corpus']['digest'])}"),
        ("Read", f"{read['documents']:,} documents, {read['tokens']:,} tokens, rows of {config.get('context_length')}"),
        ("Activations", f"{rows}{_streamed(activations)}"),
        ("Sites", ", ".join(sites)),
        ("Left out", ", ".join(_counts(data["dropped"])) or "nothing"),
    ]


def _counts(value: Any, name: str = "") -> list[str]:
    """Numbers of a nested table by name, those above zero."""
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() for text in _counts(inner, f"{name} {key}".strip())]
    return [f"{name.replace('_', ' ')} {value:,}"] if value else []


def measured(evaluation: Manifest, everything: Sequence[EvaluatedDictionary]) -> list[tuple[str, str]]:
    """What was measured on, and what intervals are, each with its label."""
    config = evaluation.config
    rows = {int(value) for e in everything if (value := e.value("rows"))}
    seen = f"{number(max(rows))} held-out activations a site" if rows else "no held-out activations"
    seen += f"; losses on {config['contexts']:,} contexts"
    spared = [value for e in everything if (value := e.value("spared")) is not None]
    if spared:
        left = "first positions, separators and tokens of an extreme norm"
        seen += f"; {left} ({max(spared):.2%} of the others at most) are left as they are"
    intervals = f"{config['level']:.0%} bootstrap, {config['resamples']:,} resamples, seed {config['eval_seed']}"
    return [("Measured on", seen), ("Intervals", intervals)]


def problems(activations: Manifest | None) -> dict[str, Any]:
    """What went wrong while reading the corpus: counts, and the first by name."""
    if activations is None:
        return {"counts": [], "named": []}
    read = activations.data["corpus"]["report"]
    counts = _counts({key: read[key] for key in ("empty", "bad_lines", "undecodable") if key in read})
    return {"counts": counts, "named": read.get("problems", [])}


def stage(name: str, manifest: Manifest, timings: Mapping[str, float]) -> dict[str, str]:
    """The row of an artefact in the table of stages."""
    seconds = timings.get(name)
    return {
        "name": name,
        "kind": manifest.kind,
        "content": manifest.content,
        "time": "–" if seconds is None else f"{seconds:,.0f} s",
        "config": json.dumps(manifest.config, indent=1, ensure_ascii=False),
    }


def versions(manifests: Iterable[Manifest]) -> str:
    """Packages and their versions; more than one where the stages differ."""
    by_package: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for package, version in manifest.versions.items():
            by_package.setdefault(package, {})[version] = None
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in by_package.items())


def toml(path: Path) -> str:
    """The text of a run.toml; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
