"""A training step of one member with the compiled kernels: one product for the encoder, the rest by active codes.

Does what ``loss.backward()`` on :func:`monolex.training.steps.member_loss`, Adam and the unit rows do, which the tests
hold it against. Parameters and Adam's moments are torch's own tensors, changed in place. A ReLU whose codes are many
takes five products instead, step by step as it is.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.kinds import KINDS
from monolex.runtime import log
from monolex.training.compiled.codes import ActiveCodes, AddedGradients, BatchErrors, SortedCodes
from monolex.training.members import SweepMember
from monolex.training.optim import BETAS
from monolex.training.steps import Loss, Revival, keep_largest, unit

DENSEST = 1 / 6
"""Active share of a ReLU's codes up to which going by active codes is faster; half of it in bf16 (docs/log.md)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's names of them."""


@cache
def available() -> bool:
    """Whether there is a compiler that works, the extra ``monolex[fast]``."""
    if find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401 (a version of its own mind about numpy's says so here)
    except ImportError as error:
        log.warning("numba is installed but cannot be used, so training steps are not compiled: %s", error)
        return False
    return True


class CompiledStep:
    """Steps of one member, whose ``params`` and whose moments in ``adam`` it changes in place."""

    def __init__(
        self,
        member: SweepMember,
        params: Mapping[str, Tensor],
        adam: torch.optim.Adam,
        *,
        unit_rows: bool,
        bf16: bool,
    ) -> None:
        from monolex.training.compiled import kernels  # numba takes a second to import

        self._kernels: ModuleType = kernels
        self.member, self.params, self.unit, self.bf16 = member, params, unit_rows, bf16
        self._state = adam.state
        for tensor in params.values():  # as Adam itself begins
            zeros = (torch.zeros_like(tensor, requires_grad=False) for _ in range(2))
            self._state[tensor] = {"step": torch.zeros(()), **dict(zip(MOMENTS, zeros, strict=True))}
        self._ends = np.zeros(member.d_sae + 1, np.int64)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "batch d_in"], lr: float, revival: Revival | None) -> Loss:
        """One step at the rate ``lr``."""
        params, member = self.params, self.member
        self._kernels.use_threads(torch.get_num_threads())
        self.rows = params["W_dec"].detach() if self.unit else unit(params["W_dec"].detach())
        centred = (x - params["b_dec"] if "b_dec" in params else x).contiguous()
        pre = self._encode(centred)
        codes = self._choose(pre)
        if codes is None:
            return self._by_products(pre, centred, lr)
        batch, count, alpha = len(x), len(codes.values), member.alpha or 0.0
        error = torch.empty_like(centred)
        out = BatchErrors(error.numpy(), np.empty(count, np.float32), np.empty(batch, np.float32))
        self._kernels.decode(centred.numpy(), self.rows.numpy(), tuple(codes), np.float32(alpha / batch), tuple(out))
        ordered = SortedCodes(self._ends, np.empty(count, np.int32), np.empty(count, np.int32))
        self._kernels.by_feature(tuple(codes), tuple(ordered))
        mse = (torch.from_numpy(out.squares).double().sum() / x.numel()).float()
        auxk, added = self._auxk(pre, centred, error, revival)
        self._update(centred.numpy(), codes.values, out, ordered, added, lr)
        values = torch.from_numpy(codes.values)
        l1, l0 = values.sum() / batch, torch.tensor(count / batch, dtype=torch.float32)
        total = mse + alpha * l1 + (0.0 if revival is None else revival.weight * auxk)
        fired = torch.from_numpy(np.diff(self._ends) > 0)
        smallest = values.min() if count else torch.tensor(torch.inf)
        threshold = smallest if KINDS[member.kind].activation == "threshold" else None
        return Loss(total, {"mse": mse, "l1": l1, "l0": l0, "auxk": auxk}, fired, threshold)

    def _by_products(self, pre: Tensor, centred: Tensor, lr: float) -> Loss:
        """A ReLU's step by matrix products: the reconstruction in float32, the others as its pre-activations."""
        batch, alpha, n = len(pre), self.member.alpha or 0.0, self.member.d_sae
        codes, rows = pre.relu_(), self.rows.to(pre.dtype)
        # a small error is the difference of large numbers: in bf16 it would be about their rounding
        error = torch.addmm(centred, codes.float(), self.rows, beta=-1)
        mse = error.square().mean()
        error *= 2 / error.numel()
        small, active = error.to(pre.dtype), codes > 0
        by_code = (small @ rows.T).add_(alpha / batch).mul_(active)
        sums = (codes.T @ small, by_code.T @ centred.to(pre.dtype), by_code.sum(0, dtype=torch.float32))
        added = AddedGradients(np.arange(n, dtype=np.int32), *(part.float().numpy() for part in sums))
        nothing = np.zeros(0, np.float32)
        self._ends[:] = 0
        ordered = SortedCodes(self._ends, np.zeros(0, np.int32), np.zeros(0, np.int32))
        out = BatchErrors(error.numpy(), nothing, nothing)
        self._update(centred.numpy(), nothing, out, ordered, added, lr)
        l1, l0 = codes.sum(dtype=torch.float32) / batch, active.sum() / batch
        parts = {"mse": mse, "l1": l1, "l0": l0, "auxk": torch.zeros(())}
        return Loss(mse + alpha * l1, parts, active.any(0))

    def _encode(self, centred: Tensor) -> Tensor:
        weights, bias = self.params.get("W_enc", self.rows).detach(), self.params["b_enc"].detach()
        if self.bf16:
            return torch.addmm(bias.bfloat16(), centred.bfloat16(), weights.bfloat16().T)
        return torch.addmm(bias, centred, weights.T)

    def _choose(self, pre: Tensor) -> ActiveCodes | None:
        """The codes that are active; None where a ReLU's are too many."""
        member, (batch, n) = self.member, pre.shape
        bits = pre.view(torch.int16 if self.bf16 else torch.int32).numpy()
        top_bit, shift = (14, np.uint32(16)) if self.bf16 else (30, np.uint32(0))
        if KINDS[member.kind].loss == "topk":
            assert member.k is not None, member
            counts = np.empty(batch, np.int64)
            features, values = np.empty(batch * member.k, np.int32), np.empty(batch * member.k, np.float32)
            self._kernels.topk(bits, member.k, top_bit, shift, counts, features, values.view(np.uint32))
            return _packed(counts, features, values)
        least = bits.dtype.type(1)
        groups = max(n // self._kernels.GROUP, min(n, 2 * (member.k or 1)))
        top = np.empty((batch, groups), bits.dtype)
        self._kernels.maxima(bits, groups, top)
        wanted = batch * (member.k or n)
        low = max(self._kernels.kth(top.reshape(-1), wanted, top_bit), least) if wanted <= top.size else least
        counts = np.empty(batch, np.int64)
        self._kernels.count_reaching(bits, groups, top, low, counts)
        total = int(counts.sum())
        if member.k is None and total > DENSEST / (1 + self.bf16) * batch * n:
            return None
        features, candidates = np.empty(total, np.int32), np.empty(total, bits.dtype)
        codes = ActiveCodes(np.cumsum(counts) - counts, counts, features, np.empty(total, np.float32))
        self._kernels.gather_reaching(bits, groups, top, low, codes.starts, features, candidates)
        cut, ties = least, total
        if total > wanted:
            cut = self._kernels.kth(candidates, wanted, top_bit)
            ties = wanted - int((candidates > cut).sum())
        kept = self._kernels.cut_rows(candidates, cut, ties, shift, tuple(codes), codes.values.view(np.uint32))
        return codes._replace(features=features[:kept], values=codes.values[:kept])

    def _auxk(
        self, pre: Tensor, centred: Tensor, error: Tensor, revival: Revival | None
    ) -> tuple[Tensor, AddedGradients]:
        """The auxiliary loss, and the gradients of the dead features by it."""
        d = centred.shape[1]
        number = np.full(self.member.d_sae, -1, np.int32)
        if revival is None or not bool(revival.dead.any()):
            nothing = np.zeros((0, d), np.float32)
            return torch.zeros(()), AddedGradients(number, nothing, nothing, np.zeros(0, np.float32))
        dead = revival.dead.nonzero()[:, 0]
        number[dead.numpy()] = np.arange(len(dead), dtype=np.int32)
        width = max(1, min(d // 2, pre.shape[1]))
        chosen = pre[:, dead].float()
        codes = keep_largest(chosen, width) if len(dead) > width else chosen.relu()
        rows = self.rows[dead]
        # `error` is 2 / (batch * d) times x̂ - x
        missed = torch.addmm(error * (centred.numel() / 2), codes, rows)
        loss = missed.square().mean()
        missed *= 2 * revival.weight / centred.numel()
        by_code = (missed @ rows.T).mul_(codes > 0)
        gradients = (codes.T @ missed, by_code.T @ centred, by_code.sum(0))
        return loss, AddedGradients(number, *(gradient.numpy() for gradient in gradients))

    def _update(
        self,
        centred: NDArray,
        values: NDArray,
        out: BatchErrors,
        ordered: SortedCodes,
        added: AddedGradients,
        lr: float,
    ) -> None:
        states = {name: self._state[tensor] for name, tensor in self.params.items()}
        for state in states.values():
            state["step"] += 1
        steps, (b1, b2) = float(states["W_dec"]["step"]), BETAS
        rate, root = lr / (1 - b1**steps), (1 - b2**steps) ** -0.5
        moving = {
            name: (tensor.detach().numpy(), *(states[name][moment].numpy() for moment in MOMENTS))
            for name, tensor in self.params.items()
        }
        tied, pull = "W_enc" not in self.params, np.zeros((self._kernels.BLOCKS, centred.shape[1]), np.float32)
        self._kernels.update(
            (centred, values, out.error, out.codes, *ordered), tuple(added),
            (moving["W_dec"], moving["W_dec" if tied else "W_enc"], moving["b_enc"]),
            self.rows.numpy(), pull, tied, self.unit, tuple(map(np.float32, (rate, root, b1, b2))),
        )  # fmt: skip
        if "b_dec" in moving:
            first, second = (states["b_dec"][moment] for moment in MOMENTS)
            gradient = torch.from_numpy(out.error).sum(0) - torch.from_numpy(pull).sum(0)
            first.lerp_(gradient, 1 - b1)
            second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            self.params["b_dec"].addcdiv_(first, second.sqrt().mul_(root).add_(1e-8), value=-rate)


def _packed(counts: NDArray, features: NDArray, values: NDArray) -> ActiveCodes:
    """Codes whose rows have as many slots each; those to spare are left out."""
    k = len(values) // len(counts)
    if counts.sum() < len(values):
        used = (np.arange(k)[None] < counts[:, None]).reshape(-1)
        features, values = features[used], values[used]
    return ActiveCodes(np.cumsum(counts) - counts, counts, features, values)
