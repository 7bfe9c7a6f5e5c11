"""What the index holds of a run, out of its stores, explanations, scores and experiments, dictionary by dictionary.

A dictionary's rows are made again where the store, the explanations, scores or experiments of the run they are made of
have another hash; all else stays. What cannot be read is left out, and read again until it can be.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from monolex.artifact import SUBJECT, Manifest, digest, open_artifact, read_json
from monolex.dictionaries.base import CONFIG, WEIGHTS
from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError
from monolex.explorer.current import experiments, of_dictionaries
from monolex.explorer.index import Index
from monolex.explorer.migrations import MIGRATIONS
from monolex.features.known import open_store
from monolex.features.store import FeatureStore
from monolex.interp.explain import saved
from monolex.interp.records import dictionary_of
from monolex.interp.score import stage as score
from monolex.model.sites import Site
from monolex.pages.interest import ranked
from monolex.runtime import progress

UNREAD = ""
"""What a dictionary is made of while something that belongs to it cannot be read."""
TOKENS = 10
"""Tokens of a feature that are searched, those with the largest shares."""
SHIFT = 32
"""Bits of a feature's number in its row of the table ``words``."""
Rows = list[tuple[Any, ...]]


class FeatureFacts(NamedTuple):
    """What a run's artefacts say of the features of one dictionary, beside its store."""

    explanations: Rows
    """Rows of the table ``explanation``, without the dictionary."""
    effects: dict[int, tuple[float | None, ...]]
    """KL when ablated with its interval, and a control's, by feature."""
    memberships: Rows
    """Rows of the table ``membership``, without the dictionary."""


class Filled(NamedTuple):
    """What bringing an index up to date found."""

    read: int
    """Dictionaries that were read anew."""
    experiments: dict[str, Manifest]
    """Those that can be read, by their path in the run."""


def hashes(dictionaries: Sequence[RunDictionary]) -> dict[str, RunDictionary]:
    """Dictionaries by a hash of weights, configuration and activations, off the manifests of their sweeps.

    The neuron basis is the same in every run of a model; what was seen of it in another text is another dictionary's.
    """
    manifests = {source: open_artifact(source) for source in dict.fromkeys(d.source for d in dictionaries)}
    named = {}
    for dictionary in dictionaries:
        files, place = manifests[dictionary.source].files, dictionary.folder.relative_to(dictionary.source).as_posix()
        harvest = manifests[dictionary.source].parents["activations"]
        content = digest([*(files[f"{place}/{name}"].sha256 for name in (WEIGHTS, CONFIG)), harvest])
        # two names of the same weights (a seed that is given twice) are two dictionaries of a run
        named[digest([content, dictionary.title]) if content in named else content] = dictionary
    return named


def fill(index: Index, run: Path, dictionaries: Mapping[str, RunDictionary], damaged: dict[str, str]) -> Filled:
    """Bring the index up to date with a run.

    What is wrong with experiments and with stores of evidence is put into ``damaged`` by their path.
    """
    artefacts = experiments(run, damaged)
    evidence = {key: _whole_evidence(run, dictionary, damaged) for key, dictionary in dictionaries.items()}
    whole = {key: replace(dictionary, evidence=evidence[key]) for key, dictionary in dictionaries.items()}
    features = open_artifact(run / "features", "features", whole=False) if any(evidence.values()) else None
    said = digest([len(MIGRATIONS), *sorted(m.content for m in artefacts.values() if m.kind in READERS)])
    made_of = {}
    for key, dictionary in dictionaries.items():
        store = evidence[key]
        place = store.relative_to(run / "features").as_posix() if store else ""
        content = features.files[place].sha256 if place and features else None
        made_of[key] = UNREAD if dictionary.evidence and not store else digest([content, dictionary.title, said])
    known = dict(index.rows("SELECT hash, made_of FROM dictionary"))
    stale = [key for key in made_of if known.get(key) != made_of[key] or made_of[key] == UNREAD]
    gone = [key for key in known if key not in made_of]
    if not stale and not gone:
        return Filled(0, artefacts)
    facts = feature_facts(run, artefacts, dictionaries, damaged)
    if unread := artefacts.keys() & damaged.keys():
        made_of = dict.fromkeys(made_of, UNREAD)
        stale = list(made_of)
        artefacts = {path: manifest for path, manifest in artefacts.items() if path not in unread}
    with progress(len(stale), "index", "dictionary") as bar, index.writing() as db:
        for key in (*gone, *stale):
            _forget(db, key)
        for key in stale:
            _insert(db, key, made_of[key], whole[key], facts[key])
            bar.update(1)
    return Filled(len(stale), artefacts)


