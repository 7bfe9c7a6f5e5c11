"""``monolex import``: what others say of a dictionary's features, an artefact ``RUN/imported/NAME``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monolex.artifact import MANIFEST, WARNINGS, file_hash, open_artifact
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, choose, run_dictionaries
from monolex.errors import UserError
from monolex.interp.explain.saved import lines, read_lines
from monolex.lock import writing
from monolex.pieces import Work
from monolex.publish.config import ImportConfig
from monolex.publish.files import ENDINGS
from monolex.publish.incoming import ForeignFeature, read_features
from monolex.publish.labels import layer, source_id
from monolex.publish.proof import prove
from monolex.runtime import log

KIND, ROWS = "imported", "rows.jsonl"


@dataclass(frozen=True)
class _Asked:
    """What decides on the artefact, beside the dictionary and the files."""

    author: str
    """As in :class:`ImportConfig`."""
    unproved: bool
    """As there."""


def adopt(run: str | Path, files: Sequence[Path], config: ImportConfig) -> Path:
    """Read files of other tools and keep what they say of the features of one dictionary; returns the folder.

    ``rows.jsonl`` has a line an explanation: site, name, feature, explainer, text, score and its method, and the source
    (file and hash); numbers of a feature have lines of their own, without a text. The manifest says in ``proof`` by
    what the features were known again.

    Raises:
        UserError: no such dictionary, a file that cannot be read, a feature that the dictionary does not have, features
            of another dictionary, or nothing to prove them by and no ``unproved``.
    """
    run, paths = Path(run), list(map(Path, files))
    require(bool(paths), "no files are given; give batch-N.json, explanations or records of a neuron explainer")
    dictionary = _dictionary(run, config.dictionary)
    read = {path: read_features(path) for path in paths}
    for path, features in read.items():
        _require_fitting(path, features, dictionary)
    hashes = {path: file_hash(path) for path in paths}
    folder = run / KIND / (config.name or f"{source_id(dictionary)}-{_stem(paths[0])}")
    parents = {dictionary.key: dictionary.content, **{f"file.{i}": hashes[path] for i, path in enumerate(paths)}}
    work = Work(folder, KIND, _Asked(config.author, config.unproved), parents)
    if work.answer():
        return folder
    # before anything is written: of what is refused no trace stays
    facts = _proof([feature for features in read.values() for feature in features], dictionary, config)
    rows = [row for path in paths for row in _rows(read[path], dictionary, config, path, hashes[path])]
    texts = sum(row["text"] is not None for row in rows)
    facts |= {"site": dictionary.site, "name": dictionary.name, "explanations": texts, "rows": len(rows)}
    with writing(folder):
        work.done({dictionary.key: lambda _path: facts}, unit="dictionary")
        work.finish({ROWS: lines(rows)}, facts)
    return folder


def imported(run: str | Path, dictionary: RunDictionary) -> dict[int, list[dict[str, Any]]]:
    """All rows that were taken in of a dictionary, by feature; of one that was made anew since there are none.

    Raises:
        UserError: an artefact is damaged.
    """
    rows: dict[int, list[dict[str, Any]]] = {}
    for path in sorted((Path(run) / KIND).glob(f"*/{MANIFEST}")):
        manifest = open_artifact(path.parent, KIND)
        if (manifest.data["site"], manifest.data["name"]) != (dictionary.site, dictionary.name):
            continue
        if manifest.parents.get(dictionary.key) != dictionary.content:
            log.warning("%s is of an older %s, and is passed over", path.parent, dictionary.title)
            continue
        for row in read_lines(path.parent / ROWS):
            rows.setdefault(row["feature"], []).append(row)
    return rows


def _dictionary(run: Path, title: str) -> RunDictionary:
    fitting = choose(run_dictionaries(run), (title,))
    require(len(fitting) == 1, f"dictionary = {title!r} fits {len(fitting)} dictionaries of the run; write SITE/NAME")
    return fitting[0]


def _require_fitting(path: Path, features: Sequence[ForeignFeature], dictionary: RunDictionary) -> None:
    last, own_layer = dictionary.config.d_sae - 1, layer(dictionary)
    for feature in features:
        if feature.number > last:
            raise UserError(
                f"{path}: feature {feature.number} is there, and {dictionary.title} has features 0 to {last}; choose "
                "the dictionary that the file is of"
            )
        if feature.layer not in (None, own_layer):
            raise UserError(
                f"{path}: feature {feature.number} is of layer {feature.layer}, and {dictionary.title} of {own_layer}; "
                "choose the dictionary that the file is of"
            )


def _proof(features: Sequence[ForeignFeature], dictionary: RunDictionary, config: ImportConfig) -> dict[str, Any]:
    """What the manifest says of the proof."""
    proof = prove(features, dictionary)
    if proof is not None:
        return {"proof": proof.to_json(), WARNINGS: []}
    require(
        config.unproved,
        f"nothing in the files shows that their features are those of {dictionary.title}: give a file with directions, "
        "logits or activations beside them, or --unproved",
    )
    said = f"nothing shows that these are features of {dictionary.title}: their numbers were believed (--unproved)"
    return {"proof": None, WARNINGS: [said]}


def _rows(
    features: Sequence[ForeignFeature], dictionary: RunDictionary, config: ImportConfig, path: Path, content: str
) -> Iterator[dict[str, Any]]:
    source = {"file": path.name, "sha256": content}
    for feature in features:
        head = {"model": dictionary.model, "site": dictionary.site, "name": dictionary.name, "feature": feature.number}
        for said in feature.explanations:
            score = {"score": said.score, "method": said.method}
            explainer = said.explainer or config.author
            yield {**head, "explainer": explainer, "text": said.text, **score, "numbers": None, "source": source}
        if feature.numbers:
            empty = {"explainer": config.author, "text": None, "score": None, "method": ""}
            yield {**head, **empty, "numbers": dict(feature.numbers), "source": source}


def _stem(path: Path) -> str:
    ending = next(ending for ending in sorted(ENDINGS, key=len, reverse=True) if path.name.endswith(ending))
    return path.name.removesuffix(ending)
