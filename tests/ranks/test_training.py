"""Sweeps on several ranks are those of one process: every kind, however it is split, stopped and gone on with."""

import dataclasses
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.ranked_training import SITE, sweep, train
from helpers.ranks import run, start

from monolex.artifact import read_json, verify
from monolex.dictionaries.base import load
from monolex.errors import UserError
from monolex.ranks.group import RankGroup
from monolex.training.members import members
from monolex.training.sparse.across import Across, require_same
from monolex.training.sweep import Trainer

CLOSE = 2e-5
"""Largest difference of any weight after 16 steps at 3e-3: what the order of float32 sums leaves."""
MESHES = ("2-2-1", "2-1-2", "4-2-2")
"""Ranks, and how many of them share rows and features."""
MORE_MESHES = ("2-1-1", "4-1-1", "4-4-1", "4-1-4")
MESH = """
import sys
from pathlib import Path
from helpers.ranked_training import refusals, train
(Path(sys.argv[1]) / "refused").mkdir(exist_ok=True)
refusals(Path(sys.argv[1]) / "refused")
train(Path(sys.argv[1]) / "one member", kinds=("topk",))
for mesh in sys.argv[2:]:
    _, data, features = map(int, mesh.split("-"))
    train(Path(sys.argv[1]) / mesh, data_ranks=data, feature_ranks=features)
"""
RESUME = """
import sys
from pathlib import Path
from helpers.ranked_training import Stopped, stop_at, train
shape = dict(data_ranks=int(sys.argv[2]), feature_ranks=int(sys.argv[3]), kinds=("tied", "batchtopk", "jumprelu"))
stop = int(sys.argv[4])
try:
    train(Path(sys.argv[1]), before=stop_at(stop), **shape)
except Stopped:
    print("stopped")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep of one process in ``alone``."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)
    train(folder / "alone")
    return folder


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of any weight, by kind; what is said of the members has to agree."""
    worst: dict[str, float] = {}
    tables = [read_json(folder / "members.json") for folder in (one, other)]
    for row, same in zip(*tables, strict=True):
        assert row["path"] == same["path"] and row["dead"] == same["dead"]
        for name in ("loss", "mse", "l1", "l0", "fvu"):
            assert same[name] == pytest.approx(row[name], rel=1e-4, abs=1e-7), (row["path"], name)
        first, second = load(one / row["path"]), load(other / row["path"])
        thresholds = [dictionary.config.threshold for dictionary in (first, second)]
        if thresholds[0] is not None:
            assert thresholds[1] == pytest.approx(thresholds[0], rel=1e-5)
        configs = [dataclasses.replace(dictionary.config, threshold=None) for dictionary in (first, second)]
        pressures = [config.recipe.pop("pressure", 0.0) for config in configs]
        assert configs[0] == configs[1] and pressures[1] == pytest.approx(pressures[0], rel=1e-4)
        for name, weight in first.weights.items():
            worst[row["kind"]] = max(worst.get(row["kind"], 0.0), float((weight - second.weights[name]).abs().max()))
    return worst


def assert_refused(folder: Path) -> None:
    """What every rank said of ranks with other data, settings or code."""
    told = [path.read_text().splitlines() for path in folder.glob("*.txt")]
    assert len(told) > 1
    for lines in told:
        for line, what in zip(lines, ("data", "configuration", "code"), strict=True):
            assert line.startswith(f"rank 1 was started with another {what} than rank 0; start all ranks with the same")
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("meshes", [MESHES, pytest.param(MORE_MESHES, marks=pytest.mark.slow)])
def test_every_kind_is_that_of_one_process(home: Path, tmp_path: Path, meshes: Sequence[str]) -> None:
    for count in sorted({mesh[0] for mesh in meshes}):
        run(int(count), MESH, tmp_path, *(mesh for mesh in meshes if mesh[0] == count))
    assert_refused(tmp_path / "refused")
    # of a job with more ranks than members some have nothing to do
    (row,) = read_json(tmp_path / "one member" / "members.json")
    theirs = load(home / "alone" / row["path"]).weights
    ours = load(tmp_path / "one member" / row["path"]).weights
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    for mesh in meshes:
        folder, shape = tmp_path / mesh, tuple(map(int, mesh.split("-")))
        manifest = verify(folder)
        assert manifest.data["ranks"] == dict(zip(("all", "data", "feature"), shape, strict=True))
        assert manifest.request == verify(home / "alone").request
        assert max(differences(home / "alone", folder).values()) < CLOSE, mesh
        (step,) = (folder / "checkpoints").iterdir()
        assert len(list(step.glob("*/*/config.json"))) == len(manifest.data["members"])
        if shape[1:] == (1, 1):  # members alone are split: what is written is the same to the last bit
            files = [path for path in (home / "alone").rglob("*.*") if path.is_file() and path.name != "manifest.json"]
            assert all(path.read_bytes() == (folder / path.relative_to(home / "alone")).read_bytes() for path in files)