def _whole_evidence(run: Path, dictionary: RunDictionary, damaged: dict[str, str]) -> Path | None:
    """Where the evidence of a dictionary lies, if it can be read."""
    if dictionary.evidence is None:
        return None
    try:
        open_store(dictionary).close()
    except UserError as error:
        damaged[dictionary.evidence.relative_to(run).as_posix()] = str(error)
        return None
    return dictionary.evidence


def feature_facts(
    run: Path,
    artefacts: Mapping[str, Manifest],
    dictionaries: Mapping[str, RunDictionary],
    damaged: dict[str, str],
) -> dict[str, FeatureFacts]:
    """What explanations, scores, ablations, trees and patches say of features, by the hash of their dictionary.

    Nothing counts that was made of another dictionary of the name, or is of an artefact that cannot be read to its end.
    """
    made_of = of_dictionaries(dictionaries, artefacts)
    facts = {key: FeatureFacts([], {}, []) for key in dictionaries}
    for path, manifest in artefacts.items():
        by_title = {(d.site, d.name): key for key, d in dictionaries.items() if path in made_of[key]}
        if manifest.kind in READERS:
            said = {key: FeatureFacts([], {}, []) for key in dictionaries}
            try:
                READERS[manifest.kind](run / path, path, by_title, said)
            except UserError as error:
                damaged[path] = str(error)
                continue
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                damaged[path] = f"{run / path} says what no {manifest.kind} says ({error!r}); run its stage again"
                continue
            for key, of_key in said.items():
                facts[key].explanations.extend(of_key.explanations)
                facts[key].memberships.extend(of_key.memberships)
                facts[key].effects.update({n: e for n, e in of_key.effects.items() if n not in facts[key].effects})
    return facts


Read = Mapping[tuple[str, str], str]
Gathered = Mapping[str, FeatureFacts]


def _explanations(folder: Path, path: str, by_title: Read, facts: Gathered) -> None:
    """Explanations as they were made; where they were scored too, the scores' lines say the same and more."""
    for row in saved.read_lines(folder / saved.LINES):
        model, site, name = dictionary_of(row)
        key = by_title.get((site, name)) if model == SUBJECT else None
        if key is None or row["explainer"] == "output" or row["failure"] is not None:
            continue
        unscored = (None, None, None, None, None, "it was not scored")
        facts[key].explanations.append((row["feature"], row["explainer"], row["text"], *unscored, path))


def _scores(folder: Path, path: str, by_title: Read, facts: Gathered) -> None:
    for row in saved.read_lines(folder / score.LINES):
        model, site, name = dictionary_of(row)
        key = by_title.get((site, name)) if model == SUBJECT else None
        if key is None or row["text"] is None:
            continue
        cell, chance = row["scores"]["top_and_random"], row["scores"].get("chance", {}).get("value")
        numbers = (cell["value"], cell["low"], cell["high"], chance, cell["reason"])
        head = (row["feature"], row["explainer"], row["text"], row["simulator"])
        facts[key].explanations.append((*head, *numbers, path))


def _ablations(folder: Path, path: str, by_title: Read, facts: Gathered) -> None:
    for place, ablation in enumerate(read_json(folder / "ablate.json")["ablations"], 1):
        key = by_title.get((ablation["site"], ablation["name"]))
        if key is None:
            continue
        effect, control = ablation["kl"]["feature"], ablation["kl"]["control_feature"]
        numbers = (effect["value"], effect["low"], effect["high"], control["value"])
        facts[key].effects.setdefault(ablation["feature"], numbers)
        facts[key].memberships.append((ablation["feature"], path, "ablated", place))


def _trees(folder: Path, path: str, by_title: Read, facts: Gathered) -> None:
    for place, tree in enumerate(read_json(folder / "tree.json")["trees"], 1):
        for node in tree["nodes"]:
            key = by_title.get((node["site"], tree["dictionaries"].get(node["site"], "")))
            if key is not None and node["feature"] is not None:
                part = "root of a tree" if node["parent"] is None else f"node in the tree of {tree['root']}"
                facts[key].memberships.append((node["feature"], path, part, place))


def _patches(folder: Path, path: str, by_title: Read, facts: Gathered) -> None:
    patch = read_json(folder / "patch.json")
    for curve in patch["curves"]:
        key = by_title.get((curve["site"], curve["name"])) if curve["model"] == SUBJECT else None
        # patches made before searches kept their order have none
        for search, features in curve.get("order", {}).items() if key else ():
            for place, feature in enumerate(features, 1):
                part = f"patched for {Path(patch['task']).name}, number {place} by {search}"
                facts[key or ""].memberships.append((feature, path, part, place))


READERS = {"explain": _explanations, "score": _scores, "ablate": _ablations, "tree": _trees, "patch": _patches}


