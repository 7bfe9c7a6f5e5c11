"""What is logged of a sweep while it trains, summed on the device until someone asks."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monolex.errors import UserError
from monolex.training.members import SweepMember
from monolex.training.records import PARTS, Loss

POWERS = {"loss": 2, "mse": 2, "l1": 1, "aux": 2}
"""Powers of the scale that a metric carries while training."""


class Totals:
    """Losses of every member, variances of every site, and the first step of every member that was not finite."""

    def __init__(self, members: Sequence[SweepMember], sites: Sequence[str], like: Tensor) -> None:
        self._members, self._sites, self._read_at = members, sites, 0
        self.sums = like.new_zeros(len(members), 1 + len(PARTS))
        self.variance = like.new_zeros(len(sites))
        self.bad_step = torch.full((len(members),), -1, dtype=torch.int64, device=like.device)

    def add(self, number: int, loss: Loss, step: int) -> None:
        """The loss of a member at a step."""
        total = loss.total.detach()
        self.sums[number] += torch.stack([total, *(loss.parts[name] for name in PARTS)])
        first = (self.bad_step[number] < 0) & ~total.isfinite()
        self.bad_step[number].masked_fill_(first, step)

    def add_rows(self, number: int, rows: Float[Tensor, "batch d"]) -> None:
        """The rows of a site at a step."""
        self.variance[number] += (rows - rows.mean(0)).square().mean()

    def read(
        self, done: int, factors: Float[Tensor, "sites"], idle_for_long: Int[Tensor, "members"]
    ) -> list[dict[str, Any]]:
        """Means since the last call, one row a member, and the count starts again; one read by the host.

        A row's ``bad_step`` is the first step whose loss was not finite, -1 for none.
        """
        host = torch.cat([self.sums.flatten(), self.variance, factors, idle_for_long, self.bad_step]).tolist()
        n, m, width, count = len(self._members), len(self._sites), 1 + len(PARTS), done - self._read_at
        sums, by_site, counters = host[: n * width], host[n * width : -2 * n], host[-2 * n :]
        spread = dict(zip(self._sites, by_site[:m], strict=True))
        scales = dict(zip(self._sites, by_site[m:], strict=True))
        rows = []
        for number, member in enumerate(self._members):
            total = dict(zip(("loss", *PARTS), sums[number * width : (number + 1) * width], strict=True))
            scale, variance = scales[member.written], spread[member.written]
            means = {name: value / count / scale ** POWERS.get(name, 0) for name, value in total.items()}
            fvu = total["mse"] / variance if variance > 0 else None
            rows.append(
                {
                    "site": member.site, "member": member.name, **means, "fvu": fvu, "dead": int(counters[number]),
                    "bad_step": int(counters[n + number]),
                }
            )  # fmt: skip
        self.sums.zero_()
        self.variance.zero_()
        self._read_at = done
        return rows

    def state(self, number: int) -> dict[str, Tensor]:
        """All of a member that later reads depend on."""
        return {"sums": self.sums[number], "read_at": torch.tensor(self._read_at)}

    def load_state(self, number: int, sums: Tensor, read_at: int) -> None:
        """Continue a member from :meth:`state`."""
        self._read_at = read_at
        self.sums[number].copy_(sums)


def require_finite(sweep: Sequence[SweepMember], bad_steps: Sequence[int]) -> None:
    """Refuse to go on after a step of some member, -1 for none.

    Raises:
        UserError: names the step, the member and its learning rate.
    """
    for member, step in zip(sweep, bad_steps, strict=True):
        if step >= 0:
            raise UserError(
                f"the loss of {member.name} at {member.site} is not finite at step {step} "
                f"(lr = {member.lr:g}); lower its learning rate or leave the member out"
            )
