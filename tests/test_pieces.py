"""One way to resume: what is found, done and finished, whatever kills the stage and whenever."""

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from helpers.tiny_harvests import contents

from monolex.artifact import MANIFEST, Manifest, json_bytes, open_artifact, read_json, verify, write_bytes
from monolex.config import unhashed
from monolex.errors import UserError
from monolex.pieces import FILES, Piece, Work
from monolex.show.path import check, show

KEYS = ("a", "b", "c")


@dataclass(frozen=True)
class Asked:
    word: str = "x"
    speed: int = unhashed(1)


def piece(work: Work, key: str, done: list[str]) -> Piece:
    """Leaves an entry, a file beside it and a file of the artefact."""

    def wrote(path: Path) -> dict:
        done.append(key)
        content = f"{work.config.word} {key}".encode()
        write_bytes(path.with_suffix(".txt"), content * 2)
        entry = write_bytes(work.file(f"{key}/data"), content)
        return {"key": key, FILES: {f"{key}/data": asdict(entry)}}

    return wrote


def stage(folder: Path, asked: Asked, done: list[str]) -> Manifest:
    work = Work(folder, "eval", asked, {"parent": "p"})
    if manifest := work.answer():
        return manifest
    entries = work.done({key: piece(work, key, done) for key in KEYS})
    beside = b"".join(work.place(key).with_suffix(".txt").read_bytes() for key in KEYS)
    return work.finish({"all.json": json_bytes([entry["key"] for entry in entries.values()]), "all.txt": beside}, {})