def _forget(db: sqlite3.Connection, key: str) -> None:
    for (number,) in db.execute("SELECT id FROM dictionary WHERE hash = ?", (key,)).fetchall():
        db.execute("DELETE FROM words WHERE rowid BETWEEN ? AND ?", (number << SHIFT, ((number + 1) << SHIFT) - 1))
        for table in ("feature", "token", "explanation", "membership"):
            db.execute(f"DELETE FROM {table} WHERE dictionary = ?", (number,))
        db.execute("DELETE FROM dictionary WHERE id = ?", (number,))


def _insert(db: sqlite3.Connection, key: str, made_of: str, dictionary: RunDictionary, facts: FeatureFacts) -> None:
    config, site = dictionary.config, Site.parse(dictionary.site)
    head = (key, made_of, dictionary.site, site.layer, dictionary.name, config.kind, dictionary.trained, config.d_sae)
    names = "hash, made_of, site, layer, name, kind, trained, d_sae"
    number = db.execute(f"INSERT INTO dictionary ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", head).lastrowid
    assert number is not None, "an insert gives a number"
    kept = _without_repeats(facts.explanations)
    db.executemany(f"INSERT INTO explanation VALUES ({number}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
    db.executemany(f"INSERT INTO membership VALUES ({number}, ?, ?, ?, ?)", facts.memberships)
    if dictionary.evidence is not None:
        with closing(open_store(dictionary)) as store:
            _insert_features(db, number, store, facts._replace(explanations=kept))
            numbers = (store.meta["alive"], store.meta["rows"], number)
        db.execute("UPDATE dictionary SET alive = ?, rows = ? WHERE id = ?", numbers)


def _without_repeats(explanations: Rows) -> Rows:
    """Those that were scored, and of the others those whose text no score repeats."""
    scored = {(row[0], row[1], row[2]) for row in explanations if row[3] is not None}
    return [row for row in explanations if row[3] is not None or (row[0], row[1], row[2]) not in scored]


def _insert_features(db: sqlite3.Connection, number: int, store: FeatureStore, facts: FeatureFacts) -> None:
    explained: dict[int, Rows] = defaultdict(list)
    for row in facts.explanations:
        explained[row[0]].append(row)
    # the best scored explanation stands for the feature; one without a score only where there is no other
    best = {feature: _best(rows) for feature, rows in explained.items()}
    none = (0, *(None,) * 7)
    rows = []
    for feature in ranked(store):
        s = feature.summary
        chosen = best.get(s.id)
        said = (len(explained[s.id]), *chosen[1:8]) if chosen else none
        back = (s.seeds, s.reappears, s.reappears_low, s.reappears_high)
        top = None if s.top_token is None else store.text(s.top_token)
        numbers = (s.n_active, s.density, s.max, s.skew, s.kurtosis, top, s.top_share, feature.interest, feature.kind)
        effect = facts.effects.get(s.id, (None,) * 4)
        rows.append((number, s.id, *numbers, *back, *said, *effect))
    marks = ", ".join("?" * len(rows[0])) if rows else ""
    db.executemany(f"INSERT INTO feature VALUES ({marks})", rows)
    _insert_tokens(db, number, store, explained)


def _best(rows: Rows) -> tuple[Any, ...]:
    """The best of one simulator's scores, the first one's: scores of two cannot be compared."""
    first = next((row[3] for row in rows if row[4] is not None), None)
    return max(rows, key=lambda row: row[4] if row[4] is not None and row[3] == first else -2.0)


def _insert_tokens(db: sqlite3.Connection, number: int, store: FeatureStore, explained: Mapping[int, Rows]) -> None:
    query = (
        "SELECT token.feature, text, token.mass / (feature.mean * ?), token.n_active FROM token JOIN vocabulary "
        "USING (token) JOIN feature ON feature.id = token.feature WHERE rank < ? ORDER BY token.feature, rank"
    )
    tokens = store.rows(query, (store.meta["rows"], TOKENS))
    shares = [(text, share, number, feature, active) for feature, text, share, active in tokens]
    # two tokens of the same text (parts of characters have none of their own) are one to a search
    db.executemany("INSERT OR IGNORE INTO token VALUES (?, ?, ?, ?, ?)", shares)
    texts: dict[int, list[str]] = defaultdict(list)
    for feature, text, _, _ in tokens:
        texts[feature].append(text)
    words = [
        (number << SHIFT | feature, " ".join(row[2] for row in explained.get(feature, ())), " ".join(texts[feature]))
        for feature in sorted(texts.keys() | explained.keys())
    ]
    db.executemany("INSERT INTO words (rowid, explanations, tokens) VALUES (?, ?, ?)", words)
