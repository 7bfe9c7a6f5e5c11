"""Compiled steps against autograd and torch's Adam: values, gradients' moments and parameters, step after step."""

import os
import statistics
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from helpers.planted import ALL, SITE, MemoryStream, config, planted, trained
from helpers.sparse_steps import compare
from helpers.trainer_states import saved, tensors

from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training import sweep
from monolex.training.members import members
from monolex.training.sparse import compiled, operators
from monolex.training.sparse import step as sparse
from monolex.training.sparse.available import usable
from monolex.training.sparse.parts import StepParts
from monolex.training.sweep import Trainer

choices = pytest.importorskip("monolex.training.sparse.choices", reason="numba is not installed")
STEPPED = [kind for kind in ALL if KINDS[kind].loss in sparse.LOSSES]


@pytest.fixture(params=[compiled.Compiled, operators.Operators])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[StepParts]:
    """How the parts of a step are done."""
    monkeypatch.setattr(sweep, "parts_for", lambda _device: request.param)
    return request.param


def densest(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let a ReLU go by its active codes up to this share of them."""
    for module in (compiled, operators):
        monkeypatch.setattr(module, "DENSEST", share)


@pytest.mark.parametrize("dead", [0.0, 0.5])
@pytest.mark.parametrize(
    ("d_in", "d_sae", "batch", "k"),
    [(33, 100, 50, 8), (64, 512, 128, 16), (16, 5, 9, 5), (16, 31, 1, 1)],
)
@pytest.mark.parametrize("kind", [kind for kind in STEPPED if KINDS[kind].sparsity == "k"])
def test_a_step_of_the_k_kinds_is_autograds(kind, d_in, d_sae, batch, k, dead, parts):
    compare(parts, kind, d_in, d_sae, batch, k, unit_rows=True, bias=True, dead=dead)


@pytest.mark.parametrize("kind", ["topk", "matryoshka"])
def test_a_step_of_a_dictionary_that_is_dead_altogether_is_autograds(kind, parts):
    compare(parts, kind, 16, 33, 7, 3, unit_rows=True, bias=True, dead=1.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize(("d_in", "d_sae", "batch"), [(16, 33, 7), (64, 512, 128), (3, 1, 5)])
@pytest.mark.parametrize("kind", ["tied", "untied", "p-anneal"])
def test_a_step_of_the_relu_kinds_is_autograds(kind, d_in, d_sae, batch, modern, share, monkeypatch, parts):
    densest(monkeypatch, share)
    compare(parts, kind, d_in, d_sae, batch, unit_rows=modern, bias=modern, dead=0)


@pytest.mark.parametrize(("d_in", "d_sae", "batch"), [(16, 33, 7), (64, 512, 128), (3, 1, 5)])
def test_a_step_of_gated_is_autograds(d_in, d_sae, batch, monkeypatch, parts):
    densest(monkeypatch, 1.0)
    compare(parts, "gated", d_in, d_sae, batch, unit_rows=True, bias=True, dead=0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("d_in", "d_out", "d_sae"), [(5, 24, 40)])
@pytest.mark.parametrize("kind", [kind for kind in STEPPED if not KINDS[kind].tied and not KINDS[kind].reads_back])
def test_a_step_of_a_transcoder_is_autograds(kind, d_in, d_out, d_sae, skip, monkeypatch, parts):
    densest(monkeypatch, 1.0)
    compare(parts, kind, d_in, d_sae, 30, 4, unit_rows=True, bias=True, dead=0.3, d_out=d_out, skip=skip)


@pytest.mark.parametrize("bits", [np.int16, np.int32])
@pytest.mark.parametrize(("rows", "n", "k"), [(5, 7, 3), (4, 64, 1), (3, 100, 100), (6, 1000, 40), (1, 1, 1)])
def test_the_largest_of_every_row_are_chosen_whatever_ties(bits, rows, n, k):
    values = np.random.default_rng(0).integers(-3, 6, (rows, n)).astype(bits)  # ties everywhere, and zeros
    values[0] = -1
    counts, features, found = np.empty(rows, np.int64), np.empty(rows * k, np.int32), np.empty(rows * k, np.uint32)
    choices.topk(values, k, 14, np.uint32(0), counts, features, found)
    for row in range(rows):
        expected = np.sort(values[row])[::-1][:k]
        mine = slice(row * k, row * k + counts[row])
        assert sorted(found[mine], reverse=True) == list(expected[expected > 0])
        assert len(set(features[mine])) == counts[row]
        assert list(values[row][features[mine]]) == list(found[mine])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", [compiled.Compiled, operators.Operators])
@pytest.mark.parametrize(("n", "k"), [(1000, 3), (97, 1), (64, 5), (31, 31)])
def test_the_largest_of_wide_rows_are_chosen_wherever_they_are(n, k, made, precision):
    g = torch.Generator().manual_seed(0)
    pre = (torch.randn(40, n, generator=g) + 1.0).to(precision)
    pre[0, -1] = pre[1, -2] = pre[2, 0] = 9.0  # at the ends too
    codes = made({}).largest_of_rows(pre, k)
    for row, (start, count) in enumerate(zip(codes.starts.tolist(), codes.counts.tolist(), strict=True)):
        active = codes.values[start : start + count] > 0
        values, features = (part[start : start + count][active] for part in (codes.values, codes.features))
        expected = pre[row].float().topk(k).values.relu()
        assert sorted(values.tolist(), reverse=True) == expected[expected > 0].tolist()
        assert torch.equal(pre[row, features.long()].float(), values) and len(set(features.tolist())) == len(features)


@pytest.mark.parametrize("made", [compiled.Compiled, operators.Operators])
def test_empty_rows_and_ties_over_the_batch(made):
    pre = torch.zeros(5, 16)
    pre[1, :9] = 1.0  # nine equal ones, then two larger in another row, of ten that may be active
    pre[3, 2:4] = 2.0
    codes = made({}).largest_of_batch(pre, 2)
    assert codes is not None
    assert codes.counts.tolist() == [0, 8, 0, 2, 0] and codes.starts.tolist() == [0, 0, 8, 8, 10]
    assert set(codes.features[:8].tolist()) < set(range(9)) and sorted(codes.features[8:].tolist()) == [2, 3]
    assert codes.values.tolist() == [1.0] * 8 + [2.0] * 2
    nothing = made({}).largest_of_batch(torch.full((5, 16), -1.0), 2)
    assert nothing is not None and nothing.counts.tolist() == [0] * 5 and len(nothing.values) == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("kind", ALL)
def test_nan_and_infinity_are_seen(kind, share, monkeypatch, parts):
    densest(monkeypatch, share)
    made = config(kinds=(kind,), ks=(2,), lrs=(1e-3,))
    for bad in (float("nan"), float("inf")):
        trainer = Trainer(members(made, {SITE: 5}), made, 4)
        x = torch.randn(16, 5)
        trainer.step({SITE: x})
        trainer.step({SITE: x.index_fill(0, torch.tensor(3), bad)})
        with pytest.raises(Exception, match="is not finite at step 2"):
            trainer.metrics()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_few_codes_or_many_make_no_difference(share, monkeypatch, parts):
    made = config(kinds=("tied", "untied"), alphas=(0.1,), lrs=(0.01,), preset="modern", steps=100)
    x = {SITE: planted().x}
    densest(monkeypatch, share)
    quick = trained(made, x, 100)
    monkeypatch.setattr(sweep, "LOSSES", frozenset())
    for ours, theirs in zip(quick.params, trained(made, x, 100).params, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-3)


def test_a_relu_goes_by_its_codes_once_they_are_few(monkeypatch, parts):
    made = config(kinds=("tied",), alphas=(0.3,), lrs=(0.01,), preset="modern", steps=200)
    products = []
    original = sparse.SparseStep._by_products
    monkeypatch.setattr(
        sparse.SparseStep, "_by_products", lambda self, *args: (products.append(1), original(self, *args))[1]
    )
    trained(made, {SITE: planted().x}, 200)
    assert 1 <= len(products) < 150


@pytest.mark.parametrize("kind", ALL)
def test_a_state_continues_to_the_same_bits(kind, parts, tmp_path):
    made = config(kinds=(kind,), alphas=(0.1,), lrs=(1e-3,), dead_after=64, steps=20)
    x = {SITE: planted(512).x}
    whole = trained(made, x, 20)
    half, again = (Trainer(members(made, {SITE: 16}), made, 20) for _ in range(2))
    stream = MemoryStream(x, made.batch_size)
    for number in range(10):
        half.step(stream.at(number))
    again.load_state(saved(half, tmp_path))
    for number in range(10, 20):
        again.step(stream.at(number))
    for name, tensor in tensors(whole).items():
        if not name.endswith((".sums", ".variance")):
            assert torch.equal(tensors(again)[name], tensor), name


SEEDS = (0, 1)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        *((compiled.Compiled, kind) for kind in STEPPED),
        *((operators.Operators, kind) for kind in ("tied", "topk", "jumprelu", "gated")),  # one of each way of a step
    ],
    indirect=["parts"],
)
def test_bf16_learns_what_fp32_does(kind, parts):
    x = {SITE: planted().x}
    fvus = {}
    for precision in ("fp32", "bf16"):
        # of one seed the last digit decides which of several ways training takes
        made = config(kinds=(kind,), alphas=(0.1,), lrs=(0.01,), preset="modern", steps=150, ratios=(4.0,), seeds=SEEDS)
        trainer = Trainer(members(made, {SITE: 16}), made, 150)
        for quick in trainer._sparse:
            assert quick is not None
            quick.bf16 = precision == "bf16"
        stream = MemoryStream(x, 64)
        for number in range(150):
            trainer.step(stream.at(number))
            if number == 99:
                trainer.metrics()
        fvus[precision] = statistics.mean(row["fvu"] for row in trainer.metrics())
        assert trainer.dictionaries()[0].config.recipe["precision"] == precision
    assert fvus["bf16"] == pytest.approx(fvus["fp32"], rel=0.08) and fvus["fp32"] < 0.6


def test_numba_leaves_torch_its_number_of_threads():
    code = """
        import torch
        before = torch.get_num_threads()
        import numpy as np
        from monolex.training.sparse import choices, kernels
        kernels.use_threads(2)
        choices.maxima(np.ones((4, 8), np.int32), 2, np.ones((4, 2), np.int32))
        print(before, torch.get_num_threads())
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_a_numba_that_does_not_work_is_said_once_and_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numba")
    assert not usable.__wrapped__("numba")
    assert "so training steps are not compiled: Numba needs NumPy 1.0 or less" in caplog.text
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not usable.__wrapped__("numba")


def test_bf16_is_refused_where_it_is_not_native(monkeypatch):
    made = config(kinds=("topk",), precision="bf16")
    monkeypatch.setattr(sweep, "lacking", lambda _where: "this CPU has none")
    with pytest.raises(UserError, match=r"precision = 'bf16' cannot be used here: this CPU has none; give 'auto'"):
        Trainer(members(made, {SITE: 5}), made, 4)
    made = config(kinds=("topk",), precision="auto")
    assert [quick.bf16 for quick in Trainer(members(made, {SITE: 5}), made, 4)._sparse if quick] == [False]
    monkeypatch.setattr(sweep, "lacking", lambda _where: "")
    assert [quick.bf16 for quick in Trainer(members(made, {SITE: 5}), made, 4)._sparse if quick] == [True]
    monkeypatch.setattr(sweep, "parts_for", lambda _device: operators.Operators)
    assert [quick.bf16 for quick in Trainer(members(made, {SITE: 5}), made, 4)._sparse if quick] == [True]
