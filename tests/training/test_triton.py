"""The kernels for GPUs against autograd, by Triton's interpreter where there is no GPU."""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.planted import SITE, config, planted, trained
from helpers.sparse_steps import compare

from monolex.training import sweep
from monolex.training.sparse import compiled, fused, operators, triton_kernels
from monolex.training.sparse.fused import Fused

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "jumprelu", "lista", "frozen-decoder"])
def test_a_step_of_the_k_kinds_is_autograds(kind):
    compare(Fused, kind, 17, 20, 6, 3, unit_rows=True, bias=True, dead=0.5)


@pytest.mark.parametrize(
    ("kind", "share", "modern"),
    [
        ("gated", 1.0, True),
        *itertools.product(["untied"], [0.0, 1.0], [False, True]),
        ("tied", 0.0, False),
        ("tied", 1.0, True),
        ("p-anneal", 1.0, False),
    ],
)
def test_a_step_of_the_relu_kinds_is_autograds(kind, share, modern, monkeypatch):
    for module in (compiled, operators):
        monkeypatch.setattr(module, "DENSEST", share)
    compare(Fused, kind, 16, 19, 4, unit_rows=modern, bias=modern, dead=0)


@pytest.mark.parametrize(("d_in", "d_sae", "batch", "k"), [(16, 5, 4, 5), (16, 11, 1, 1), (3, 1, 5, 1)])
def test_odd_sizes(d_in, d_sae, batch, k):
    compare(Fused, "topk", d_in, d_sae, batch, k, unit_rows=True, bias=True, dead=0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["topk", "untied"])
def test_a_step_of_a_transcoder_is_autograds(kind, skip, monkeypatch):
    monkeypatch.setattr(operators, "DENSEST", 1.0)
    compare(Fused, kind, 5, 15, 6, 2, unit_rows=True, bias=True, dead=0.3, d_out=9, skip=skip)


def test_a_sweep_learns_what_it_learns_by_operators(monkeypatch):
    made = config(kinds=("topk", "tied"), alphas=(0.1,), lrs=(0.01,), preset="modern", steps=4)
    x = {SITE: planted(128).x}
    ends = []
    for parts in (Fused, operators.Operators):
        monkeypatch.setattr(sweep, "parts_for", lambda _device, parts=parts: parts)
        ends.append(trained(made, x, 4))
    for ours, theirs in zip(ends[0].params, ends[1].params, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-3)


def test_a_kernel_is_tried_before_it_is_relied_on(monkeypatch, caplog):
    assert fused.works(torch.device("cpu"))

    class Broken:
        def __getitem__(self, _grid):
            raise RuntimeError("Failed to find C compiler.\nMore lines")

    monkeypatch.setattr(triton_kernels, "feature_sums", Broken())
    assert not fused.works(torch.device("cpu"))
    said = "triton cannot be used on cpu, so training steps are not compiled: Failed to find C compiler."
    assert caplog.messages == [said]


COMPILED = """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from monolex.training.sparse import triton_kernels
    numbers = {"batch", "width"}
    reals = {"scale", "rate", "root", "b1", "b2"}
    integers = {"starts", "counts", "features", "prefixes", "ends", "sorted_rows", "level", "number"}
    for name, constants in (
        ("decode", {"PREFIXES": 3, "WIDTH": 4096}),
        ("feature_sums", {"BLOCK": 128}),
        ("move", {"TWO": True, "THROUGH_UNIT": True, "UNIT": True, "WIDTH": 4096}),
    ):
        kernel = getattr(triton_kernels, name)
        types = {n: "i32" if n in numbers else "fp32" if n in reals else "*i64" if n in integers else "*fp32"
                 for n in kernel.arg_names}
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature=signature, constexprs=constants)
        for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
            binary = triton.compile(source, target=target, options={"num_warps": 8}).asm
            print(name, target.backend, len(binary["cubin" if target.backend == "cuda" else "hsaco"]) > 0)
"""


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    command = [sys.executable, "-c", textwrap.dedent(COMPILED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = ("decode", "feature_sums", "move")
    assert done.stdout.split("\n")[:-1] == [f"{k} {where} True" for k in kernels for where in ("cuda", "cuda", "hip")]
