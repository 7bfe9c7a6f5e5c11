"""Which explanations of a run are meant, and what damaged ones say."""

from pathlib import Path

import pytest

from monolex.artifact import finish, write_bytes, write_json
from monolex.errors import UserError
from monolex.interp.explain.saved import ARRAYS, FACTS, KIND, TEXTS, Explanations, explanations_folder


def explained(run: Path, name: str) -> Path:
    """An artefact of explanations of nothing, whose arrays are no arrays."""
    folder = run / KIND / name
    known = {"model": "subject", "site": "resid_post.0", "name": "pca", "explained": 0, "skipped": {}}
    facts = {"mode": "paper", "explainers": ["token"], "dictionaries": [known]}
    files = {FACTS: write_json(folder / FACTS, facts), TEXTS: write_json(folder / TEXTS, {})}
    files[ARRAYS] = write_bytes(folder / ARRAYS, b"x" * 64)
    finish(folder, KIND, {}, {}, files, {})
    return folder


def test_the_only_explanations_need_no_name(tmp_path):
    with pytest.raises(UserError, match="holds no explanations; run monolex explain first"):
        explanations_folder(tmp_path, "")
    paper = explained(tmp_path, "paper")
    (tmp_path / KIND / "unfinished").mkdir()
    assert explanations_folder(tmp_path, "") == explanations_folder(tmp_path, "paper") == paper
    modern = explained(tmp_path, "modern")
    with pytest.raises(UserError, match="holds explanations modern, paper: say which by --explanations"):
        explanations_folder(tmp_path, "")
    assert explanations_folder(tmp_path, "modern") == modern
    with pytest.raises(UserError, match="explanations = 'papr': .* holds modern, paper"):
        explanations_folder(tmp_path, "papr")


def test_arrays_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match=f"{ARRAYS} is damaged .*; delete its manifest and explain again"):
        Explanations(explained(tmp_path, "paper"))._arrays("subject/resid_post.0/pca")