def everything(folder: Path) -> dict[str, bytes]:
    return contents(folder) | {MANIFEST: (folder / MANIFEST).read_bytes()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    stage(tmp_path / "whole", Asked(), [])
    verify(tmp_path / "whole")
    return everything(tmp_path / "whole")


def test_an_artefact_holds_its_files_and_nothing_else(whole, tmp_path):
    assert set(whole) == {"a/data", "b/data", "c/data", "all.json", "all.txt", MANIFEST}
    assert set(open_artifact(tmp_path / "whole").files) == set(whole) - {MANIFEST}
    assert whole["all.txt"] == b"x ax ax bx bx cx c"
    done: list[str] = []
    assert stage(tmp_path / "whole", Asked(speed=2), done) == open_artifact(tmp_path / "whole")
    assert done == []


@pytest.mark.parametrize("older", [None, Asked("older")])
def test_a_stage_killed_at_any_renaming_ends_the_same(whole, tmp_path, monkeypatch, older):
    real, number = os.replace, 0
    for before in range(100):
        folder, done, calls = tmp_path / str(before), [], []
        if older:
            stage(folder, older, [])

        def dies(source, target, last=before, calls=calls):
            calls.append(target)
            if len(calls) > last:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", dies)
            try:
                stage(folder, Asked(), done)
                break
            except KeyboardInterrupt:
                number += 1
        if (folder / MANIFEST).exists():
            assert verify(folder).config == {"word": "older"}
            assert len(list(check(folder))) == 1
        else:
            with pytest.raises(UserError, match="unfinished eval "):
                show(folder)
            with pytest.raises(UserError, match="no finished artefact"):
                list(check(folder))
        stage(folder, Asked(), done)
        assert everything(folder) == whole
        # the piece that was under way is done again, and no other
        assert list(dict.fromkeys(done)) == list(KEYS) and len(done) <= len(KEYS) + 1
    # three renamings a piece, two files and the manifest, which are then put in place with those of the pieces
    assert number == 3 * 3 + 3 + 6


def test_a_full_disk_loses_neither_the_older_answer_nor_a_piece(whole, tmp_path, monkeypatch):
    real, number = tempfile.mkstemp, 0
    for before in range(100):
        folder, done, calls = tmp_path / str(before), [], []
        stage(folder, Asked("older"), [])

        def full(*arguments, last=before, calls=calls, **options):
            calls.append(arguments)
            if len(calls) > last:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("tempfile.mkstemp", full)
            try:
                stage(folder, Asked(), done)
                break
            except UserError as error:
                assert "No space left on device; free some space" in str(error)
        number += 1
        assert verify(folder).config == {"word": "older"}
        stage(folder, Asked(), done)
        assert everything(folder) == whole and len(done) <= len(KEYS) + 1
    assert number == 3 * 3 + 3


def test_a_stage_killed_behind_its_manifest_is_done_and_tidied(whole, tmp_path):
    folder = tmp_path / "whole"
    left = Work(folder, "eval", Asked(), {"parent": "p"})
    other = Work(folder, "eval", Asked("other"), {"parent": "p"})
    for work in (left, other):
        write_bytes(work.place("a"), b"{}")
    assert left.answer() is not None
    assert not left.place("a").exists() and other.place("a").exists()


def test_pieces_of_the_same_request_are_kept_and_of_another_dropped(whole, tmp_path):
    folder, done = tmp_path / "parts", []
    first = Work(folder, "eval", Asked(), {"parent": "p"})
    first.done({"a": piece(first, "a", done)})
    stage(folder, Asked(), done)
    assert done == ["a", "b", "c"] and everything(folder) == whole
    for another in (Asked("another"), Asked()):
        cut = Work(folder, "eval", another, {"parent": "another"})
        cut.done({"a": piece(cut, "a", [])})
        assert cut.place("a").exists()
        last = Work(folder, "eval", Asked("last"), {"parent": "p"})
        last.done({"a": piece(last, "a", [])})
        assert not cut.place("a").exists() and last.place("a").exists()
    assert verify(folder).config == {"word": "x"}


@pytest.mark.parametrize("change", ["unrelated", "related", "config"])
def test_a_piece_is_kept_from_a_request_that_differs_in_nothing_it_is_made_of(whole, tmp_path, change):
    folder, done = tmp_path / "parts", []
    needs = {key: {"parent": f"of {key}"} for key in KEYS}
    first = Work(folder, "eval", Asked(), {"parent": "p", "other": "before"})
    first.done({key: piece(first, key, []) for key in ("a", "b")}, needs=needs)
    asked = Asked("other") if change == "config" else Asked()
    if change == "related":
        needs["a"] = {"parent": "anew"}
    work = Work(folder, "eval", asked, {"parent": "p", "other": "after"})
    entries = work.done({key: piece(work, key, done) for key in KEYS}, needs=needs)
    assert done == {"unrelated": ["c"], "related": ["a", "c"], "config": ["a", "b", "c"]}[change]
    assert list(entries) == list(KEYS) and work.place("b").with_suffix(".txt").exists()
    assert [path.name for path in (folder / "partial").iterdir()] == [work.place("a").parent.name]
    work.finish({}, {})
    assert verify(folder).files.keys() == {f"{key}/data" for key in KEYS}


def test_a_piece_is_taken_over_whole_or_not_at_all(tmp_path, monkeypatch):
    real, last = os.replace, 0
    for last in range(10):
        folder, done, calls = tmp_path / str(last), [], []
        needs = {"a": {"parent": "p"}}
        first = Work(folder, "eval", Asked(), {"other": "before"})
        first.done({"a": piece(first, "a", [])}, needs=needs)
        work = Work(folder, "eval", Asked(), {"other": "after"})

        def dies(source, target, last=last, calls=calls):
            calls.append(target)
            if len(calls) > last:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr("os.replace", dies)
            work.done({"a": piece(work, "a", done)}, needs=needs)
        work.done({"a": piece(work, "a", done)}, needs=needs)
        assert done == [] and verify_piece(work)
        if len(calls) <= last:
            break
    assert last == 3, "an entry, a file beside it and a file of the artefact"


def verify_piece(work: Work) -> bool:
    text = work.place("a").with_suffix(".txt").read_bytes()
    return (text, work.file("a/data").read_bytes()) == (b"x ax a", b"x a")


def test_pieces_of_another_version_of_the_layout_are_dropped(whole, tmp_path, monkeypatch):
    """A stage that an older version had begun is not finished by a newer one out of what that left."""
    folder, done = tmp_path / "parts", []
    with monkeypatch.context() as patch:
        patch.setattr("monolex.artifact.schema", lambda _kind: 99)
        older = Work(folder, "eval", Asked(), {"parent": "p"})
        older.done({"a": piece(older, "a", [])})
        assert older.place("a").exists()
    stage(folder, Asked(), done)
    assert done == list(KEYS) and everything(folder) == whole


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_piece_whose_file_is_lost_is_done_again(whole, tmp_path, damage):
    folder, done = tmp_path / "parts", []
    stage(folder, Asked("older"), [])
    work = Work(folder, "eval", Asked(), {"parent": "p"})
    work.done({key: piece(work, key, []) for key in KEYS})
    if damage == "cut":
        work.file("b/data").write_bytes(b"")
    else:
        work.file("b/data").unlink()
    stage(folder, Asked(), done)
    assert done == ["b"] and everything(folder) == whole


def test_an_answer_of_another_kind_is_left_alone(whole, tmp_path):
    folder = tmp_path / "whole"
    work = Work(folder, "patch", Asked(), {})
    assert work.answer() is None
    with pytest.raises(UserError, match="holds an artefact of kind 'eval'"):
        work.done({"a": piece(work, "a", [])})
    assert everything(folder) == whole


class Endpoint:
    """Calls that fail until they are ``up``."""

    def __init__(self) -> None:
        self.up, self.failed = False, Counter()

    def ask(self, key: str, done: list[str]) -> Callable[[Path], dict]:
        def asked(_path: Path) -> dict:
            done.append(key)
            answered = self.up or key != "b"
            self.failed += Counter() if answered else Counter({"timed out": 2})
            return {"key": key, "answered": answered}

        return asked


def test_unanswered_calls_are_counted_and_their_pieces_done_again(tmp_path, caplog):
    endpoint, done = Endpoint(), []

    def ask() -> Manifest:
        work = Work(tmp_path, "explain", Asked(), {})
        if manifest := work.answer():
            return manifest
        entries = work.done({key: endpoint.ask(key, done) for key in KEYS}, lambda: Counter(endpoint.failed))
        return work.finish({"all.json": json_bytes(list(entries.values()))}, {"asked": 3})

    assert ask().data == {"asked": 3, "unanswered": {"timed out": 2}}
    assert "calls went unanswered (2 timed out); the same command tries them again" in caplog.text
    verify(tmp_path)
    assert ask().data["unanswered"] == {"timed out": 2}
    assert done == ["a", "b", "c", "b"]
    endpoint.up = True
    assert ask().data == {"asked": 3}
    assert done == ["a", "b", "c", "b", "b"] and not (tmp_path / "partial").exists()
    assert [entry["answered"] for entry in read_json(tmp_path / "all.json")] == [True] * 3
    assert ask().data == {"asked": 3} and len(done) == 5
    assert "replaced" not in caplog.text


def test_the_bar_moves_by_sizes_inside_pieces_and_past_those_that_are_kept(tmp_path, capsys):
    def ask(*keys: str) -> list[int]:
        work, seen = Work(tmp_path, "eval", Asked(), {}), []

        def moved(_path: Path) -> dict:
            assert work._bar is not None
            seen.append(work._bar.n)
            work.advance(1)
            seen.append(work._bar.n)
            return {}

        work.done(dict.fromkeys(keys, moved), sizes={"a": 3, "b": 5}, unit="row")
        return seen

    assert ask("a") == [0, 1]
    assert ask("a", "b") == [3, 4]
    assert "8.00/8.00" in capsys.readouterr().err
