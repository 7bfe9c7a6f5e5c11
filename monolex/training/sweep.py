"""All members of a sweep, one step at a time: parameters, Adam, counters of dead features, metrics.

A member goes by its active codes (:mod:`monolex.training.sparse`), in float32, of the kinds that are known there; with
numba on a CPU that updates it too. Else it has its own small graph over the shared batch. One Adam with two
groups a member updates those that were left gradients.
Metrics gather on the device; the host reads them (and whether every loss was finite) only when it is asked to.

Among ranks (:mod:`monolex.ranks.mesh`) a trainer has the members of its group, of each the features that are its own,
and is given whole batches, of which it looks at its part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.activations.norms import Usual, usual
from monolex.artifact import FileEntry
from monolex.config import require
from monolex.dictionaries.base import Dictionary, all_finite
from monolex.dictionaries.parts import save_parts
from monolex.kinds import KINDS
from monolex.model.precision import lacking
from monolex.ranks.mesh import Mesh
from monolex.ranks.shares import share
from monolex.train_config import TrainConfig
from monolex.training.describe import described
from monolex.training.losses import member_loss
from monolex.training.members import SweepMember, own_members
from monolex.training.optim import MOMENTS, Recipe, adam, dead_after, recipe, schedule, set_rate
from monolex.training.parameters import constant, exported, from_dictionary, initial, preprocessed
from monolex.training.preprocessing import Preprocessing, preprocessing
from monolex.training.records import PER_FEATURE, Loss, Revival, StepBatch, StepSettings, trained_numbers
from monolex.training.resample import SHORT, reconstructed, resample, resampling_steps
from monolex.training.sparse.across import Across, require_same
from monolex.training.sparse.available import parts_for
from monolex.training.sparse.step import LOSSES, SHARED, SparseStep
from monolex.training.sparsity import first_pressure, first_threshold, hold, k_at, p_at
from monolex.training.state import SavedState, StatePart
from monolex.training.steps import encode, free_rows, unit
from monolex.training.totals import Totals, require_finite

# The threshold's memory grows with the run, so that a short one forgets its first steps too.
LONGEST_MEMORY = 0.999


class Trainer:
    """Trains ``members`` on batches of activations by site.

    Numbers are what each member would have alone. ``dtype`` is float32 but in tests, ``start`` a dictionary that every
    member continues from, read from ``config.init``. ``usual`` says by site in which unit and around which centre
    training begins; what it leaves out is taken from the first batch. ``members`` are all of the sweep; with a
    ``mesh`` of several ranks those of this rank's group are trained here (:attr:`numbers`), and every method is called
    by all ranks.

    Raises:
        UserError: ``start`` does not match a member, or a dictionary has fewer features than ranks are to share it.
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
        mesh: Mesh = Mesh(),  # noqa: B008 (immutable)
    ) -> None:
        self._usual = usual or {}
        self._sweep, self._mesh, self._ranks = tuple(members), mesh, Across(mesh.rows, mesh.features, mesh.group)
        self.numbers = own_members(self._sweep, mesh)
        self.members = members = tuple(self._sweep[number] for number in self.numbers)
        self._owned = [mesh.owned(member.d_sae) for member in members]
        self.config, self.steps, self.done = config, steps, 0
        self._device, self._dtype, self._started = torch.device(device), dtype, start is not None
        self._recipes = [recipe(config, member.kind) for member in members]
        self.params = [
            self._first(member, chosen, start, owned)
            for member, chosen, owned in zip(members, self._recipes, self._owned, strict=True)
        ]
        self._adam = adam(self.params)
        self._unit = [
            chosen.unit and not free_rows(m) and "W_dec" not in constant(m)
            for m, chosen in zip(members, self._recipes, strict=True)
        ]
        self._sparse = self._sparse_steps()
        self._dead_after = dead_after(config, steps)
        threshold = 0.0 if start is None else start.config.threshold or 0.0
        self._threshold = torch.full((len(members),), threshold, device=device, dtype=dtype)
        past = {} if start is None else start.config.recipe
        self._before = past.get("steps_before", 0) + past.get("steps_done", 0)
        # The threshold of another k is no beginning.
        self._remembered = [self._before if start is not None and start.config.k == m.k else 0 for m in members]
        self._idle = [torch.zeros(len(owned), dtype=torch.int64, device=device) for owned in self._owned]
        self._pressure = torch.zeros(len(members), device=device, dtype=dtype)
        self._resample_after = resampling_steps(steps, config.resamplings)
        self._sites = list(dict.fromkeys(site for m in members for site in (m.site, m.written)))
        factor = torch.ones((), device=device, dtype=dtype)
        self._preprocessing = {site: Preprocessing(factor) for site in self._sites}
        self._totals = Totals(self.members, self._sites, factor)

    @property
    def n_parameters(self) -> int:
        """Trained numbers of all members of the sweep."""
        mine = sum(trained_numbers(params, shared=self._mesh.features.first) for params in self.params)
        return sum(self._mesh.every.told(mine if self._mesh.rows.first else 0))

    def step(self, batch: Mapping[str, Float[Tensor, "batch d_in"]]) -> None:
        """One optimiser step of every member."""
        raw = {site: batch[site].to(self._device, self._dtype, non_blocking=True) for site in self._sites}
        if self.done == 0 and self.members:  # a rank may have none
            self._begin(raw)
        rows = {site: self._preprocessing[site].rows(x) for site, x in raw.items()}
        if self.done == 0:
            self._begin_thresholds(rows)
        held: list[tuple[Tensor, int]] = []
        for number, member in enumerate(self.members):
            inputs, sparse = StepBatch(rows[member.site], rows[member.written]), self._sparse[number]
            settings = self._settings(number)
            loss = sparse.step(inputs, self._rate(number), settings, self.done + 1) if sparse else None
            if loss is None:
                loss = member_loss(self.params[number], inputs, member, settings)
                loss.total.backward()
            self._record(number, loss, len(inputs.x))
            held.append((loss.parts["l0"], settings.k))
        for number, site in enumerate(self._sites):
            self._totals.add_rows(number, rows[site])
        self._update()
        for number, (l0, k) in enumerate(held):
            if "log_threshold" in self.params[number]:
                hold(self.params[number]["log_threshold"].detach(), self._pressure[number], l0, k)
        self.done += 1
        if self.done in self._resample_after:
            self._resample(raw, rows)

    def metrics(self) -> list[dict[str, Any]]:
        """Means since the last call, one row a member, and the count starts again; one read by the host.

        All are in the model's own units, also where training is not, unless it whitens: ``mse`` and ``l1`` are those of
        the dictionary that would be saved, and ``loss`` is its ``loss_convention``, that is, what is minimised, divided
        by scale².
        ``fvu`` is the summed squared error over the summed squared distance from the batch means; ``dead`` counts the
        features that have not fired for ``dead_after`` activations (None before that many).

        Raises:
            UserError: a loss was not finite.
        """
        rows = self._of_all(self._own_metrics() if self.members else [])
        require_finite(self._sweep, [row.pop("bad_step") for row in rows])
        # Before dead_after rows nothing can count as dead, which is not the same as none being dead.
        known = self.done * self.config.batch_size >= self._dead_after
        return [{**row, "dead": row["dead"] if known else None} for row in rows]

    def _own_metrics(self) -> list[dict[str, Any]]:
        idle_for_long = torch.stack([(idle >= self._dead_after).sum() for idle in self._idle])
        factors = torch.stack([self._preprocessing[site].factor for site in self._sites])
        return self._totals.read(self.done, factors, self._mesh.features.sum(idle_for_long))

    def verify(self) -> None:
        """Refuse to go on (or to save anything) with numbers that are not finite.

        Raises:
            UserError: names the step, the member and its learning rate.
        """
        require_same(self.params, self._mesh.group)
        bad = self._totals.bad_step.clone()
        for number, params in enumerate(self.params):
            finite = torch.stack([all_finite(parameter) for parameter in params.values()]).all()
            bad[number].masked_fill_((bad[number] < 0) & ~finite, self.done)
        require_finite(self._sweep, self._of_all(self._mesh.group.greatest(bad).tolist()))

    def _of_all(self, of_mine: Sequence[Any]) -> list[Any]:
        """What is said of every member of the sweep, in order; every group knows of its own."""
        told = self._mesh.every.told(list(zip(self.numbers, of_mine, strict=True)) if self._mesh.group.first else [])
        return [said for _, said in sorted(pair for pairs in told for pair in pairs)]

    def state(self) -> dict[str, StatePart]:
        """Everything that the next steps and metrics depend on, beside the batches, as far as this rank keeps it."""
        parts: dict[str, StatePart] = {}
        keeps_whole = self._mesh.group.first
        for number, site in enumerate(self._sites if keeps_whole else ()):
            prepared = self._preprocessing[site]._asdict() | {"variance": self._totals.variance[number]}
            parts |= {f"{site}.{name}": StatePart(part) for name, part in prepared.items() if part is not None}
        for number, key in enumerate(self.numbers):
            if keeps_whole:
                of_member = {"threshold": self._threshold[number], "pressure": self._pressure[number]}
                of_member |= self._totals.state(number)
                parts |= {f"{key}.{name}": StatePart(tensor) for name, tensor in of_member.items()}
            for name, tensor, by_feature in self._tensors(number):
                if by_feature:
                    owned = self._owned[number]
                    mine = share(len(owned), self._mesh.rows.size, self._mesh.rows.index)
                    rows = tensor[mine.start : mine.stop]
                    parts[f"{key}.{name}"] = StatePart(rows, owned.start + mine.start, self.members[number].d_sae)
                elif keeps_whole:
                    parts[f"{key}.{name}"] = StatePart(tensor)
        return parts

    @torch.no_grad()
    def load_state(self, state: SavedState) -> None:
        """Continue from what :meth:`state` gave, bit by bit, on however many ranks it was written."""
        self.done = state.step
        for number, site in enumerate(self._sites):
            names = state.names(f"{site}.")
            parts = {name: state.tensor(f"{site}.{name}") for name in names if name in Preprocessing._fields}
            self._preprocessing[site] = Preprocessing(**parts).to(self._device)
            self._totals.variance[number].copy_(state.tensor(f"{site}.variance"))
        for number, key in enumerate(self.numbers):
            self._threshold[number].copy_(state.tensor(f"{key}.threshold"))
            self._pressure[number].copy_(state.tensor(f"{key}.pressure"))
            self._totals.load_state(number, state.tensor(f"{key}.sums"), int(state.tensor(f"{key}.read_at")))
            for tensor in self.params[number].values():
                if tensor.requires_grad:
                    nothing = {moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS}
                    self._adam.state[tensor] = {"step": torch.zeros((), device=self._device), **nothing}
            for name, tensor, by_feature in self._tensors(number):
                of_all = f"{key}.{name}"
                tensor.copy_(state.rows(of_all, self._owned[number]) if by_feature else state.tensor(of_all))

    def _tensors(self, number: int) -> Iterator[tuple[str, Tensor, bool]]:
        """What training changes of a member: names, tensors, and whether these have a row a feature."""
        yield "idle", self._idle[number], True
        for name, tensor in self.params[number].items():
            by_feature = name in PER_FEATURE
            yield name, tensor.detach(), by_feature
            for key, value in self._adam.state.get(tensor, {}).items():
                yield f"{name}.{key}", value, by_feature and value.ndim > 0

    def dictionaries(self, model: str = "", fingerprint: str = "") -> list[Dictionary]:
        """Every member of this rank as it is now, in order, with the features that are here."""
        return [self._dictionary(number, model, fingerprint) for number in range(len(self.members))]

    def save(self, folder: Path, model: str = "", fingerprint: str = "") -> dict[str, FileEntry]:
        """Write every member as it is now to ``folder/SITE/NAME/``; sizes and hashes, by path in ``folder``."""
        entries: dict[str, FileEntry] = {}
        for number, member in enumerate(self.members):
            if self._mesh.rows.first:
                path, part = folder / member.site / member.name, self._dictionary(number, model, fingerprint)
                saved = save_parts(path, part, member.d_sae, member.k, self._mesh.features)
                entries |= {(path / name).relative_to(folder).as_posix(): entry for name, entry in saved.items()}
        told = self._mesh.every.told({name: list(asdict(entry).values()) for name, entry in entries.items()})
        return {name: FileEntry(*fields) for of_rank in told for name, fields in of_rank.items()}

    def _dictionary(self, number: int, model: str = "", fingerprint: str = "") -> Dictionary:
        """A member as it is now, with the features that are here."""
        member, owned = self.members[number], self._owned[number]
        read, written = (self._preprocessing[site] for site in (member.site, member.written))
        facts = {
            "model": model, "model_fingerprint": fingerprint, "steps": self.steps, "steps_done": self.done,
            "steps_before": self._before, "dead_after": self._dead_after, "pressure": float(self._pressure[number]),
            "precision": "bf16" if (sparse := self._sparse[number]) and sparse.bf16 else "fp32",
        }  # fmt: skip
        threshold, scale = float(self._threshold[number]), float(written.factor)
        config = described(member, self._recipes[number], self.config, threshold, scale, facts)
        if self._mesh.features.size > 1:
            config = replace(config, d_sae=len(owned), k=None if member.k is None else min(member.k, len(owned)))
        return Dictionary(config, exported(self.params[number], member, read, written))

    def _first(self, member: SweepMember, chosen: Recipe, start: Dictionary | None, owned: range) -> dict[str, Tensor]:
        if start is None:
            params = initial(member, chosen, owned)
        else:
            params = from_dictionary(start, member, chosen, str(self.config.init))
            params = {n: t[owned.start : owned.stop] if n in PER_FEATURE else t for n, t in params.items()}
        still = constant(member)
        return {
            name: tensor.to(self._device, self._dtype, copy=True).requires_grad_(name not in still)
            for name, tensor in params.items()
        }

    def _sparse_steps(self) -> list[SparseStep | None]:
        """A step by active codes for every member that can have one here."""
        wanted, missing = self.config.precision, lacking(self._device)
        require(
            wanted != "bf16" or not missing,
            f"precision = 'bf16' cannot be used here: {missing}; give 'auto'",
        )
        # Metal has no float64, in which squares are summed
        if self._dtype != torch.float32 or self._device.type == "mps":
            require(
                self._ranks.alone, f"on {self._device} a member is one rank's; leave data_ranks and feature_ranks out"
            )
            return [None] * len(self.members)
        for member in self.members:
            require(
                self._ranks.alone or KINDS[member.kind].loss in SHARED,
                f"a {member.kind} is one rank's, for its codes follow one from another; leave data_ranks and "
                "feature_ranks out",
            )
        bf16, parts = wanted == "bf16" or (wanted == "auto" and not missing), parts_for(self._device)
        every = zip(self.members, self.params, self._unit, self._recipes, self._owned, strict=True)
        return [
            SparseStep(
                member, params, self._adam, unit_rows=unit_rows, decoder_rate=chosen.decoder_rate, bf16=bf16,
                parts=parts, ranks=self._ranks._replace(owned=owned),
            )
            if KINDS[member.kind].loss in LOSSES
            else None
            for member, params, unit_rows, chosen, owned in every
        ]  # fmt: skip

    @torch.no_grad()
    def _begin(self, raw: Mapping[str, Tensor]) -> None:
        """Fix what is done to activations, bring a dictionary to continue from to it, and centre what begins anew."""
        what, where = self._recipes[0].preprocess, (self._device, self._dtype)
        centres = {}
        for site in self._sites:
            known = self._usual[site] if site in self._usual else usual(raw[site], covariance=what == "whiten")
            self._preprocessing[site] = preprocessing(what, known).to(*where)
            centres[site] = self._preprocessing[site].rows(known.centre.to(*where)[None])[0]
        for number, (member, params) in enumerate(zip(self.members, self.params, strict=True)):
            read, written = self._preprocessing[member.site], self._preprocessing[member.written]
            if self._started:
                preprocessed(params, read, written)
            for name, centre in (("centre", centres[member.site]), ("b_dec", centres[member.written])):
                if name in params and not self._started:
                    params[name].copy_(centre)
            self._threshold[number] *= written.factor

    @torch.no_grad()
    def _begin_thresholds(self, rows: Mapping[str, Tensor]) -> None:
        """JumpReLU: the thresholds with which the first batch has the L0 that is wanted."""
        for number, (member, params) in enumerate(zip(self.members, self.params, strict=True)):
            if "log_threshold" not in params:
                continue
            if not self._started:
                pre = encode(params, StepBatch(rows[member.site], rows[member.written]), member).pre
                threshold = first_threshold(pre, self._settings(number).k, self._mesh.features)
                params["log_threshold"].copy_(threshold.log())
            thresholds = torch.cat(self._mesh.features.parts(params["log_threshold"].detach()))
            self._pressure[number] = first_pressure(thresholds.exp().median(), member.d_out)

    def _settings(self, number: int) -> StepSettings:
        member = self.members[number]
        k = k_at(self.config, member.k, self.done, self.steps) if member.k else 1
        p, pressure = p_at(self.config, self.done, self.steps), self._pressure[number]
        weight, after = self._recipes[number].auxk, self._dead_after
        # Counted on the host: before this many rows nothing can be dead, and the auxiliary loss costs nothing.
        possible = weight > 0 and self.done * self.config.batch_size >= after
        return StepSettings(k, p, pressure, Revival(weight, self._idle[number] >= after) if possible else None)

    @torch.no_grad()
    def _record(self, number: int, loss: Loss, rows: int) -> None:
        self._totals.add(number, loss, self.done + 1)
        self._idle[number].add_(rows).masked_fill_(loss.fired, 0)
        if loss.threshold is not None:
            # what a threshold was for another k says nothing of this one's
            annealing = 0 if self.config.k_start is None else round(self.config.anneal * self.steps)
            seen = max(self._remembered[number] + self.done - annealing, 0)
            memory = min(LONGEST_MEMORY, seen / (seen + 10))
            old = self._threshold[number]
            new = memory * old + (1 - memory) * loss.threshold
            self._threshold[number] = torch.where(loss.threshold.isfinite(), new, old)

    @torch.no_grad()
    def _update(self) -> None:
        """Adam and unit rows of the members whose loss left gradients; a compiled step has both in it."""
        waiting = [number for number, ps in enumerate(self.params) if any(p.grad is not None for p in ps.values())]
        if not waiting:
            return
        for number, chosen in enumerate(self._recipes):
            set_rate(self._adam, number, self._rate(number), chosen.decoder_rate)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for number in waiting:
            if self._unit[number]:
                self.params[number]["W_dec"].copy_(unit(self.params[number]["W_dec"]))

    def _resample(self, raw: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Start dead features anew; controls, part of which stays as it is, keep theirs."""
        self.verify()
        for number, member in enumerate(self.members):
            dead, features = self._idle[number] >= self._dead_after, self._mesh.features
            if KINDS[member.kind].frozen or not bool(features.greatest(dead.any().float())):
                continue
            part = self._dictionary(number).to(self._device)
            missed = raw[member.written] - reconstructed(part, raw[member.site], member.k, features)
            generator = runtime.generator("resample", member.seed, member.name, member.site, self.done)
            batch = StepBatch(rows[member.site], rows[member.written])
            length = SHORT if member.k is None else 1.0
            squares = missed.square().sum(1)
            resample(self.params[number], self._adam.state, batch, squares, dead, generator, length, features)
            self._idle[number].masked_fill_(dead, 0)

    def _rate(self, number: int) -> float:
        chosen = self._recipes[number]
        return self.members[number].lr * schedule(self.done, self.steps, chosen.warmup, chosen.decay)
