"""A training step of one member with the compiled kernels: one product for the encoder, the rest by active codes.

Does what ``loss.backward()`` on :func:`monolex.training.losses.member_loss`, Adam and the unit rows do, which the tests
hold it against. Parameters and Adam's moments are torch's own tensors, changed in place. A ReLU whose codes are many
takes five products instead, step by step as it is; a Gated then leaves the step to autograd.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.kinds import KINDS
from monolex.training.compiled import choose
from monolex.training.compiled.codes import ActiveCodes, AddedGradients, BatchErrors, SortedCodes
from monolex.training.losses import BANDWIDTH, LEAST, SOFTENING
from monolex.training.members import SweepMember
from monolex.training.optim import BETAS
from monolex.training.records import Loss, StepBatch, StepSettings
from monolex.training.resample import MOMENTS
from monolex.training.steps import centred_input, free_rows, keep_largest, left_to_codes, unit

COMPILED = frozenset({"l1", "p-anneal", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"})
"""Losses that a compiled step computes; others are left to autograd."""


class Gradients(NamedTuple):
    """What a batch says of a member's parameters, before it is summed by feature."""

    out: BatchErrors
    """``codes`` are the slopes by every listed code's pre-activation."""
    total: Tensor
    """The loss but for AuxK."""
    aux: Tensor
    """The auxiliary loss, of the kinds that have one of their own."""
    vectors: dict[str, Tensor]
    """Gradients of parameters with a number a feature, where they are no sum of ``out.codes``."""


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
            if tensor.requires_grad:
                zeros = (torch.zeros_like(tensor, requires_grad=False) for _ in range(2))
                self._state[tensor] = {"step": torch.zeros(()), **dict(zip(MOMENTS, zeros, strict=True))}
        self._ends = np.zeros(member.d_sae + 1, np.int64)
        self._prefixes = np.array(member.prefixes or (member.d_sae,), np.int64)
        tied, moves = "W_enc" not in params, params["W_dec"].requires_grad
        moves_encoder = not tied and params["W_enc"].requires_grad
        self._switches = (tied, unit_rows, free_rows(member), moves, moves_encoder)
        self._as_stored = unit_rows or free_rows(member) or not moves

    @torch.no_grad()
    def step(self, batch: StepBatch, lr: float, settings: StepSettings) -> Loss | None:
        """One step at the rate ``lr``; None leaves it, undone, to autograd."""
        params, kind = self.params, KINDS[self.member.kind]
        self._kernels.use_threads(torch.get_num_threads())
        self.rows = params["W_dec"].detach() if self._as_stored else unit(params["W_dec"].detach())
        centred = centred_input(params, batch.x).detach().contiguous()
        alike = batch.y is batch.x and "centre" not in params
        target = centred if alike else left_to_codes(params, centred, batch.y).detach().contiguous()
        pre = self._encode(centred)
        listed = self._choose(pre, settings)
        if listed is None:
            return None if kind.loss == "gated" else self._by_products(pre, centred, target, lr, settings)
        codes = self._codes(listed)
        gradients = self._gradients(target, listed, codes, settings)
        ordered = SortedCodes(self._ends, *(np.empty(len(codes.values), np.int32) for _ in range(2)))
        self._kernels.by_feature(tuple(codes), tuple(ordered))
        aux, added = self._auxk(pre, centred, gradients.out, settings)
        self._update(centred, codes.values, gradients, ordered, added, lr)
        rows, active = len(pre), codes.values > 0
        values, count = torch.from_numpy(codes.values), int(active.sum())
        smallest = values.min() if count else torch.tensor(torch.inf)
        parts = {
            "mse": _mean(gradients.out.squares[-1], target),
            "l1": values.sum() / rows,
            "l0": torch.tensor(count / rows, dtype=torch.float32),
            "aux": gradients.aux if settings.revival is None else aux,
        }
        fired = np.diff(self._ends) > 0
        if count < len(active):
            fired = np.bincount(codes.features[active], minlength=self.member.d_sae) > 0
        total = gradients.total + (0.0 if settings.revival is None else settings.revival.weight * aux)
        threshold = smallest if kind.activation == "threshold" else None
        return Loss(total, parts, torch.from_numpy(fired), threshold)

    def _encode(self, centred: Tensor) -> Tensor:
        weights, bias = self.params.get("W_enc", self.rows).detach(), self.params["b_enc"].detach()
        if self.bf16:
            return torch.addmm(bias.bfloat16(), centred.bfloat16(), weights.bfloat16().T)
        return torch.addmm(bias, centred, weights.T)

    def _choose(self, pre: Tensor, settings: StepSettings) -> ActiveCodes | None:
        """Pre-activations that are active or have a say in what is; None where a ReLU's are too many."""
        loss = KINDS[self.member.kind].loss
        if loss == "topk":
            return choose.largest_of_rows(self._kernels, pre, settings.k)
        if loss == "jumprelu":
            lowest = self.params["log_threshold"].detach().exp() * (1 - BANDWIDTH / 2)
            return choose.above(self._kernels, pre, lowest.numpy())
        return choose.largest_of_batch(self._kernels, pre, None if self.member.k is None else settings.k)

    def _codes(self, listed: ActiveCodes) -> ActiveCodes:
        """The codes of listed pre-activations."""
        if "log_threshold" in self.params:
            active = listed.values > self._of("log_threshold", listed, exp=True)
            return listed._replace(values=listed.values * active)
        if "r_mag" in self.params:
            shared = listed.values - self._of("b_enc", listed)
            magnitude = shared * self._of("r_mag", listed, exp=True) + self._of("b_mag", listed)
            return listed._replace(values=np.maximum(magnitude, 0))
        return listed

    def _of(self, name: str, codes: ActiveCodes, *, exp: bool = False) -> NDArray[np.float32]:
        """A parameter of the feature of every code."""
        vector = self.params[name].detach()
        return (vector.exp() if exp else vector).numpy()[codes.features]

    def _gradients(self, target: Tensor, listed: ActiveCodes, codes: ActiveCodes, settings: StepSettings) -> Gradients:
        """Errors and slopes of the kind's loss."""
        out = self._decode(target, codes)
        total = torch.stack([_mean(squares, target) for squares in out.squares]).mean()
        nothing, rows = torch.zeros(()), len(target)
        if "log_threshold" in self.params:
            assert settings.pressure is not None
            pressure, threshold = float(settings.pressure), self._of("log_threshold", listed, exp=True)
            inside = np.abs(listed.values - threshold) < BANDWIDTH / 2 * threshold
            slope = inside * (out.codes * threshold + np.float32(pressure / rows)) / np.float32(-BANDWIDTH)
            np.multiply(out.codes, codes.values > 0, out=out.codes)
            total = total + settings.pressure * (int((codes.values > 0).sum()) / rows)
            return Gradients(out, total, nothing, {"log_threshold": self._by_feature(codes, slope)})
        if "r_mag" in self.params:
            return self._gated(target, listed, codes, out, total)
        if self.member.alpha is not None:
            slopes, penalty = self._penalty(torch.from_numpy(codes.values), len(codes.values), rows, settings)
            out.codes[:] += slopes.numpy()
            total = total + penalty
        return Gradients(out, total, nothing, {})

    def _gated(
        self, target: Tensor, listed: ActiveCodes, codes: ActiveCodes, out: BatchErrors, mse: Tensor
    ) -> Gradients:
        """Of magnitudes that are decoded and gates that are decoded once more, beside their L1."""
        assert self.member.alpha is not None
        alone = self._decode(target, listed)
        aux, l1 = _mean(alone.squares[0], target), float(listed.values.sum(dtype=np.float64)) / len(target)
        by_gate = alone.codes + np.float32(self.member.alpha / len(target))
        by_magnitude = out.codes * (codes.values > 0)
        factor, shared = self._of("r_mag", listed, exp=True), listed.values - self._of("b_enc", listed)
        vectors = {
            "b_enc": self._by_feature(codes, by_gate),
            "b_mag": self._by_feature(codes, by_magnitude),
            "r_mag": self._by_feature(codes, by_magnitude * factor * shared),
        }
        slopes = out._replace(codes=by_gate + by_magnitude * factor)
        return Gradients(slopes, mse + self.member.alpha * l1 + aux, aux, vectors)

    def _by_feature(self, codes: ActiveCodes, numbers: NDArray) -> Tensor:
        return torch.from_numpy(np.bincount(codes.features, numbers, self.member.d_sae).astype(np.float32))

    def _decode(self, target: Tensor, codes: ActiveCodes) -> BatchErrors:
        rows, prefixes = len(target), len(self._prefixes)
        out = BatchErrors(
            np.empty((prefixes, *target.shape), np.float32),
            np.empty(len(codes.values), np.float32),
            np.empty((prefixes, rows), np.float32),
        )
        weights = self.rows.numpy()
        if prefixes > 1:
            self._kernels.decode_nested(target.numpy(), weights, tuple(codes), self._prefixes, tuple(out))
        else:
            self._kernels.decode(target.numpy(), weights, tuple(codes), tuple(out))
        return out

    def _penalty(self, codes: Tensor, active: Tensor | int, rows: int, settings: StepSettings) -> tuple[Tensor, Tensor]:
        """What the L1 of the codes, annealed or not, adds to the slope of every active one, and to the loss."""
        assert self.member.alpha is not None
        coefficient, l1 = self.member.alpha / rows, codes.sum(dtype=torch.float32)
        if KINDS[self.member.kind].loss != "p-anneal":
            return torch.full((), coefficient), coefficient * l1
        count = torch.as_tensor(active, dtype=torch.float32)
        softened = codes.float() + (SOFTENING * l1 / count.clamp_min(1)).clamp_min(1e-30)
        mask = codes > 0
        powers = (softened ** (settings.p - 1)).mul_(mask)
        size = (softened * mask).sum()
        rescaled = size / (powers * softened).sum().clamp_min(LEAST)
        return powers.mul_(coefficient * settings.p * rescaled), coefficient * size

    def _by_products(self, pre: Tensor, centred: Tensor, target: Tensor, lr: float, settings: StepSettings) -> Loss:
        """A ReLU's step by matrix products: the reconstruction in float32, the others as its pre-activations."""
        batch, n = len(pre), self.member.d_sae
        codes, rows = pre.relu_(), self.rows.to(pre.dtype)
        # a small error is the difference of large numbers: in bf16 it would be about their rounding
        error = torch.addmm(target, codes.float(), self.rows, beta=-1)
        mse = error.square().mean()
        error *= 2 / error.numel()
        small, active = error.to(pre.dtype), codes > 0
        slopes, penalty = self._penalty(codes, active.sum(), batch, settings)
        by_code = (small @ rows.T).add_(slopes).mul_(active)
        sums = (codes.T @ small, by_code.T @ centred.to(pre.dtype), by_code.sum(0, dtype=torch.float32))
        added = AddedGradients(np.arange(n, dtype=np.int32), *(part.float().numpy() for part in sums))
        nothing = np.zeros(0, np.float32)
        self._ends[:] = 0
        ordered = SortedCodes(self._ends, np.zeros(0, np.int32), np.zeros(0, np.int32))
        out = BatchErrors(error.numpy()[None], nothing, nothing[None])
        self._update(centred, nothing, Gradients(out, mse, torch.zeros(()), {}), ordered, added, lr)
        l1, l0 = codes.sum(dtype=torch.float32) / batch, active.sum() / batch
        parts = {"mse": mse, "l1": l1, "l0": l0, "aux": torch.zeros(())}
        return Loss(mse + penalty, parts, active.any(0))

    def _auxk(
        self, pre: Tensor, centred: Tensor, out: BatchErrors, settings: StepSettings
    ) -> tuple[Tensor, AddedGradients]:
        """The auxiliary loss, and the gradients of the dead features by it."""
        revival, (prefixes, _, d_out) = settings.revival, out.error.shape
        number = np.full(self.member.d_sae, -1, np.int32)
        if revival is None or not bool(revival.dead.any()):
            nothing = (np.zeros((0, d_out), np.float32), np.zeros((0, centred.shape[1]), np.float32))
            return torch.zeros(()), AddedGradients(number, *nothing, np.zeros(0, np.float32))
        dead = revival.dead.nonzero()[:, 0]
        number[dead.numpy()] = np.arange(len(dead), dtype=np.int32)
        width = max(1, min(d_out // 2, pre.shape[1]))
        chosen = pre[:, dead].float()
        codes = keep_largest(chosen, width) if len(dead) > width else chosen.relu()
        rows, whole = self.rows[dead], torch.from_numpy(out.error[-1])
        # the error is 2 / (batch · d_out · prefixes) times x̂ - x
        missed = torch.addmm(whole * (whole.numel() * prefixes / 2), codes, rows)
        loss = missed.square().mean()
        missed *= 2 * revival.weight / whole.numel()
        by_code = (missed @ rows.T).mul_(codes > 0)
        gradients = (codes.T @ missed, by_code.T @ centred, by_code.sum(0))
        return loss, AddedGradients(number, *(gradient.numpy() for gradient in gradients))

    def _update(
        self,
        centred: Tensor,
        values: NDArray,
        gradients: Gradients,
        ordered: SortedCodes,
        added: AddedGradients,
        lr: float,
    ) -> None:
        states = {name: self._state[tensor] for name, tensor in self.params.items() if tensor.requires_grad}
        for state in states.values():
            state["step"] += 1
        steps, (b1, b2) = float(states["b_enc"]["step"]), BETAS
        by = (lr / (1 - b1**steps), (1 - b2**steps) ** -0.5, b1, b2)
        still = np.zeros((0, 0), np.float32)
        moving = {
            name: (self.params[name].detach().numpy(), *(states[name][m].numpy() for m in MOMENTS))
            if name in states
            else (self.params[name].numpy(), still, still)
            for name in ("W_dec", "W_enc")
            if name in self.params
        }
        pre, pull = (
            np.empty(self.member.d_sae, np.float32),
            np.zeros((self._kernels.BLOCKS, centred.shape[1]), np.float32),
        )
        out = gradients.out
        self._kernels.update(
            (centred.numpy(), values, out.error, out.codes, *ordered), tuple(added),
            (moving["W_dec"], moving.get("W_enc", moving["W_dec"])), self.rows.numpy(), self._prefixes, (pre, pull),
            self._switches, tuple(map(np.float32, by)),
        )  # fmt: skip
        whole = torch.from_numpy(out.error[0])
        vectors = {"b_enc": torch.from_numpy(pre), **gradients.vectors}
        if "b_dec" in self.params:
            vectors["b_dec"] = whole.sum(0)
            if "centre" not in self.params:
                vectors["b_dec"] -= torch.from_numpy(pull).sum(0)
        if "W_skip" in self.params:
            vectors["W_skip"] = whole.T @ centred
        for name, gradient in vectors.items():
            _adam(self.params[name], gradient, states[name], by)


def _adam(parameter: Tensor, gradient: Tensor, state: Mapping[str, Tensor], by: tuple[float, ...]) -> None:
    rate, root, b1, b2 = by
    first, second = (state[moment] for moment in MOMENTS)
    first.lerp_(gradient, 1 - b1)
    second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    parameter.addcdiv_(first, second.sqrt().mul_(root).add_(1e-8), value=-rate)


def _mean(squares: NDArray[np.float32], target: Float[Tensor, "batch d_out"]) -> Float[Tensor, ""]:
    """Of all entries, from sums over the dimensions of every row."""
    return (torch.from_numpy(squares).double().sum() / target.numel()).float()
