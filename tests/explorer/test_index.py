"""The index of a run: what it holds is what the artefacts say, and it is made again where they change."""

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest
from helpers.explored import NAME, SITES, strongest

from monolex.artifact import digest, file_hash, open_artifact, read_json, write_json
from monolex.config import FeaturesConfig
from monolex.dictionaries.base import CONFIG, WEIGHTS
from monolex.dictionaries.listing import run_dictionaries
from monolex.errors import UserError
from monolex.explorer import labels
from monolex.explorer.fill import fill, hashes
from monolex.explorer.index import FILE, Index, index_path
from monolex.explorer.migrations import APPLICATION, MIGRATIONS
from monolex.explorer.run import ExploredRun, NotThere, slugs
from monolex.explorer.views.overview import evaluated
from monolex.features.stage import features
from monolex.interp.explain.saved import read_lines
from monolex.show.path import show
from monolex.train_config import TrainConfig
from monolex.training.trainer import train


@pytest.fixture
def copy(explored: Path, tmp_path: Path) -> Path:
    """The run without its index, to be changed."""
    return Path(shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns(f"{FILE}*")))


def test_features_are_those_of_the_stores(explored):
    run = ExploredRun(explored)
    gathered = [d for d in run.dictionaries.values() if d.gathered]
    assert {(d.site, d.name) for d in gathered} >= {(site, NAME) for site in SITES}
    for dictionary in gathered:
        store = run.store(dictionary.key)
        query = (
            "SELECT number, n_active, density, max, kurtosis, share FROM feature WHERE dictionary = ? ORDER BY number"
        )
        known = [(s.id, s.n_active, s.density, s.max, s.kurtosis, s.top_share) for s in store.summaries()]
        assert run.index.rows(query, (dictionary.id,)) == known
        assert (dictionary.d_sae, dictionary.alive) == (len(store), sum(row[1] > 0 for row in known))


def test_a_hash_is_of_weights_configuration_and_harvest(explored):
    listed = run_dictionaries(explored)
    named = hashes(listed)
    harvest = open_artifact(explored / "activations").content
    files = [[file_hash(d.folder / name) for name in (WEIGHTS, CONFIG)] for d in listed]
    assert list(named) == [digest([*hashed, harvest]) for hashed in files] and len(named) == len(listed)
    assert len(hashes([*listed, dataclasses.replace(listed[0], name="another")])) == len(listed) + 1


def test_what_was_measured_of_a_dictionary_is_not_true_of_the_next_of_its_name(copy):
    before = ExploredRun(copy)
    assert before.index.rows("SELECT count(*) FROM feature WHERE effect IS NOT NULL OR score IS NOT NULL") != [(0,)]
    activations, sources = copy / "activations", [copy / "train" / "main", copy / "baselines" / "plain"]
    sweep = TrainConfig(
        kinds=("topk",), ks=(4,), ratios=(2.0,), seeds=(0, 1), steps=70, batch_size=64, train_device="cpu"
    )
    train(sources[0], activations, sweep)
    gathered = FeaturesConfig(dictionaries=("topk-*", "pca"), features_device="cpu")
    features(copy / "features", activations, sources, gathered)
    run = ExploredRun(copy)
    query = "SELECT count(*) FROM feature JOIN dictionary ON dictionary.id = dictionary WHERE trained AND "
    assert run.index.rows(query + "(effect IS NOT NULL OR score IS NOT NULL)") == [(0,)]
    trained = [d.key for d in run.dictionaries.values() if d.trained and d.gathered]
    assert all(not run.scored(key) and not run.experiments("ablate", key) for key in trained)
    # the baselines are those of before, and so is what was said of them
    assert run.index.rows(query.replace("trained", "NOT trained") + "score IS NOT NULL") != [(0,)]
    assert {e.name for e in evaluated(run) if e.single} == {"neurons", "pca"}


