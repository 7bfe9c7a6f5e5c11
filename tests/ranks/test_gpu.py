"""Sweeps shared by GPUs, with Triton's kernels and NCCL, beside those of one."""

from pathlib import Path

import pytest
import torch
from helpers.ranked_training import train
from helpers.ranks import run

from monolex.artifact import read_json
from monolex.dictionaries.base import load

pytestmark = pytest.mark.gpu
SHARED = """
import sys
from pathlib import Path
from helpers.ranked_training import train
data, features = map(int, sys.argv[2:])
train(Path(sys.argv[1]), data_ranks=data, feature_ranks=features, train_device="auto")
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (1, 2)])
def test_every_kind_is_that_of_one_gpu(tmp_path: Path, mesh: tuple[int, int]) -> None:
    train(tmp_path / "alone", train_device="cuda")
    run(2, SHARED, tmp_path / "shared", *mesh)
    for row in read_json(tmp_path / "alone" / "members.json"):
        ours, theirs = (load(tmp_path / name / row["path"]).weights for name in ("shared", "alone"))
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-3)
