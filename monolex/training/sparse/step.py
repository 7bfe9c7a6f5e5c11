"""A training step of one member by its active codes: one product for the encoder, the rest costs by active codes.

Gives what ``loss.backward()`` on :func:`monolex.training.losses.member_loss` gives, which the tests hold it against.
Three ways do the parts: :class:`~monolex.training.sparse.compiled.Compiled` (numba) on CPUs and
:class:`~monolex.training.sparse.fused.Fused` (Triton) on GPUs, with Adam and the unit rows in them, and
:class:`~monolex.training.sparse.operators.Operators` anywhere, which leaves gradients. A ReLU whose codes are many
takes five products instead, step by step as it is; a Gated then leaves the step to autograd. LISTA's refinement is
:mod:`~monolex.training.sparse.refine`, matching pursuit :mod:`~monolex.training.sparse.pursuit`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.kinds import KINDS, THRESHOLDED
from monolex.products import by_rows
from monolex.training.losses import BANDWIDTH
from monolex.training.members import SweepMember
from monolex.training.optim import BETAS, MOMENTS
from monolex.training.records import Loss, StepBatch, StepSettings
from monolex.training.sparse import across
from monolex.training.sparse.across import Across, among_largest, cut_listed, gathered, kept_codes
from monolex.training.sparse.available import Parts
from monolex.training.sparse.codes import ActiveCodes, AddedGradients, BatchErrors, Passed, Weights, no_codes
from monolex.training.sparse.operators import rows_of
from monolex.training.sparse.penalty import penalty
from monolex.training.sparse.pursuit import by_turns, distinct, pursued
from monolex.training.sparse.refine import FirstCodes, add_codes, first_codes, with_first
from monolex.training.steps import centred_input, free_rows, keep_largest, left_to_codes, unit

SHARED = frozenset({"l1", "p-anneal", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "lista"})
"""The losses of which ranks can have a part each."""
LOSSES = SHARED | {"pursuit"}
"""Those that a sparse step computes; others are left to autograd."""


class Slopes(NamedTuple):
    """What a batch says of a member's parameters, before it is summed by feature."""

    out: BatchErrors
    """``slopes`` are those by every listed code's pre-activation."""
    total: Tensor
    """The loss but for AuxK."""
    aux: Tensor
    """The auxiliary loss, of the kinds that have one of their own."""
    vectors: dict[str, Tensor]
    """Gradients of parameters with a number a feature, where they are no sum of ``out.slopes``."""