def test_explanations_stand_with_their_scores_and_chance(explored):
    run = ExploredRun(explored)
    rows = list(read_lines(explored / "score" / "rules" / "scores.jsonl"))
    dictionary = next(d for d in run.dictionaries.values() if d.title == f"{SITES[1]}/{NAME}")
    expected = {
        row["feature"]: (row["text"], row["scores"]["top_and_random"]["value"], row["scores"]["chance"]["value"])
        for row in rows
        if (row["site"], row["name"]) == (dictionary.site, dictionary.name)
    }
    query = "SELECT number, explanation, score, chance FROM feature WHERE dictionary = ? AND explanation IS NOT NULL"
    assert {number: (*said,) for number, *said in run.index.rows(query, (dictionary.id,))} == expected
    # a text that was scored is not repeated as one that was not
    assert run.index.rows("SELECT count(*) FROM explanation WHERE simulator IS NULL") == [(0,)]


def test_effects_and_memberships_are_those_of_the_experiments(explored):
    run = ExploredRun(explored)
    number = int(strongest(explored).rpartition(":")[2])
    (ablation,) = read_json(explored / "ablate" / "root" / "ablate.json")["ablations"]
    kl = ablation["kl"]
    rows = run.index.rows(
        "SELECT number, effect, effect_low, effect_high, effect_control FROM feature WHERE effect > 0"
    )
    of = kl["feature"]
    assert rows == [(number, of["value"], of["low"], of["high"], kl["control_feature"]["value"])]
    nodes = read_json(explored / "tree" / "root" / "tree.json")["trees"][0]["nodes"]
    query = "SELECT number FROM membership WHERE experiment = 'tree/root' ORDER BY rowid"
    assert [n for (n,) in run.index.rows(query)] == [n["feature"] for n in nodes if n["feature"] is not None]


def test_a_patch_names_the_features_that_its_searches_take_first(copy):
    path = copy / "patch" / "pairs" / "patch.json"
    content = read_json(path)
    wanted = set()
    for curve in content["curves"]:
        assert set(curve["order"]) == {"ranking", "greedy"} and len(curve["order"]["greedy"]) <= 3
        for search, taken in curve["order"].items():
            parts = [f"patched for pairs.jsonl, number {place} by {search}" for place in range(1, len(taken) + 1)]
            title = f"{curve['site']}/{curve['name']}"
            wanted |= {(title, number, part) for number, part in zip(taken, parts, strict=True)}
    query = (
        "SELECT site || '/' || name, membership.number, part FROM membership JOIN dictionary ON dictionary.id = "
        "membership.dictionary WHERE experiment = 'patch/pairs'"
    )
    assert set(ExploredRun(copy).index.rows(query)) == wanted and len(wanted) > 20
    # one of a version that did not keep it is read all the same
    for curve in content["curves"]:
        del curve["order"]
    write_json(path, content)
    manifest = read_json(path.with_name("manifest.json"))
    manifest["files"]["patch.json"] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json(path.with_name("manifest.json"), {**manifest, "content": "0" * 64})
    assert ExploredRun(copy).index.rows(query) == [] and "the features that come first" not in show(path.parent)


def test_only_what_changed_is_read_again_and_labels_stay(copy):
    run = ExploredRun(copy)
    listed = hashes(run_dictionaries(copy))
    assert fill(run.index, copy, listed, {}).read == 0
    key = next(d.key for d in run.dictionaries.values() if d.gathered)
    labels.write(run.index, run.dictionary(key).hash, 3, text="mine", note="", pinned=True)
    run.index.rows("UPDATE dictionary SET made_of = 'another' WHERE substr(hash, 1, 12) = ?", (key,))
    before = run.index.rows("SELECT * FROM feature ORDER BY dictionary, number")
    assert fill(run.index, copy, listed, {}).read == 1
    after = run.index.rows("SELECT * FROM feature ORDER BY dictionary, number")
    assert sorted(row[1:] for row in after) == sorted(row[1:] for row in before)
    assert (label := run.label(key, 3)) is not None and label.text == "mine"
    shutil.rmtree(copy / "ablate")
    assert fill(run.index, copy, listed, {}).read == len(listed)
    assert run.index.rows("SELECT count(*) FROM feature WHERE effect IS NOT NULL") == [(0,)]


