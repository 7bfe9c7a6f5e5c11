"""All members of a sweep, one step at a time: parameters, Adam, counters of dead features, metrics.

Where there is a compiled step (a CPU, float32, numba) a member takes that. Else it has its own small graph over the
shared batch, and one Adam with a group per member updates them all.
Metrics gather on the device; the host reads them (and whether every loss was finite) only when it is asked to.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monolex.activations.norms import Usual, usual
from monolex.config import TrainConfig, require
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.model.precision import lacking
from monolex.training.compiled.step import CompiledStep, available
from monolex.training.members import SweepMember
from monolex.training.optim import Recipe, adam, dead_after, recipe, schedule
from monolex.training.parameters import BIASES, exported, from_dictionary, initial
from monolex.training.steps import PARTS, Loss, Revival, member_loss, unit

POWERS = {"loss": 2, "mse": 2, "l1": 1, "auxk": 2}
"""Powers of the scale that a metric carries while training."""
# The threshold's memory grows with the run, so that a short one forgets its first steps too.
LONGEST_MEMORY = 0.999


class Trainer:
    """Trains ``members`` on batches of activations by site.

    Numbers are what each member would have alone. ``dtype`` is float32 but in tests, ``start`` a dictionary that every
    member continues from, read from ``config.init``. ``usual`` says by site in which unit and around which centre
    training begins; what it leaves out is taken from the first batch.

    Raises:
        UserError: ``start`` does not match a member.
    """

    def __init__(
        self,
        members: Sequence[SweepMember],
        config: TrainConfig,
        steps: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        start: Dictionary | None = None,
        usual: Mapping[str, Usual] | None = None,
    ) -> None:
        self._usual = usual or {}
        self.members, self.config, self.steps, self.done = tuple(members), config, steps, 0
        self._device, self._dtype, self._started = torch.device(device), dtype, start is not None
        self._recipes = [recipe(config, member.kind) for member in members]
        self.params = [
            self._first(member, chosen, start) for member, chosen in zip(members, self._recipes, strict=True)
        ]
        self._adam = adam([list(params.values()) for params in self.params])
        self._compiled = self._compiled_steps()
        self._dead_after = dead_after(config, steps)
        threshold = 0.0 if start is None else start.config.threshold or 0.0
        self._threshold = torch.full((len(members),), threshold, device=device, dtype=dtype)
        past = {} if start is None else start.config.recipe
        self._before = past.get("steps_before", 0) + past.get("steps_done", 0)
        # The threshold of another k is no beginning.
        self._remembered = [self._before if start is not None and start.config.k == m.k else 0 for m in members]
        self._idle = [torch.zeros(m.d_sae, dtype=torch.int64, device=device) for m in members]
        self._sites = list(dict.fromkeys(m.site for m in members))
        self._sums = torch.zeros(len(members), 1 + len(PARTS), device=device, dtype=dtype)
        self._variance = torch.zeros(len(self._sites), device=device, dtype=dtype)
        self._scale = torch.ones(len(self._sites), device=device, dtype=dtype)
        self._read_at = 0
        self._bad_step = torch.full((len(members),), -1, dtype=torch.int64, device=device)

    @property
    def n_parameters(self) -> int:
        """Trained numbers of all members."""
        return sum(tensor.numel() for params in self.params for tensor in params.values())

    def step(self, batch: Mapping[str, Float[Tensor, "batch d_in"]]) -> None:
        """One optimiser step of every member."""
        inputs = {site: batch[site].to(self._device, self._dtype, non_blocking=True) for site in self._sites}
        if self.done == 0:
            self._begin(inputs)
        inputs = {site: inputs[site] * self._scale[number] for number, site in enumerate(self._sites)}
        for number, member in enumerate(self.members):
            x, revival, compiled = inputs[member.site], self._revival(number), self._compiled[number]
            if compiled:
                loss = compiled.step(x, self._rate(number), revival)
            else:
                loss = member_loss(self.params[number], x, member, revival)
                loss.total.backward()
            self._record(number, loss, len(x))
        for number, site in enumerate(self._sites):
            self._variance[number] += (inputs[site] - inputs[site].mean(0)).square().mean()
        self._update()
        self.done += 1

    def metrics(self) -> list[dict[str, Any]]:
        """Means since the last call, one row a member, and the count starts again; one read by the host.

        All are in the model's own units, also where training is not: ``mse`` and ``l1`` are those of the dictionary
        that would be saved, and ``loss`` is its ``loss_convention``, that is, what is minimised, divided by scale².
        ``fvu`` is the summed squared error over the summed squared distance from the batch means; ``dead`` counts the
        features that have not fired for ``dead_after`` activations (None before that many).

        Raises:
            UserError: a loss was not finite.
        """
        idle_for_long = torch.stack([(idle >= self._dead_after).sum() for idle in self._idle])
        host = torch.cat([self._sums.flatten(), self._variance, self._scale, idle_for_long, self._bad_step]).tolist()
        n, m, width, count = len(self.members), len(self._sites), 1 + len(PARTS), self.done - self._read_at
        sums, by_site, counters = host[: n * width], host[n * width : -2 * n], host[-2 * n :]
        self._require_finite([int(bad) for bad in counters[n:]])
        spread = dict(zip(self._sites, by_site[:m], strict=True))
        scales = dict(zip(self._sites, by_site[m:], strict=True))
        rows = []
        for number, member in enumerate(self.members):
            total = dict(zip(("loss", *PARTS), sums[number * width : (number + 1) * width], strict=True))
            means = {name: value / count / scales[member.site] ** POWERS.get(name, 0) for name, value in total.items()}
            fvu = total["mse"] / spread[member.site] if spread[member.site] > 0 else None
            # Before dead_after rows nothing can count as dead, which is not the same as none being dead.
            dead = int(counters[number]) if self.done * self.config.batch_size >= self._dead_after else None
            rows.append({"site": member.site, "member": member.name, **means, "fvu": fvu, "dead": dead})
        self._sums.zero_()
        self._variance.zero_()
        self._read_at = self.done
        return rows

    def verify(self) -> None:
        """Refuse to go on (or to save anything) with numbers that are not finite.

        Raises:
            UserError: names the step, the member and its learning rate.
        """
        finite = torch.stack([torch.stack([p.isfinite().all() for p in ps.values()]).all() for ps in self.params])
        bad = torch.where((self._bad_step < 0) & ~finite, self.done, self._bad_step)
        self._require_finite(bad.tolist())

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps and metrics depend on, beside the batches; loses nothing."""
        tensors = {
            "step": torch.tensor([self.done, self._read_at]),
            "threshold": self._threshold,
            "sums": self._sums,
            "variance": self._variance,
            "scale": self._scale,
        }
        for number, params in enumerate(self.params):
            tensors[f"{number}.idle"] = self._idle[number]
            for name, tensor in params.items():
                tensors[f"{number}.{name}"] = tensor.detach()
                for key, value in self._adam.state[tensor].items():
                    tensors[f"{number}.{name}.{key}"] = value
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` gave, bit by bit."""
        self.done, self._read_at = state["step"].tolist()
        self._threshold.copy_(state["threshold"])
        self._sums.copy_(state["sums"])
        self._variance.copy_(state["variance"])
        self._scale.copy_(state["scale"])
        for number, params in enumerate(self.params):
            self._idle[number].copy_(state[f"{number}.idle"])
            for name, tensor in params.items():
                tensor.copy_(state[f"{number}.{name}"])
                prefix = f"{number}.{name}."
                moments = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                self._adam.state[tensor] = {key: value.to(self._device) for key, value in moments.items()}

    def dictionaries(self, model: str = "", fingerprint: str = "") -> list[Dictionary]:
        """Every member as it is now, in order."""
        thresholds, scales = self._threshold.tolist(), dict(zip(self._sites, self._scale.tolist(), strict=True))
        dictionaries = []
        for number, (member, params) in enumerate(zip(self.members, self.params, strict=True)):
            scale = scales[member.site]
            config = self._describe(number, thresholds[number], scale, model, fingerprint)
            dictionaries.append(Dictionary(config, exported(params, scale)))
        return dictionaries

    def _first(self, member: SweepMember, chosen: Recipe, start: Dictionary | None) -> dict[str, Tensor]:
        where = str(self.config.init)
        params = initial(member, chosen) if start is None else from_dictionary(start, member, chosen, where)
        return {n: t.to(self._device, self._dtype, copy=True).requires_grad_() for n, t in params.items()}

    def _compiled_steps(self) -> list[CompiledStep | None]:
        """A compiled step for every member that can have one here."""
        wanted, missing = self.config.precision, lacking(self._device)
        compiled = self._device.type == "cpu" and self._dtype == torch.float32 and available()
        require(
            wanted != "bf16" or (compiled and not missing),
            f"precision = 'bf16' cannot be used here: {missing or 'that takes a CPU and monolex[fast]'}; give 'auto'",
        )
        if not compiled:
            return [None] * len(self.members)
        bf16 = wanted == "bf16" or (wanted == "auto" and not missing)
        triples = zip(self.members, self.params, self._recipes, strict=True)
        return [CompiledStep(m, params, self._adam, unit_rows=chosen.unit, bf16=bf16) for m, params, chosen in triples]

    @torch.no_grad()
    def _begin(self, inputs: Mapping[str, Tensor]) -> None:
        """Fix the units, bring what a dictionary to continue from has into them, and centre what begins anew."""
        known = {site: self._usual[site] if site in self._usual else usual(inputs[site]) for site in self._sites}
        if self._recipes[0].scale:
            self._scale.copy_(torch.tensor([known[site].scale for site in self._sites], dtype=self._dtype))
        scales = dict(zip(self._sites, self._scale, strict=True))
        for number, (member, params) in enumerate(zip(self.members, self.params, strict=True)):
            self._threshold[number] *= scales[member.site]
            for name in BIASES:
                if name in params:
                    params[name] *= scales[member.site]
            if "b_dec" in params and not self._started:
                params["b_dec"].copy_(known[member.site].centre * scales[member.site])

    def _revival(self, number: int) -> Revival | None:
        weight, after = self._recipes[number].auxk, self._dead_after
        # Counted on the host: before this many rows nothing can be dead, and the auxiliary loss costs nothing.
        if weight == 0 or self.done * self.config.batch_size < after:
            return None
        return Revival(weight, self._idle[number] >= after)

    @torch.no_grad()
    def _record(self, number: int, loss: Loss, rows: int) -> None:
        total = loss.total.detach()
        self._sums[number] += torch.stack([total, *(loss.parts[name] for name in PARTS)])
        first = (self._bad_step[number] < 0) & ~total.isfinite()
        self._bad_step[number].masked_fill_(first, self.done + 1)
        self._idle[number].add_(rows).masked_fill_(loss.fired, 0)
        if loss.threshold is not None:
            seen = self._remembered[number] + self.done
            memory = min(LONGEST_MEMORY, seen / (seen + 10))
            old = self._threshold[number]
            new = memory * old + (1 - memory) * loss.threshold
            self._threshold[number] = torch.where(loss.threshold.isfinite(), new, old)

    @torch.no_grad()
    def _update(self) -> None:
        """Adam and unit rows, which a compiled step has in it."""
        if all(self._compiled):
            return
        for number, group in enumerate(self._adam.param_groups):
            group["lr"] = self._rate(number)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for params, chosen in zip(self.params, self._recipes, strict=True):
            if chosen.unit:
                params["W_dec"].copy_(unit(params["W_dec"]))

    def _rate(self, number: int) -> float:
        chosen = self._recipes[number]
        return self.members[number].lr * schedule(self.done, self.steps, chosen.warmup, chosen.decay)

    def _require_finite(self, bad_steps: Sequence[int]) -> None:
        for member, step in zip(self.members, bad_steps, strict=True):
            if step >= 0:
                raise UserError(
                    f"the loss of {member.name} at {member.site} is not finite at step {step} "
                    f"(lr = {member.lr:g}); lower its learning rate or leave the member out"
                )

    def _describe(self, number: int, threshold: float, scale: float, model: str, fingerprint: str) -> DictionaryConfig:
        member, chosen, config = self.members[number], self._recipes[number], self.config
        kind = KINDS[member.kind]
        assert math.isfinite(threshold), (member, threshold)
        facts = {
            "name": member.name,
            "alpha": member.alpha,
            "ratio": member.ratio,
            "seed": member.seed,
            "lr": member.lr,
            "preset": config.preset,
            "steps": self.steps,
            "steps_done": self.done,
            "batch_size": config.batch_size,
            "rows_seen": self.done * config.batch_size,
            "data_seed": config.data_seed,
            "warmup": chosen.warmup,
            "decay": chosen.decay,
            "scale": scale,
            "auxk": chosen.auxk,
            "dead_after": self._dead_after,
            "init": config.init,
            "precision": "bf16" if (compiled := self._compiled[number]) and compiled.bf16 else "fp32",
            "steps_before": self._before,
        }
        return DictionaryConfig(
            kind=member.kind,
            activation=kind.activation,
            d_in=member.d_in,
            d_out=member.d_in,
            d_sae=member.d_sae,
            k=member.k,
            threshold=threshold / scale if kind.activation == "threshold" else None,
            site=member.site,
            model=model,
            model_fingerprint=fingerprint,
            loss_convention=kind.convention,
            recipe=facts,
        )