@pytest.mark.slow
def test_a_state_of_four_is_gone_on_with_by_two_and_by_one(tmp_path: Path) -> None:
    kinds = ("tied", "batchtopk", "jumprelu")
    torch.set_num_threads(1)
    train(tmp_path / "alone", kinds=kinds)
    run(4, RESUME, tmp_path / "two", 2, 2, 10)
    written = read_json(tmp_path / "two" / "state" / "state.json")
    assert written["step"] == 6 and len(written["files"]) == 4
    run(4, RESUME, tmp_path / "one", 1, 4, 10)
    run(2, RESUME, tmp_path / "two", 1, 2, -1)
    train(tmp_path / "one", kinds=kinds)
    for folder in ("two", "one"):
        assert max(differences(tmp_path / "alone", tmp_path / folder).values()) < CLOSE, folder
        assert not (tmp_path / folder / "state").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and len(steps) == 4 * 3, "no line is lost or there twice"


FALL = """
import sys
from pathlib import Path
from monolex.errors import UserError
from helpers.ranked_training import fall_at, train
try:
    train(Path(sys.argv[1]), before=fall_at(10, 1, int(sys.argv[2])), data_ranks=2, kinds=("topk", "tied"))
except UserError as error:
    print(error)
    sys.exit(2)
"""
GO_ON = FALL.replace("fall_at(10, 1, int(sys.argv[2]))", "lambda _step: None")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.slow
def test_a_rank_that_is_gone_ends_the_job_which_goes_on(home: Path, tmp_path: Path, number: int) -> None:
    processes = start(2, FALL, tmp_path, int(number), MONOLEX_PATIENCE="20")
    said = processes[0].communicate(timeout=120)[0]
    processes[1].send_signal(signal.SIGCONT)
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 2, said
    assert "rank 1 has ended or does not answer" in said and "goes on from there" in said
    assert read_json(tmp_path / "state" / "state.json")["step"] == 6
    run(2, GO_ON, tmp_path, 0)
    for row in read_json(tmp_path / "members.json"):
        ours, theirs = (load(folder / row["path"]).weights for folder in (home / "alone", tmp_path))
        assert all(float((weight - theirs[name]).abs().max()) < CLOSE for name, weight in ours.items())


def test_what_ranks_there_are_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"feature_ranks = 2 is 2 ranks a member, and this is one process; .*torchrun"):
        train(tmp_path, feature_ranks=2)
    across = Across(every=RankGroup((0, 1), 0, None))
    trainer = Trainer(members(sweep(kinds=("matching-pursuit",)), {SITE: 16}), sweep(kinds=("matching-pursuit",)), 5)
    trainer._ranks = across
    with pytest.raises(UserError, match=r"a matching-pursuit is one rank's, .*leave data_ranks and feature_ranks out"):
        trainer._sparse_steps()


def test_what_all_features_share_must_be_the_same_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, bias = RankGroup((0, 1), 0, None), torch.tensor([1.0, 2.0])
    params = [{"b_dec": bias, "b_enc": torch.tensor([0.5])}]
    monkeypatch.setattr(RankGroup, "alike", lambda _group, part: [part, part])
    require_same(params, pair)
    monkeypatch.setattr(RankGroup, "alike", lambda _group, part: [part, part + 1])
    with pytest.raises(UserError, match="rank 1 has another decoder bias or skip than rank 0"):
        require_same(params, pair)
