"""What runs on a GPU: sparse steps against autograd there, and a sweep against one on the CPU."""

import pytest
import torch
from helpers.planted import SITE, config, planted, trained
from helpers.sparse_steps import compare
from helpers.trainer_states import saved

from monolex.kinds import KINDS
from monolex.training.members import members
from monolex.training.sparse.fused import Fused
from monolex.training.sparse.operators import Operators
from monolex.training.sparse.step import LOSSES
from monolex.training.sweep import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
K_KINDS = [name for name, row in KINDS.items() if row.sparsity == "k" and row.loss in LOSSES]


@pytest.mark.parametrize("parts", [Fused, Operators])
@pytest.mark.parametrize("dead", [0.0, 0.5])
@pytest.mark.parametrize(("d_in", "d_sae", "batch", "k"), [(33, 100, 50, 8), (768, 4096, 256, 32)])
@pytest.mark.parametrize("kind", K_KINDS)
def test_a_step_of_the_k_kinds_is_autograds(kind, d_in, d_sae, batch, k, dead, parts):
    compare(parts, kind, d_in, d_sae, batch, k, unit_rows=True, bias=True, dead=dead, device="cuda")


@pytest.mark.parametrize("parts", [Fused, Operators])
@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("kind", ["tied", "untied", "p-anneal"])
def test_a_step_of_the_relu_kinds_is_autograds(kind, modern, parts):
    compare(parts, kind, 64, 512, 128, unit_rows=modern, bias=modern, dead=0, device="cuda")


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "tied", "gated"])
def test_a_sweep_learns_what_it_learns_on_the_cpu(kind):
    made = config(kinds=(kind,), alphas=(0.1,), lrs=(0.01,), preset="modern", steps=100, precision="fp32")
    x = {SITE: planted().x}
    on_cpu, on_gpu = trained(made, x, 100), Trainer(members(made, {SITE: 16}), made, 100, device=torch.device("cuda"))
    for number in range(100):
        begin = number * made.batch_size % (len(x[SITE]) - made.batch_size)
        on_gpu.step({SITE: x[SITE][begin : begin + made.batch_size]})
    fvu = [trainer.metrics()[0]["fvu"] for trainer in (on_cpu, on_gpu)]
    assert fvu[1] == pytest.approx(fvu[0], rel=0.3) and fvu[1] < 0.6


@pytest.mark.parametrize("kind", ["topk", "tied"])
def test_a_state_continues_to_the_same_bits(kind, tmp_path):
    made = config(kinds=(kind,), alphas=(0.1,), lrs=(1e-3,), dead_after=64, steps=20)
    x, device = planted(512).x, torch.device("cuda")
    whole, half, again = (Trainer(members(made, {SITE: 16}), made, 20, device=device) for _ in range(3))
    batches = x.split(made.batch_size)
    for number in range(20):
        whole.step({SITE: batches[number % len(batches)]})
    for number in range(10):
        half.step({SITE: batches[number % len(batches)]})
    again.load_state(saved(half, tmp_path))
    for number in range(10, 20):
        again.step({SITE: batches[number % len(batches)]})
    for name, tensor in whole.params[0].items():
        assert torch.equal(again.params[0][name], tensor), name
