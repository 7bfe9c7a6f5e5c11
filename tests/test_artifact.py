import errno
import json
import os
from pathlib import Path

import pytest

from monolex import artifact
from monolex.artifact import finish, is_done, open_artifact, verify, write_bytes, write_json
from monolex.errors import UserError
from monolex.show.path import show


def make(folder: Path, content: bytes = b"0123456789") -> artifact.Manifest:
    files = {"data.bin": write_bytes(folder / "data.bin", content)}
    return finish(folder, "eval", {"rows": 3}, {"activations": "abc"}, files, {"count": 1})


def test_a_finished_folder_answers_its_request_and_no_other(tmp_path):
    made = make(tmp_path)
    assert is_done(tmp_path, "eval", {"rows": 3}, {"activations": "abc"})
    assert not is_done(tmp_path, "eval", {"rows": 4}, {"activations": "abc"})
    assert not is_done(tmp_path, "eval", {"rows": 3}, {"activations": "abd"})
    assert not is_done(tmp_path, "sweep", {"rows": 3}, {"activations": "abc"})
    assert verify(tmp_path) == made
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_content_changes_with_any_file_and_not_with_versions(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", b"0123456780")
    assert one.request == two.request and one.content != two.content
    raw = json.loads((tmp_path / "one" / "manifest.json").read_text())
    raw["versions"]["torch"] = "0.0"
    write_json(tmp_path / "one" / "manifest.json", raw)
    assert open_artifact(tmp_path / "one").content == one.content


def test_an_unfinished_folder_is_not_done(tmp_path):
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert not is_done(tmp_path, "eval", {"rows": 3}, {"activations": "abc"})
    with pytest.raises(UserError, match="run its stage first"):
        open_artifact(tmp_path, "eval")


def test_a_truncated_file_is_named(tmp_path):
    make(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"01234")
    with pytest.raises(UserError, match="data.bin has 5 bytes instead of 10"):
        open_artifact(tmp_path)
    (tmp_path / "data.bin").unlink()
    with pytest.raises(UserError, match="data.bin is missing"):
        open_artifact(tmp_path)


def test_a_changed_file_of_the_same_size_is_found_by_its_hash(tmp_path):
    make(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"0123456780")
    open_artifact(tmp_path)
    with pytest.raises(UserError, match="has changed"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "eval"}', '{"files": {"a": 3}}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="run its stage again"):
        open_artifact(tmp_path)


def test_another_kind_or_schema_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match="holds eval, and sweep is needed"):
        open_artifact(tmp_path, "sweep")
    raw = json.loads((tmp_path / "manifest.json").read_text())
    write_json(tmp_path / "manifest.json", raw | {"schema": 99})
    with pytest.raises(UserError, match="schema 99"):
        open_artifact(tmp_path)


def test_a_full_disk_loses_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    write_bytes(tmp_path / "kept", b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_bytes(tmp_path / "kept", b"new")
    assert (tmp_path / "kept").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_not_a_number_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_places_are_found_again_through_links_and_from_elsewhere(tmp_path, monkeypatch):
    run, disk = tmp_path / "run", tmp_path / "disk" / "very" / "deep"
    (run / "explain" / "x").mkdir(parents=True)
    (run / "score").mkdir()
    (disk / "rules").mkdir(parents=True)
    (run / "score" / "rules").symlink_to(disk / "rules")
    place = artifact.relative_place(run / "explain" / "x", run / "score" / "rules")
    assert place == "../../explain/x"
    for folder in (run, run.relative_to(tmp_path)):
        monkeypatch.chdir(tmp_path)
        assert artifact.placed(folder / "score" / "rules", place) == folder / "explain" / "x"
    # what was written from the folder itself
    (tmp_path / "explain" / "x").mkdir(parents=True)
    from_disk = artifact.relative_place(tmp_path / "explain" / "x", disk / "rules")
    assert artifact.placed(run / "score" / "rules", from_disk) == tmp_path / "explain" / "x"


def test_another_drive_has_no_relative_place(tmp_path, monkeypatch):
    def other_drive(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(artifact.os.path, "relpath", other_drive)
    assert artifact.relative_place(tmp_path, tmp_path / "x") == tmp_path.as_posix()


def test_linked_artefacts_are_found_each_once(tmp_path):
    run = tmp_path / "run"
    for name in ("run/eval", "disk/train/a"):
        (tmp_path / name).mkdir(parents=True)
        finish(tmp_path / name, "baselines", {}, {}, {}, {"members": []})
    (run / "train").symlink_to(tmp_path / "disk" / "train")
    (run / "train" / "a" / "loop").symlink_to(run)
    (run / "more").symlink_to(run / "eval")
    said = [text for text in show(run).splitlines() if ": baselines, 0 files" in text]
    assert [text.partition(":")[0] for text in said] == [str(run / "eval"), str(run / "train" / "a")]
    assert artifact.artefact_folders(run) == [run / "eval", run / "train" / "a"]
