"""``monolex publish``: features and explanations of a run as files of another tool, an artefact of kind ``published``.

A dictionary is a piece. Everything that is written is checked by the schema of its format first.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from monolex import runtime
from monolex.activations.stored import stored_model
from monolex.artifact import Manifest, write_bytes
from monolex.causal.chosen_features import used_folders
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, choose, parents, run_dictionaries
from monolex.errors import UserError
from monolex.features.known import gathered
from monolex.interp.explain.saved import Explanations
from monolex.lock import alone
from monolex.model.language_model import LanguageModel
from monolex.pieces import FILES, Piece, Work
from monolex.publish import delphi, labels, neuron_explainer, neuronpedia
from monolex.publish.config import PublishConfig
from monolex.publish.explained import explained_features, explanation_folders, score_folders
from monolex.publish.neuronpedia import File
from monolex.publish.notes import EMPTY, page

KIND = "published"


@alone
def publish(folder: str | Path, run: str | Path, config: PublishConfig) -> Manifest:
    """Write what a run knows of its features into ``folder``, a folder ``SITE/NAME`` a dictionary.

    Raises:
        UserError: no run, nothing that can be published in this format, a feature that a dictionary does not have, or
            a damaged artefact.
    """
    folder, run = Path(folder), Path(run)
    used = _used(run, config)
    for dictionary in used:
        last = dictionary.config.d_sae - 1
        for number in config.features:
            require(number <= last, f"features = {number}: {dictionary.title} has features 0 to {last}")
    work = Work(folder, KIND, config, parents(_read(run, used, config)))
    if manifest := work.answer():
        return manifest

    @cache
    def model() -> LanguageModel | None:
        try:
            return stored_model(run / "activations", config.publish_device)
        except UserError as error:
            runtime.log.warning("%s: no histograms of logits: %s", KIND, error)
            return None

    def piece(dictionary: RunDictionary) -> Piece:
        def written(_path: Path) -> dict[str, Any]:
            explained = explained_features(run, dictionary, config)
            home, entries = labels.folder_name(dictionary), {}
            if config.format == "neuronpedia":
                files: Iterator[File] = neuronpedia.files(run, dictionary, config, explained, model)
            elif config.format == "neuron-explainer":
                files = neuron_explainer.files(dictionary, explained)
            else:
                files = delphi.files(run, dictionary, config, explained)
            for file in files:
                name = f"{home}/{file.name}"
                entries[name] = dataclasses.asdict(write_bytes(work.file(name), file.content))
            said = sum(len(feature.explanations) for feature in explained)
            facts = {"files": len(entries), "explained features": len(explained), "explanations": said}
            return {"folder": home, "facts": facts, FILES: entries}

        return written

    entries = work.done({dictionary.key: piece(dictionary) for dictionary in used}, unit="dictionary")
    facts = {entry["folder"]: entry["facts"] for entry in entries.values()}
    readme = page(config.format, facts).encode()
    return work.finish({"README.md": readme}, {"dictionaries": facts, "empty": dict(EMPTY[config.format])})


def _used(run: Path, config: PublishConfig) -> list[RunDictionary]:
    """The dictionaries that are published.

    Raises:
        UserError: there is none, or two would have one folder.
    """
    chosen = choose(run_dictionaries(run), config.dictionaries)
    if config.format == "neuronpedia":
        used = gathered(chosen)
    else:
        known = {key for folder in explanation_folders(run, config.explanations) for key in Explanations(folder).facts}
        used = [dictionary for dictionary in chosen if dictionary.key in known]
        require(bool(used), f"no dictionary of {run} that is asked for was explained; run monolex explain first")
    twice = [name for name, count in Counter(map(labels.folder_name, used)).items() if count > 1]
    require(not twice, f"two dictionaries would be called {''.join(twice[:1])}: choose one by --dictionaries")
    return used


def _read(run: Path, used: Sequence[RunDictionary], config: PublishConfig) -> Mapping[str, Path]:
    """All artefacts that are read, by what the request calls them."""
    folders = used_folders(run, used, evidence=config.format == "neuronpedia")
    for explanations in explanation_folders(run, config.explanations):
        folders[f"explain.{explanations.name}"] = explanations
        folders |= {f"score.{scores.name}": scores for scores in score_folders(run, explanations)}
    return folders
