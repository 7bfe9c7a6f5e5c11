"""How a tokenizer spells years, and what that leaves of the greater-than task."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from monolex.causal.prompts.pairs import continuations

Spelling = Literal["yy_01", "tens_0"]
"""The two last digits are one token (the donor's are 01), or one token each (the donor's tens digit is 0)."""
CENTURIES = tuple(range(11, 19))
# A few years, such as 1776, are one token in tokenizers that cut all others in two.
LEAST_YEARS = 80


class Years(NamedTuple):
    """What may follow a century such as ` 17`."""

    spelling: Spelling
    """One token or two."""
    bases: Sequence[int]
    """Two-digit years that a base prompt may have."""
    answers: Mapping[int, frozenset[int]]
    """First tokens after the century, by two-digit year (`yy_01`) or by tens digit (`tens_0`)."""

    def donor(self, year: int) -> int:
        """The two-digit year of the donor whose base has ``year``."""
        return 1 if self.spelling == "yy_01" else year % 10

    def later(self, year: int) -> tuple[int, ...]:
        """Ids that only a later year begins with."""
        limit = year if self.spelling == "yy_01" else year // 10
        return self._ids([number for number in self.answers if number > limit])

    def not_later(self, year: int) -> tuple[int, ...]:
        """Ids that no later year begins with."""
        limit = year + 1 if self.spelling == "yy_01" else year // 10
        return self._ids([number for number in self.answers if number < limit])

    def _ids(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(token for number in numbers for token in self.answers[number]))


def spelled(tokenizer: PreTrainedTokenizerBase) -> tuple[Spelling | None, dict[int, Years]]:
    """The spelling that the task can have, with the centuries that have it; one token is preferred over two."""
    by_century = {century: years for century in CENTURIES if (years := _years(tokenizer, century)) is not None}
    spellings = {years.spelling for years in by_century.values()}
    for spelling in ("yy_01", "tens_0"):
        if spelling in spellings:
            return spelling, {century: years for century, years in by_century.items() if years.spelling == spelling}
    return None, {}


def _years(tokenizer: PreTrainedTokenizerBase, century: int) -> Years | None:
    tails = continuations(tokenizer, f"the year {century}", [f"{year:02}" for year in range(100)])
    paired = {year: frozenset(tail) for year, tail in enumerate(tails) if len(tail) == 1}
    if len(paired) >= LEAST_YEARS and 1 in paired:
        return Years("yy_01", [year for year in paired if 1 < year < max(paired)], paired)
    bases = [
        year
        for year in range(10, 90)
        if len(tails[year]) == len(tails[year % 10]) == 2 and tails[year][1] == tails[year % 10][1]
    ]
    # some such tokenizers know a few pairs of digits as well: those go by their tens like the digit itself
    tens = {
        digit: frozenset(tail[0] for tail in tails[10 * digit : 10 * digit + 10] if 1 <= len(tail) <= 2)
        for digit in range(10)
    }
    ambiguous = any(a & b for a, b in combinations(tens.values(), 2))
    return None if ambiguous or {year // 10 for year in bases} != set(range(1, 9)) else Years("tens_0", bases, tens)
