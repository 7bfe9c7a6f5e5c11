"""What a run of a command asked of a language model, what that cost, and when to stop."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monolex.errors import UserError
from monolex.interp.llm.answers import CUT, ONLY_REASONING
from monolex.interp.llm.client import NOT_RECORDED, Answer, Usage
from monolex.interp.records import Failure

METER = "meter"
"""In a manifest's data: what the run of the command that made the artefact asked of a language model."""


class BudgetSpent(UserError):
    """The budget of this run is spent before everything was asked; what was answered is kept."""


@dataclass
class Meter:
    """Counts of this run of the command; what earlier ones paid is not in them."""

    price_in: float = 0.0
    """Dollars for a million tokens that are read."""
    price_out: float = 0.0
    """Dollars for a million tokens that are written."""
    budget_tokens: int | None = None
    """Tokens after which no call is started."""
    budget_usd: float | None = None
    """Dollars after which no call is started."""
    calls: int = 0
    """Calls of the model, failed ones included."""
    recorded: int = 0
    """Requests that cost nothing: their reply was in the store, or an equal one was asked at the same time."""
    replied: int = 0
    """Requests that were answered, by the model or from the store."""
    own_temperature: int = 0
    """Those of them that the model drew at its own temperature, because its endpoint takes no other."""
    read: int = 0
    """Tokens the model read."""
    written: int = 0
    """Tokens it wrote."""
    seconds: float = 0.0
    """Sum over the calls, several of which may have been under way at once."""
    failures: Counter[str] = field(default_factory=Counter)
    """Failures by reason."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Those of them that may be answered when the same command runs again."""

    @property
    def dollars(self) -> float:
        """What the tokens cost."""
        return (self.read * self.price_in + self.written * self.price_out) / 1e6

    @property
    def spent(self) -> str:
        """Which limit is reached, as ``budget_tokens = 1000``; empty while none is."""
        if self.budget_tokens is not None and self.read + self.written >= self.budget_tokens:
            return f"budget_tokens = {self.budget_tokens}"
        if self.budget_usd is not None and self.dollars >= self.budget_usd:
            return f"budget_usd = {self.budget_usd}"
        return ""

    def count(self, answer: Answer) -> None:
        """Add one answer.

        Raises:
            UserError: there is a budget, and the model does not say how many tokens a reply took.
        """
        if isinstance(answer.reply, Failure):
            self.failures[answer.reply.reason] += 1
            if answer.reply.again:
                self.unanswered[answer.reply.reason] += 1
            if answer.reply.reason == NOT_RECORDED:
                return
        usage = answer.usage or Usage()
        self.calls, self.seconds = self.calls + 1, self.seconds + answer.seconds
        self.read, self.written = self.read + usage.read, self.written + usage.written
        if answer.usage is None and (self.budget_tokens is not None or self.budget_usd is not None):
            raise UserError(
                "a budget cannot be kept: the endpoint does not say how many tokens a call took; leave budget_tokens "
                "and budget_usd out, or use an endpoint that reports usage"
            )

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values."""
        names = ("calls", "recorded", "replied", "own_temperature", "read", "written", "seconds", "dollars")
        return {name: getattr(self, name) for name in names} | {"failures": dict(sorted(self.failures.items()))}

    def __str__(self) -> str:
        price = f" ({self.dollars:.4f} dollars)" if self.price_in + self.price_out > 0 else ""
        kept = f"; {self.recorded} answered from the store" if self.recorded else ""
        drawn = f"; {self.own_temperature} at the model's own temperature" if self.own_temperature else ""
        failures = f"; failures: {counted(self.failures)}" if self.failures else ""
        return f"{self.read} tokens read and {self.written} written in {self.calls} calls{price}{kept}{drawn}{failures}"


def counted(reasons: Mapping[str, int]) -> str:
    """Counts by reason, as text.

    >>> counted({"timed out": 2, "an empty answer": 1})
    '1 an empty answer, 2 timed out'
    """
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def nothing_done(what: str, reasons: Mapping[str, int]) -> UserError:
    """What a stage ends with that got nothing of all it asked a language model for, by reason."""
    fix = "mend that, and run the same command again"
    if CUT.reason in reasons or ONLY_REASONING.reason in reasons:
        fix = "give the model more room to answer by reply_tokens, or take one that thinks less"
    return UserError(f"{what} ({counted(reasons)}), so that nothing is done; {fix}")