class SparseStep:
    """Steps of one member, in ``parts`` that take Adam's step too (``params`` and their moments in ``adam`` change in
    place), or that leave ``grad`` in ``params``.

    Among ``ranks``, ``params`` hold the features that are owned, and every rank is given whole batches.
    """

    def __init__(
        self,
        member: SweepMember,
        params: Mapping[str, Tensor],
        adam: torch.optim.Adam,
        *,
        unit_rows: bool,
        decoder_rate: float,
        bf16: bool,
        parts: Parts,
        ranks: Across = Across(),  # noqa: B008 (immutable)
    ) -> None:
        self.member, self.params, self.bf16, self._ranks = member, params, bf16, ranks
        owned = ranks.owned or range(member.d_sae)
        self._n = len(owned)
        self._state = adam.state
        self._parts = parts(self._state)
        self._now = 0.0, 0
        if self._parts.adam:
            for tensor in params.values():  # as Adam itself begins
                if tensor.requires_grad:
                    moments = {moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS}
                    self._state[tensor] = {"step": torch.zeros((), device=tensor.device), **moments}
        self._ends = tuple(min(max(end - owned.start, 0), len(owned)) for end in member.prefixes or (member.d_sae,))
        self._prefixes = torch.tensor(self._ends, device=params["W_dec"].device)
        self._unit, self._free, self._decoder_rate = unit_rows, free_rows(member), decoder_rate
        self._as_stored = unit_rows or self._free or not params["W_dec"].requires_grad

    @torch.no_grad()
    def step(self, batch: StepBatch, lr: float, settings: StepSettings, number: int) -> Loss | None:
        """The step ``number`` of Adam, from 1, at the rate ``lr``; None leaves it, undone, to autograd."""
        self._now = lr, number
        params, kind = self.params, KINDS[self.member.kind]
        rows = params["W_dec"].detach() if self._as_stored else unit(params["W_dec"].detach())
        weights = Weights(params, rows, self._prefixes, self._ends, self._unit, self._free, self._decoder_rate)
        centred = centred_input(params, batch.x).detach().contiguous()
        alike = batch.y is batch.x and "centre" not in params
        target = centred if alike else left_to_codes(params, centred, batch.y).detach().contiguous()
        pre = self._encode(self._ranks.part(centred), rows)
        first, read = None, centred
        if kind.loss == "lista":
            first, pre = self._refined(pre, centred, weights, settings.k)
            read = first.left
        listed = self._choose(pre, rows, settings)
        if listed is None:
            return None if kind.loss == "gated" else self._by_products(pre, centred, target, settings, weights)
        decoded = [self._decode(target, weights, self._codes(listed))]
        if kind.loss == "gated":  # gates are decoded once more
            decoded.append(self._decode(target, weights, listed))
        # from here on of all rows of the batch
        listed, decoded = gathered(listed, decoded, self._ranks.rows)
        codes = self._codes(listed)
        slopes = self._slopes(listed, codes, decoded, settings)
        aux, added, by_dead = self._auxk(pre, read, slopes.out, settings, rows)
        passed = Passed(read, codes, slopes.out, added)
        if kind.loss == "pursuit":
            passed = by_turns(passed, rows)
        if first is not None:
            by_dead = torch.cat(self._ranks.rows.alike(by_dead))
            passed = with_first(passed, first, centred, by_dead, self._parts, weights, self._ranks.features)
        self._move(passed, slopes.out.error[0], weights, slopes.vectors)
        active = codes.values > 0
        many = distinct(codes, self._n) if kind.loss == "pursuit" else active.sum()
        l1, count = self._ranks.features.sum(torch.stack([codes.values.sum(), many]))
        size = len(centred)
        parts = {
            "mse": _mean(slopes.out.squares[-1], slopes.out),
            "l1": l1 / size,
            "l0": count / size,
            "aux": slopes.aux if settings.revival is None else aux,
        }
        fired = torch.zeros(self._n, dtype=torch.bool, device=pre.device)
        fired[codes.features[active]] = True
        total = slopes.total + (0.0 if settings.revival is None else settings.revival.weight * aux)
        threshold = None
        if kind.activation in THRESHOLDED:
            nothing = total.new_full((1,), torch.inf)
            smallest = torch.cat([codes.values.where(active, torch.inf), nothing]).min()
            threshold = self._ranks.features.least(smallest)
        return Loss(total, parts, fired, threshold)

    def _encode(self, centred: Tensor, rows: Tensor) -> Tensor:
        weights, bias = self.params.get("W_enc", rows).detach(), self.params["b_enc"].detach()
        if self.bf16:
            return by_rows(centred.bfloat16(), weights.bfloat16(), bias.bfloat16())
        return by_rows(centred, weights, bias)

    def _refined(self, pre: Tensor, centred: Tensor, weights: Weights, k: int) -> tuple[FirstCodes, Tensor]:
        """LISTA: the codes of a TopK and what they leave, of all rows; pre-activations of this part that know it."""
        codes, group = self._largest_of_rows(pre, k), self._ranks.rows
        first = first_codes(codes, self._decode(centred, weights, codes))
        pre = add_codes(self._encode(first.left, weights.rows), codes)
        return FirstCodes(gathered(codes, [], group)[0], torch.cat(group.alike(first.left))), pre

    def _choose(self, pre: Tensor, rows: Tensor, settings: StepSettings) -> ActiveCodes | None:
        """Pre-activations that are active or have a say in what is; None where a ReLU's are too many."""
        loss = KINDS[self.member.kind].loss
        if loss == "topk":
            return self._largest_of_rows(pre, settings.k)
        if loss == "pursuit":
            return pursued(pre, rows, min(settings.k, self._n))
        if loss == "jumprelu":
            return self._parts.above(pre, self.params["log_threshold"].detach().exp() * (1 - BANDWIDTH / 2))
        return self._positive(pre) if self.member.k is None else self._largest_of_batch(pre, settings.k)

    def _largest_of_rows(self, pre: Tensor, k: int) -> ActiveCodes:
        codes = self._parts.largest_of_rows(pre, min(k, self._n))
        if self._ranks.features.size == 1:
            return codes
        rows = rows_of(codes)
        slots = torch.arange(len(rows), device=pre.device) - codes.starts[rows]
        table = torch.zeros(len(pre), k, device=pre.device)
        table[rows, slots] = codes.values
        kept = among_largest(table, k, self._ranks.features)[rows, slots]
        return kept_codes(codes, kept & (codes.values > 0))

    def _largest_of_batch(self, pre: Tensor, k: int) -> ActiveCodes:
        ranks = self._ranks
        if ranks.alone:
            listed = self._parts.largest_of_batch(pre, k)
            assert listed is not None, "only a ReLU's are too many"
            return listed
        share = -(-k // ranks.features.size)
        while True:
            # twice what an even share would be; where the cut is not above the smallest, there could be more
            share = min(2 * share, self._n)
            listed = self._parts.largest_of_batch(pre, share)
            assert listed is not None, "only a ReLU's are too many"
            kept, cut = cut_listed(listed, k * len(pre) * ranks.rows.size, ranks.every)
            whole = share == self._n or len(listed.values) < share * len(pre)
            short = cut.new_zeros(()) if whole else (listed.values.min() >= cut).float()
            if not bool(ranks.every.greatest(short)):
                return kept

    def _positive(self, pre: Tensor) -> ActiveCodes | None:
        listed = self._parts.largest_of_batch(pre, None)
        if self._ranks.alone:
            return listed
        many = self._ranks.every.greatest(torch.tensor(float(listed is None), device=pre.device))
        if bool(many) and KINDS[self.member.kind].loss == "gated":
            # autograd knows of no ranks
            return self._parts.above(pre, torch.full((self._n,), torch.finfo(torch.float32).tiny, device=pre.device))
        return None if bool(many) else listed

    def _decode(self, target: Tensor, weights: Weights, codes: ActiveCodes) -> BatchErrors:
        """Errors of this rank's part of the batch."""
        part = self._ranks.part(target)
        if self._ranks.features.size == 1:
            return self._parts.decode(part, weights, codes)
        return across.decode(self._parts, part, weights, codes, self._ranks.features)

    def _codes(self, listed: ActiveCodes) -> ActiveCodes:
        """The codes of listed pre-activations."""
        if "log_threshold" in self.params:
            return listed._replace(values=listed.values * (listed.values > self._of("log_threshold", listed, exp=True)))
        if "r_mag" in self.params:
            shared = listed.values - self._of("b_enc", listed)
            magnitude = shared * self._of("r_mag", listed, exp=True) + self._of("b_mag", listed)
            return listed._replace(values=magnitude.relu_())
        return listed

    def _of(self, name: str, codes: ActiveCodes, *, exp: bool = False) -> Float[Tensor, "listed"]:
        """A parameter of the feature of every code."""
        vector = self.params[name].detach()
        return (vector.exp() if exp else vector)[codes.features]

    def _slopes(
        self, listed: ActiveCodes, codes: ActiveCodes, decoded: Sequence[BatchErrors], settings: StepSettings
    ) -> Slopes:
        """Slopes of the kind's loss by the errors of what was decoded."""
        out = decoded[0]
        total = _mean(out.squares, out) / len(out.squares)
        nothing, size = torch.zeros_like(total), out.error.shape[1]
        if "log_threshold" in self.params:
            assert settings.pressure is not None
            threshold, active = self._of("log_threshold", listed, exp=True), codes.values > 0
            inside = (listed.values - threshold).abs_() < BANDWIDTH / 2 * threshold
            slope = (out.slopes * threshold).add_(settings.pressure / size).mul_(inside).div_(-BANDWIDTH)
            total = total + settings.pressure * self._ranks.features.sum(active.sum()) / size
            vectors = {"log_threshold": self._by_feature(codes, slope)}
            return Slopes(out._replace(slopes=out.slopes * active), total, nothing, vectors)
        if "r_mag" in self.params:
            return self._gated(listed, codes, *decoded)
        if self.member.alpha is None:
            # a listed code of 0 is no active one
            return Slopes(out._replace(slopes=out.slopes * (codes.values > 0)), total, nothing, {})
        slopes, added = penalty(codes.values, self.member, settings, size, self._ranks.features)
        return Slopes(out._replace(slopes=out.slopes + slopes), total + added, nothing, {})

    def _gated(self, listed: ActiveCodes, codes: ActiveCodes, out: BatchErrors, alone: BatchErrors) -> Slopes:
        """Of magnitudes that are decoded and gates that are decoded once more, beside their L1."""
        assert self.member.alpha is not None
        size = out.error.shape[1]
        aux, l1 = _mean(alone.squares, alone), self._ranks.features.sum(listed.values.sum()) / size
        by_gate = alone.slopes + self.member.alpha / size
        by_magnitude = out.slopes * (codes.values > 0)
        factor, shared = self._of("r_mag", listed, exp=True), listed.values - self._of("b_enc", listed)
        vectors = {
            "b_enc": self._by_feature(codes, by_gate),
            "b_mag": self._by_feature(codes, by_magnitude),
            "r_mag": self._by_feature(codes, by_magnitude * factor * shared),
        }
        total = _mean(out.squares, out) + self.member.alpha * l1 + aux
        return Slopes(out._replace(slopes=by_gate + by_magnitude * factor), total, aux, vectors)

    def _by_feature(self, codes: ActiveCodes, numbers: Tensor) -> Float[Tensor, "d_sae"]:
        return torch.bincount(codes.features, numbers, self._n).to(numbers.dtype)

    def _by_products(
        self, pre: Tensor, centred: Tensor, target: Tensor, settings: StepSettings, weights: Weights
    ) -> Loss:
        """A ReLU's step by matrix products: the reconstruction in float32, the others as its pre-activations."""
        ranks, size = self._ranks, len(centred)
        every = torch.arange(self._n, device=pre.device)
        codes, rows = pre.relu_(), weights.rows.to(pre.dtype)
        exact = codes.float()  # sums of bf16 are slow, and read this
        # a small error is the difference of large numbers: in bf16 it would be about their rounding
        error = ranks.features.sum(by_rows(exact, weights.rows.T)).sub_(ranks.part(target))
        squares = ranks.rows.sum(error.square().sum())
        error *= 2 / target.numel()
        small, active = error.to(pre.dtype), codes > 0
        slopes, pressed = penalty(exact, self.member, settings, size, ranks.every)
        by_code = (small @ rows.T).add_(slopes).mul_(active)
        read = ranks.part(centred).to(pre.dtype)
        sums = (codes.T @ small, by_code.T @ read, (by_code.new_ones(1, len(pre)) @ by_code)[0])
        added = AddedGradients(every, *self._over_rows(*(part.float() for part in sums)))
        empty, whole = centred.new_zeros(0), torch.cat(ranks.rows.alike(error))
        out = BatchErrors(whole[None], empty, empty[None])
        self._move(Passed(centred, no_codes(centred), out, added), whole, weights, {})
        l1, count = ranks.every.sum(torch.stack([exact.sum(), active.sum()]))
        mse, fired = squares / target.numel(), ranks.rows.greatest((exact.amax(0) > 0).to(torch.uint8))
        parts = {"mse": mse, "l1": l1 / size, "l0": count / size, "aux": torch.zeros_like(mse)}
        return Loss(mse + pressed, parts, fired.bool())

    def _over_rows(self, *sums: Tensor) -> Sequence[Tensor]:
        """Sums over this rank's part of a batch as those over all of it: one exchange."""
        if self._ranks.rows.size == 1:
            return sums
        flat = self._ranks.rows.sum(torch.cat([part.flatten() for part in sums]))
        return [part.view_as(like) for part, like in zip(flat.split([s.numel() for s in sums]), sums, strict=True)]

    def _auxk(
        self, pre: Tensor, read: Tensor, out: BatchErrors, settings: StepSettings, rows: Tensor
    ) -> tuple[Tensor, AddedGradients, Tensor]:
        """The auxiliary loss, the gradients of the dead features by it, and the slopes by their pre-activations.

        ``read`` is what the encoder made ``pre`` of.
        """
        revival, (prefixes, _, d_out), d_in = settings.revival, out.error.shape, read.shape[1]
        none_dead = torch.zeros(0, dtype=torch.int64, device=pre.device)
        dead = none_dead if revival is None else revival.dead.nonzero()[:, 0]
        if revival is None or (len(dead) == 0 and self._ranks.features.size == 1):
            nothing = AddedGradients(dead, read.new_zeros(0, d_out), read.new_zeros(0, d_in), read.new_zeros(0))
            return read.new_zeros(()), nothing, read.new_zeros(len(pre), 0)
        ranks, width = self._ranks, max(1, min(d_out // 2, self.member.d_sae))
        chosen = pre[:, dead].float()
        codes = self._largest_dead(chosen, width)
        directions, whole = rows[dead], out.error[-1]
        # the error is 2 / (batch · d_out · prefixes) times x̂ - x
        left = ranks.part(whole) * (whole.numel() * prefixes / 2 if ranks.features.first else 0.0)
        missed = ranks.features.sum(torch.addmm(left, codes, directions))
        any_dead = ranks.features.greatest(revival.dead.any().to(missed.dtype))
        loss = any_dead * ranks.rows.sum(missed.square().sum()) / whole.numel()
        missed *= 2 * revival.weight / whole.numel()
        by_code = (missed @ directions.T).mul_(codes > 0)
        sums = self._over_rows(codes.T @ missed, by_code.T @ ranks.part(read), by_code.sum(0))
        return loss, AddedGradients(dead, *sums), by_code

    def _largest_dead(self, chosen: Float[Tensor, "part dead"], width: int) -> Float[Tensor, "part dead"]:
        """ReLU of the ``width`` largest of a row among the dead features of all ranks."""
        features = self._ranks.features
        if features.size == 1:
            return keep_largest(chosen, width) if chosen.shape[1] > width else chosen.relu()
        most = min(width, chosen.shape[1])
        values, places = chosen.topk(most, dim=1)
        table = torch.zeros(len(chosen), width, device=chosen.device)
        table[:, :most] = values.relu()
        kept = table.mul_(among_largest(table, width, features))[:, :most]
        return torch.zeros_like(chosen).scatter_(1, places, kept)

    def _move(self, passed: Passed, whole: Tensor, weights: Weights, vectors: Mapping[str, Tensor]) -> None:
        """Give all parameters their gradients, or the step that follows from them; ``whole`` is what the decoder's bias
        and a skip learn from."""
        by = self._next_step() if self._parts.adam else None
        moved = self._parts.move(passed, weights, by)
        gradients = {"b_enc": moved.pre, **vectors}
        if "b_dec" in self.params:
            gradients["b_dec"] = whole.sum(0)
            if "centre" not in self.params:
                gradients["b_dec"] = gradients["b_dec"] - self._ranks.features.sum(moved.pull)
        if "W_skip" in self.params:
            gradients["W_skip"] = whole.T @ passed.centred
        for name, gradient in gradients.items():
            if not self.params[name].requires_grad:
                continue
            if by is None:
                self.params[name].grad = gradient
            else:
                _adam(self.params[name], gradient, self._state[self.params[name]], by)

    def _next_step(self) -> tuple[float, float, float, float]:
        """Count the step; its rate, the factor of the root of the second moments, and the betas."""
        # its number is given, for what is on a device is not read by the host
        for tensor in self.params.values():
            if tensor.requires_grad:
                self._state[tensor]["step"] += 1
        (lr, number), (b1, b2) = self._now, BETAS
        return lr / (1 - b1**number), (1 - b2**number) ** -0.5, b1, b2


def _adam(parameter: Tensor, gradient: Tensor, state: Mapping[str, Tensor], by: tuple[float, ...]) -> None:
    rate, root, b1, b2 = by
    first, second = (state[moment] for moment in MOMENTS)
    first.lerp_(gradient, 1 - b1)
    second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    parameter.addcdiv_(first, second.sqrt().mul_(root).add_(1e-8), value=-rate)


def _mean(squares: Float[Tensor, "*prefixes batch"], out: BatchErrors) -> Float[Tensor, ""]:
    """Mean over all entries of a batch, from sums over the dimensions of every row; summed over prefixes."""
    return (squares.double().sum() / out.error[0].numel()).to(out.error.dtype)
