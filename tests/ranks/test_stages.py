"""Harvests, streams from the model and stages of pieces on several ranks: what one process writes, byte for byte."""

import json
from pathlib import Path

import pytest
from helpers.ranked_stages import harvest_and_fit, stream_batches
from helpers.ranks import ended, run, start
from helpers.tiny_harvests import contents

from monolex.artifact import verify

STAGES = """
import sys
from pathlib import Path
from helpers.ranked_stages import harvest_and_fit, stream_batches
from monolex.ranks import here
home, text = Path(sys.argv[1]), Path(sys.argv[2])
harvest_and_fit(home, text)
stream_batches(home / f"batches-{here.rank()}.json", text)
"""
CRASH = """
import os, signal, sys
from pathlib import Path
from monolex import artifact
from monolex.ranks import here
from helpers.ranked_stages import harvest_and_fit
write, left = artifact.write_bytes, [9]
def crashing(path, content):
    left[0] -= here.rank() == 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)
artifact.write_bytes = crashing
harvest_and_fit(Path(sys.argv[1]), Path(sys.argv[2]))
"""
TOY = """
import sys
from monolex.cli import main
few = "--d-in 8 --features 16 --active 2 --seeds 0 1 --steps 8 --batch-size 64 --test-rows 2048 --fit-rows 512"
kinds = "--parts kinds --kinds untied topk --controls pca-topk"
sys.exit(main(["toy", sys.argv[1], *few.split(), *kinds.split()]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, and what one process made of it in ``alone``."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        from monolex.activations import harvest as module

        patch.setattr(module, "_shard_batches", module._shard_batches)
        harvest_and_fit(folder / "alone", folder / "text")
    stream_batches(folder / "batches.json", folder / "text")
    return folder


def test_three_ranks_write_the_store_of_one(home: Path, tmp_path: Path) -> None:
    run(3, STAGES, tmp_path, home / "text")
    for name in ("activations", "baselines"):
        whole, shared = verify(home / "alone" / name), verify(tmp_path / name)
        assert shared.content == whole.content
        assert contents(tmp_path / name) == contents(home / "alone" / name)
    facts = [verify(folder / "activations").data for folder in (home / "alone", tmp_path)]
    assert len(facts[0]["shards"]["train"]) > 6, "every rank has some"
    for each in facts:
        each.pop("seconds")
    assert facts[0] == facts[1]
    wanted = json.loads((home / "batches.json").read_text())
    assert all(json.loads((tmp_path / f"batches-{rank}.json").read_text()) == wanted for rank in range(3))


@pytest.mark.slow
def test_a_killed_rank_loses_one_shard(home: Path, tmp_path: Path) -> None:
    processes = start(2, CRASH, tmp_path, home / "text", MONOLEX_PATIENCE="5")
    ended(processes)
    assert not (tmp_path / "activations" / "manifest.json").exists()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "activations").glob("*/train-*")}
    run(3, STAGES, tmp_path, home / "text")
    assert verify(tmp_path / "activations").content == verify(home / "alone" / "activations").content
    assert contents(tmp_path / "activations") == contents(home / "alone" / "activations")
    kept = [path for path, time in stored.items() if path.stat().st_mtime_ns == time]
    assert len(kept) > len(stored) / 2, "what was whole is not made again"


def test_toy_data_are_those_of_one_process(tmp_path: Path) -> None:
    for count in (1, 2):
        run(count, TOY, tmp_path / str(count))
    (alone, shared) = (tmp_path / count for count in "12")
    assert contents(shared) == contents(alone) and verify(shared).content == verify(alone).content
