"""The simulator's prompt as token ids, built line by line, so that every label's place is known and never searched for.

A tokenizer may cut the whole text at other places, where a token and the tab or line break beside it are one to it: the
prompt is then another one to the model, and expected values were seen to move by up to .18 on the scale to 10. The same
everywhere is that the labels which are read out are spelled exactly as those of the worked examples.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, takewhile
from typing import NamedTuple, final

from transformers import PreTrainedTokenizerBase

from monolex.errors import UserError
from monolex.interp.llm.prompts import UNKNOWN, Part, PromptLine, simulation_end, simulation_start
from monolex.interp.records import TOP
from monolex.text.encode import encode_texts
from monolex.text.separator import separator


class PromptIds(NamedTuple):
    """Some of a prompt, encoded."""

    ids: list[int]
    """Token ids."""
    labels: list[int]
    """Of every line the position in ``ids`` whose next token is the first of the label: the end of the tab."""


@final
class Speller:
    """Encodes prompts for one tokenizer and knows how it spells numbers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """``name`` is the model's, for messages.

        Raises:
            UserError: the digits are not one token each.
        """
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, str], list[int]] = {}
        single = [self._single(str(number)) for number in range(TOP + 1)]
        self.top: int = TOP if single[TOP] is not None else TOP - 1
        """The largest number that is one token: 10, or 9 where digits stand alone."""
        self.numbers: list[int] = [token for token in single[: self.top + 1] if token is not None]
        """Ids of the labels 0 … ``top``."""
        if len(self.numbers) <= self.top:
            raise UserError(
                f"llm = {name!r}: its tokenizer does not give every digit a token of its own, so that no number can be "
                "read off; choose another model"
            )

    def start(self) -> PromptIds:
        """What all prompts begin with, on the scale 0 … ``top``, behind the token that begins a document."""
        first = separator(self._tokenizer)
        row = self.row(simulation_start(self.top))
        return row if first is None else PromptIds([first, *row.ids], [at + 1 for at in row.labels])

    def said(self, explanation: str) -> list[int]:
        """What follows :meth:`start`: one explanation, up to the first line."""
        return self.row(takewhile(_is_text, simulation_end(explanation, ("",)))).ids

    def lines(self, texts: Sequence[str]) -> PromptIds:
        """What follows that: a fragment, up to its last label, for what is behind it changes nothing."""
        row = self.row(PromptLine(text, UNKNOWN) for text in texts)
        return PromptIds(row.ids[: row.labels[-1] + 1], row.labels) if row.labels else row

    def row(self, parts: Iterable[Part]) -> PromptIds:
        """Part of a prompt that follows a line break, or nothing."""
        ids: list[int] = []
        labels: list[int] = []
        for text, group in groupby(parts, _is_text):
            if text:
                ids += self._piece("\n", "".join(map(str, group)))
                continue
            for line in group:
                assert isinstance(line, PromptLine), "a part is text or a line"
                ids += self._piece("\n", line.token) + self._piece("a", "\t")
                labels.append(len(ids) - 1)
                ids += self._piece("\t", line.label) + self._piece("a", "\n")
        return PromptIds(ids, labels)

    def _single(self, number: str) -> int | None:
        ids = self._piece("\t", number)
        return ids[0] if len(ids) == 1 and str(self._tokenizer.decode(ids)).strip() == number else None

    def _piece(self, before: str, text: str) -> list[int]:
        """Ids of ``text``, as spelled behind ``before`` where the two stand apart.

        Tokenizers of the Llama 2 family put a space before whatever begins a text, which nothing in a line does.
        """
        known = self._known.get((before, text))
        if known is None:
            lead, whole, alone = encode_texts([before, before + text, text], len(text) + 1, self._tokenizer)
            known = whole[len(lead) :] if whole[: len(lead)] == lead and len(lead) < len(whole) else alone
            self._known[before, text] = known
        return known


def _is_text(part: Part) -> bool:
    return isinstance(part, str)
