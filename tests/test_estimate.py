"""What stages are said to take is near what they take."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted import SITE, MemoryStream, config, planted
from helpers.tiny import tiny, tiny_hf

from monolex.config import CorpusConfig, HarvestConfig, ModelConfig
from monolex.cost import Cost, Planned, PlannedDictionary, Shape
from monolex.demo.subjects import SUBJECTS
from monolex.estimate import LIBRARIES, costs, measure, model_shape, seconds
from monolex.interp.config import ExplainConfig
from monolex.interp.cost import IMPORTED, explain, features_explained
from monolex.interp.examples.draw import KEPT, PEAKS
from monolex.model.load import wrap
from monolex.plan import plan
from monolex.run_toml import read_run
from monolex.runtime import threads
from monolex.speed import FLOPS, LEAST, PYTHON, Speed
from monolex.train_config import TrainConfig
from monolex.training.cost import step_seconds, sweep_cost
from monolex.training.data import TrainingData
from monolex.training.members import members
from monolex.training.sweep import Trainer
from monolex.training.trainer import train_from


def estimate(sweep: TrainConfig, d_in: int, rows: int) -> Cost:
    return sweep_cost(sweep, members(sweep, {SITE: d_in}), rows, item=4)


BIG = TrainConfig(
    kinds=("tied", "untied", "topk", "batchtopk"), ratios=(4.0,), ks=(32,), steps=2, save_every=1, batch_size=1024
)


@pytest.mark.slow
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
        (SUBJECTS["demo"].toml, "explain demo", 0.5, 2.5),
        (Path(__file__).parents[1] / "bench" / "fig2.toml", "explain paper", 4, 14),
    ):
        run = read_run(path)
        stages = plan(run, Path("nowhere"))
        (found,) = [
            cost
            for stage, cost in zip(stages, costs(run, stages, model_shape(run.model)), strict=True)
            if stage.name == name
        ]
        minutes = seconds(stages[0], found, model_shape(run.model), Speed(measured=False)) / 60
        assert low < minutes < high, name
        assert LIBRARIES + 10**8 < found.memory < LIBRARIES + 2 * 10**9, name


def test_maxima_of_all_fragments_are_part_of_the_memory():
    corpus, shape, folder = CorpusConfig(max_tokens=50_000 * 64), Shape(0, 0, 0, {SITE: 8}, 1), Path("run/train/wide")
    wide = {folder: [PlannedDictionary(SITE, "tied", 100_000, Path("run"), True)]}

    def memory(config: ExplainConfig) -> int:
        harvest = HarvestConfig(sites=(SITE,))
        return explain(Planned(Path("run/explain/x"), config, {}, [folder], corpus, harvest, shape, wide, {})).memory

    every = ExplainConfig(fragments=50_000, fragment_tokens=64, mode="modern")
    rest = IMPORTED + int(0.9 * corpus.max_tokens) * 2 * 8
    assert memory(every) == 4 * KEPT + 5 * PEAKS + rest
    assert memory(replace(every, pick="first", features=10)) == 4 * KEPT + 5 * 50_000 * 10 + rest


class Clock:
    """Goes on by two seconds whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2
        return self.now


def test_a_piece_of_work_is_timed_once_and_remembered():
    done: list[int] = []
    speed = Speed(clock=Clock())
    assert speed.timed("a", lambda: done.append(1), 5.0) == 2
    assert len(done) == 2, "two seconds are long enough: it was done once more, for the first may have compiled"
    assert speed.timed("a", lambda: done.append(1), 5.0) == 2 and len(done) == 2
    assert speed.timed("b", lambda: done.append(1), 5.0) == 2 and len(done) == 4
    assert speed.python(10.0) == pytest.approx(20.0 / PYTHON), "Python takes two seconds here for what it took there"


def test_work_of_a_moment_is_repeated_and_the_first_time_does_not_count():
    times, done = iter([0.0, LEAST, *(10 + n * LEAST * 0.6 for n in range(9))]), []
    assert Speed(clock=lambda: next(times)).timed("a", lambda: done.append(1), 0) == pytest.approx(LEAST * 0.6)
    assert len(done) == 3


def test_what_is_compiled_the_first_time_is_not_that_slow():
    times = iter([0.0, 5.0, 10.0, 10.5])
    assert Speed(clock=lambda: next(times)).timed("a", lambda: None, 0) == 0.5


def test_what_is_not_measured_is_of_another_machine():
    speed = Speed(measured=False)
    assert speed.timed("a", lambda: pytest.fail("nothing is done"), 3 * FLOPS) == 3
    assert speed.python(7) == 7 and speed.token(100) * FLOPS == 200
    assert speed.coded(10, 20) * FLOPS == pytest.approx(800) and speed.coded(10, 20_000) * FLOPS == pytest.approx(8e5)
    assert speed.product(1e9) * FLOPS == pytest.approx(1e9)