def test_a_dictionary_that_is_gone_leaves_the_index(copy):
    run = ExploredRun(copy)
    listed = hashes(run_dictionaries(copy))
    kept = dict(list(listed.items())[1:])
    fill(run.index, copy, kept, {})
    assert {key for (key,) in run.index.rows("SELECT hash FROM dictionary")} == set(kept)
    for table in ("feature", "token", "explanation", "membership"):
        query = f"SELECT count(*) FROM {table} WHERE dictionary NOT IN (SELECT id FROM dictionary)"
        assert run.index.rows(query) == [(0,)]
    assert run.index.rows("SELECT count(*) FROM words WHERE rowid >> 32 NOT IN (SELECT id FROM dictionary)") == [(0,)]


def test_what_another_process_makes_is_seen(copy):
    run = ExploredRun(copy)
    shutil.rmtree(copy / "score")
    run.refresh(0.0)
    assert run.index.rows("SELECT count(*) FROM explanation WHERE simulator IS NOT NULL") == [(0,)]
    assert run.index.rows("SELECT reason FROM explanation LIMIT 1") == [("it was not scored",)]
    shutil.rmtree(copy)
    with pytest.raises(NotThere, match="is gone"):
        run.refresh(0.0)


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_an_older_index_is_brought_up_to_date(version, tmp_path):
    path = tmp_path / FILE
    with sqlite3.connect(path) as db:
        for step in MIGRATIONS[:version]:
            db.executescript(step)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    index = Index(path)
    assert index.rows("PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert index.rows("SELECT count(*) FROM label") == [(0,)]
    index.close()


def test_what_is_no_index_is_refused_and_left_alone(tmp_path):
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + b"nonsense" * 100)
    with pytest.raises(UserError, match="is damaged .* move it away"):
        Index(damaged)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(UserError, match="is no index of monolex"):
        Index(foreign)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("CREATE TABLE dictionary (x)")
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(UserError, match="written by a newer monolex"):
        Index(newer)


def test_a_run_that_cannot_be_written_has_its_index_elsewhere(copy, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    path, kept = index_path(copy)
    assert not kept and copy not in path.parents
    run = ExploredRun(copy)
    assert not run.keeps_labels and len(run.dictionaries) > 0 and not (copy / FILE).exists()
    shutil.rmtree(path.parent)
    shutil.rmtree(run.index.path.parent)


def test_runs_of_one_name_are_told_apart():
    assert slugs([Path("/a/run"), Path("/b/run"), Path("/c/my run <x>")]) == ["run", "run-2", "my-run-x"]


def test_a_run_that_must_not_be_written_to_has_its_labels_and_is_left_alone(copy):
    first = ExploredRun(copy)
    key = next(d for d in first.dictionaries.values() if d.gathered)
    labels.write(first.index, key.hash, 3, text="dots", note="", pinned=True)
    first.index.close()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in copy.rglob("*") if path.is_file()}
    run = ExploredRun(copy, writable=False)
    assert not run.keeps_labels and not run.index.path.is_relative_to(copy)
    label = run.label(key.key, 3)
    assert label is not None and label.text == "dots" and list(run.dictionaries) == list(first.dictionaries)
    (copy / FILE).write_bytes(b"no index")
    assert ExploredRun(copy, writable=False).label(key.key, 3) is None, "what cannot be read is made again elsewhere"
    (copy / FILE).write_bytes(before[copy / FILE][1])
    (copy / FILE).unlink()
    assert list(ExploredRun(copy, writable=False).dictionaries) == list(first.dictionaries)
    assert not (copy / FILE).exists()
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in copy.rglob("*") if path.is_file()}
    assert after == {path: fact for path, fact in before.items() if path != copy / FILE}
