"""What training was said to take is near what it takes."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.planted import SITE, MemoryStream, config, planted

from monolex.config import CorpusConfig, HarvestConfig, TrainConfig
from monolex.cost import Cost, Planned, PlannedDictionary, Shape
from monolex.estimate import OVERHEAD, costs, model_shape
from monolex.interp.config import ExplainConfig
from monolex.interp.cost import explain, features_explained
from monolex.interp.examples.draw import KEPT, PEAKS
from monolex.pipeline import demo_toml
from monolex.plan import plan
from monolex.run_toml import read_run
from monolex.training.cost import sweep_cost
from monolex.training.data import TrainingData
from monolex.training.members import members
from monolex.training.trainer import train_from


def estimate(sweep: TrainConfig, d_in: int, rows: int) -> Cost:
    return sweep_cost(sweep, members(sweep, {SITE: d_in}), rows, item=4)


BIG = TrainConfig(
    kinds=("tied", "untied", "topk", "batchtopk"), ratios=(4.0,), ks=(32,), steps=2, save_every=1, batch_size=1024
)


def test_memory_of_training_is_near_what_it_holds(tmp_path):
    script = """
        import runpy, sys
        import torch
        from helpers.planted import SITE, MemoryStream
        from monolex import runtime
        from monolex.training.data import TrainingData
        from monolex.training.trainer import train_from
        config = runpy.run_path(sys.argv[1])["BIG"]
        stream = MemoryStream({SITE: torch.randn(2048, 512)}, config.batch_size)
        before = runtime.peak_memory()
        train_from(sys.argv[2], TrainingData(stream, {SITE: 512}, "x"), config)
        print(runtime.peak_memory() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), __file__, str(tmp_path / "sweep")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.7 < estimate(BIG, 512, 2048).memory / int(done.stdout) < 1.4


@pytest.mark.parametrize("kinds", [("tied",), ("untied", "topk")])
def test_disk_of_training_holds_the_states_and_what_is_kept(tmp_path, kinds):
    most = 0

    def before(_step: int) -> None:
        nonlocal most
        most = max(most, sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))

    made = config(kinds=kinds, ratios=(4.0,), keep_checkpoints=1, save_every=4)
    stream = MemoryStream({SITE: planted(64, d_in=96).x}, 16, before)
    train_from(tmp_path, TrainingData(stream, {SITE: 96}, "x"), made)
    before(20)
    said = estimate(made, 96, 64).disk
    # The second of two states is there for a moment only.
    assert 0.9 * most < said < 2 * most
    assert said > estimate(config(kinds=kinds, ratios=(4.0,), keep_checkpoints=1), 96, 64).disk


def test_what_is_explained_is_counted_as_it_will_be():
    run, control = Path("run"), Path("run/controls/random")
    sweep = [
        PlannedDictionary(SITE, name, 100, home, True, 3)
        for home in (run, control)
        for name in ("tied", "batchtopk-k8")
    ]
    baselines = [
        PlannedDictionary(SITE, "pca", 40, run, False),
        *(PlannedDictionary(SITE, f"pca-topk-k{n}", 40, run, False) for n in range(5)),
    ]
    given = [*sweep, *baselines]

    def features(**asked: Any) -> int:
        return features_explained(ExplainConfig(features=50, **asked), given)

    assert features() == 4 * 50 + 3 * 40
    assert features(matched=False) == 4 * 50 + 6 * 40
    assert features(controls=False) == 2 * 50 + 3 * 40
    assert features(checkpoints=True) == 4 * 4 * 50 + 3 * 40
    # of one trained dictionary there is one
    assert features(dictionaries=("tied", "pca-topk-*")) == 2 * 50 + 40
    assert features(dictionaries=("pca-topk-*",)) == 5 * 40, "as inputs.py: without a trained one, all"


def test_the_demo_and_the_figures_take_minutes():
    for path, name, low, high in (
        (demo_toml(), "explain demo", 0.5, 2.5),
        (Path(__file__).parents[1] / "bench" / "fig2.toml", "explain paper", 4, 14),
    ):
        run = read_run(path)
        stages = plan(run, Path("nowhere"))
        (found,) = [
            cost
            for stage, cost in zip(stages, costs(run, stages, model_shape(run.model)), strict=True)
            if stage.name == name
        ]
        minutes = (found.flops / 1e11 * OVERHEAD + found.seconds) / 60  # at what two cores do
        assert low < minutes < high, name
        assert 10**8 < found.memory < 10**9, name


def test_maxima_of_all_fragments_are_part_of_the_memory():
    corpus, shape, folder = CorpusConfig(max_tokens=50_000 * 64), Shape(0, 0, 0, {SITE: 8}, 1), Path("run/train/wide")
    wide = {folder: [PlannedDictionary(SITE, "tied", 100_000, Path("run"), True)]}

    def memory(config: ExplainConfig) -> int:
        harvest = HarvestConfig(sites=(SITE,))
        return explain(Planned(Path("run/explain/x"), config, {}, [folder], corpus, harvest, shape, wide, {})).memory

    every = ExplainConfig(fragments=50_000, fragment_tokens=64, mode="modern")
    assert memory(every) == 4 * KEPT + 5 * PEAKS
    assert memory(replace(every, pick="first", features=10)) == 4 * KEPT + 5 * 50_000 * 10