def test_steps_grow_with_the_batch_and_the_width_and_differ_by_kind():
    made = config(kinds=("tied", "topk"), ratios=(2.0,), batch_size=1024)
    tied, topk = members(made, {SITE: 64})
    speed = Speed(measured=False)
    one, two = (step_seconds(replace(made, batch_size=n), tied, speed) for n in (1024, 2048))
    assert 1.8 < two / one < 2
    assert step_seconds(made, replace(tied, d_sae=256), speed) == pytest.approx(2 * step_seconds(made, tied, speed))
    # the weights of the largest that is really trained: what is wider goes with its width
    wide = replace(tied, d_in=2048, d_out=2048, d_sae=65_536)
    assert step_seconds(made, wide, speed) == pytest.approx(1024 * 64 * step_seconds(made, tied, speed) / 4, rel=0.05)
    assert step_seconds(made, topk, speed) > step_seconds(made, tied, speed)


def test_a_timed_step_is_near_the_steps_of_a_training():
    made = config(kinds=("batchtopk", "tied"), ratios=(4.0,), ks=(16,), batch_size=256)
    sweep = members(made, {SITE: 128})
    speed = Speed(clock=time.process_time)
    with threads(1):
        said = sum(step_seconds(made, member, speed) for member in sweep)
        trainer = Trainer(sweep, made, 100)
        began = time.process_time()
        for _ in range(30):
            trainer.step({SITE: torch.randn(256, 128)})
        took = (time.process_time() - began) / 30
    assert 0.4 < said / took < 2.5


def test_the_model_is_timed_in_its_precision_and_the_loading_counts_for_each_model():
    lm, narrow = tiny("llama"), tiny_hf("llama").bfloat16()
    dtypes: set[torch.dtype] = set()
    narrow.model.layers[0].register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))
    slow = Speed(wrap(narrow), 16, clock=Clock())
    # one pass takes two seconds; a token is one of as many as fit into 1,024
    assert slow.token(1) == pytest.approx(2 / 1024) and dtypes == {torch.bfloat16}
    assert slow.prediction(101, 32) == pytest.approx(2 / 1024)
    assert Speed(lm, 1000, clock=Clock()).token(1) == pytest.approx(2 / 1024), "no longer than the model reads"
    run = read_run(SUBJECTS["demo"].toml)
    steps = {step.name: step for step in plan(run, Path("nowhere"))}
    shape, nothing = Shape(1, 1, 1, {}, 1), Cost(0, 0, 0.0)
    loads = {
        n: seconds(steps[n], nothing, shape, Speed(loading=1.0))
        for n in ("train long", "eval", "features", "score demo")
    }
    assert loads == {"train long": 0, "eval": 3, "features": 1, "score demo": 0}
    assert seconds(steps["eval"], Cost(0, 0, 2.0 * 1024), shape, slow) == pytest.approx(2)


def test_a_model_that_does_not_fit_is_not_loaded(monkeypatch, caplog):
    monkeypatch.setattr("monolex.estimate.free_memory", lambda _: 1000)
    monkeypatch.setattr("monolex.estimate.load", lambda _: pytest.fail("it does not fit"))
    caplog.set_level("WARNING", "monolex")
    measure(ModelConfig(model_dtype="bf16"), Shape(1000, 1, 1, {}, 1), 16)
    assert "demo takes 2 kB and 1 kB are free: minutes are a guess" in caplog.text


def test_what_is_run_again_from_a_site():
    shape = Shape(1, 1, 1, {}, 4)
    assert [shape.share(site) for site in ("resid_post.0", "mlp_out.0", "resid_post.3", "mlp_act.3")] == [
        0.75,
        1,
        0,
        0.25,
    ]


@pytest.mark.slow
def test_memory_of_a_harvest_is_near_its_peak(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from monolex import estimate, runtime
        from monolex.plan import plan
        from monolex.pipeline import settled
        from monolex.run_toml import read_run
        out = Path(sys.argv[1])
        run = settled(read_run(out / "run.toml"), out)
        step = plan(run, out)[0]
        said = next(estimate.costs(run, [step], estimate.model_shape(run.model))).memory - estimate.LIBRARIES
        harvest = step.stage.load("run")
        before = runtime.peak_memory()
        harvest(step.folder, config=step.config, **step.inputs)
        print(said / (runtime.peak_memory() - before))
    """
    toml = SUBJECTS["demo"].toml.read_text().replace("110_000", "30_000").replace("stdlib", str(tmp_path / "text"))
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(" ".join(f"word{n * number % 997}" for n in range(800)))
    (tmp_path / "run.toml").write_text(toml)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.65 < float(done.stdout) < 1.5


def test_a_model_is_timed_whatever_its_first_tokens_mean():
    """Token 0 may pad a text or belong to it, which without a mask is refused."""
    lm = tiny("llama", pad_token_id=0, eos_token_id=0, bos_token_id=1)
    assert Speed(lm, 16, clock=Clock()).token(1) > 0
