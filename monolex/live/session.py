"""A model and the dictionaries of a run, ready for prompts: one thread at a time, no token twice where that can be."""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple, final

import torch

from monolex.causal.past import continues
from monolex.dictionaries.listing import RunDictionary
from monolex.live.interventions import Intervention, PlacedEdit, idle, place
from monolex.live.loaded import LoadedDictionaries, LoadedDictionary
from monolex.live.prompt import LivePrompt
from monolex.live.trace import Tape, Trace
from monolex.model.hooks import require_tokens
from monolex.model.language_model import LanguageModel
from monolex.text.vocabulary import Texts

DICTIONARY_BYTES: Final = 2 << 30
"""Memory that loaded dictionaries may take."""
TRACE_BYTES: Final = 1 << 29
"""Memory that what is kept of prompts may take."""
TRACES: Final = 8
"""Prompts and edits of which something is kept."""
_TRIED = 8
"""Tokens on which keys and values are compared with whole forwards."""


class TokenCost(NamedTuple):
    """What an answer took."""

    computed: int
    """Tokens that went through the model."""
    reused: int
    """Tokens whose keys, values and activations were there already."""


class TraceRun(NamedTuple):
    """A prompt that went through the model."""

    trace: Trace
    """What is kept of it."""
    cost: TokenCost
    """Tokens that were computed, and that were not."""
    notes: tuple[str, ...]
    """Interventions that changed nothing, and why."""


@final
class LiveModel:
    """A model with dictionaries (:func:`monolex.dictionaries.listing.run_dictionaries`), to be tried on prompts.

    Threads may share it: whoever needs the model holds :attr:`lock`, a token at a time where text is written.
    ``dictionary_bytes`` and ``trace_bytes`` bound what stays in memory.

    Raises:
        UserError: two dictionaries of the same title.
    """

    def __init__(
        self,
        lm: LanguageModel,
        dictionaries: Sequence[RunDictionary],
        *,
        dictionary_bytes: int = DICTIONARY_BYTES,
        trace_bytes: int = TRACE_BYTES,
    ) -> None:
        self.lm = lm
        self.lock = threading.RLock()
        self.texts = Texts(lm)
        self._loaded = LoadedDictionaries(dictionaries, lm.device, dictionary_bytes)
        self._traces: list[Trace] = []
        self._bound = trace_bytes
        self._caching: bool | None = None

    @property
    def titles(self) -> tuple[str, ...]:
        """``SITE/NAME`` of every dictionary."""
        return tuple(self._loaded.records)

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that have a dictionary."""
        return tuple(dict.fromkeys(record.site for record in self._loaded.records.values()))

    def dictionary(self, title: str) -> LoadedDictionary:
        """The dictionary called ``SITE/NAME``.

        Raises:
            UserError: there is none.
        """
        with self.lock:
            return self._loaded.get(title)

    def edits(self, interventions: Sequence[Intervention], prompt: LivePrompt) -> tuple[PlacedEdit, ...]:
        """``interventions`` for ``prompt`` and what it is continued by.

        Raises:
            UserError: as :func:`monolex.live.interventions.place`.
        """
        return place(interventions, prompt, self.dictionary)

    def run(self, prompt: LivePrompt, interventions: Sequence[Intervention] = ()) -> TraceRun:
        """``prompt`` through the model, as far as it has not been.

        Raises:
            UserError: an intervention that cannot be made, or that leaves logits that are not finite.
        """
        with self.lock:
            tape = self.tape(prompt, interventions)
            trace = self.keep(tape)
        return TraceRun(trace, TokenCost(tape.computed, tape.reused), idle(trace.edits, trace.effects))

    def tape(self, prompt: LivePrompt, interventions: Sequence[Intervention] = ()) -> Tape:
        """The same, to be given further tokens; for a caller that holds the lock.

        The longest beginning that is there already is reused: of the same edits, or of no edit up to where the first of
        them acts.

        Raises:
            UserError: as :meth:`run`.
        """
        require_tokens(self.lm, torch.tensor([prompt.ids]))
        edits = self.edits(interventions, prompt)
        tape = Tape(self.lm, self.sites, edits, caching=self._keeps())
        trace, length = self._longest(prompt.ids, edits)
        if trace is not None:
            tape.resume(trace, length)
        if length < len(prompt.ids):
            tape.feed(prompt.ids[length:])
        return tape

    def keep(self, tape: Tape) -> Trace:
        """Keep what a tape holds; for a caller that holds the lock."""
        trace = tape.trace()
        if trace.cache is None:
            return trace
        others = [
            other
            for other in self._traces
            if other.edits != trace.edits
            or trace.ids[: len(other.ids)] != other.ids
            or not trace.usable(len(other.ids))
        ]
        self._traces = [trace]
        held = trace.bytes
        for other in others[: TRACES - 1]:
            held += other.bytes
            if held > self._bound:
                break
            self._traces.append(other)
        return trace

    def _longest(self, ids: tuple[int, ...], edits: tuple[PlacedEdit, ...]) -> tuple[Trace | None, int]:
        """The trace with the longest beginning in common, and how many tokens that is."""
        best: tuple[Trace | None, int] = None, 0
        for trace in self._traces:
            length = _common(trace.ids, ids)
            if length > best[1] and edits and not trace.edits:
                length = trace.unedited(length, edits)
            elif trace.edits != tuple(edit.placement for edit in edits):
                continue
            if length > best[1] and trace.usable(length):
                best = trace, length
        return best

    def _keeps(self) -> bool:
        """Whether the model goes on from keys and values as it should, tried once."""
        if self._caching is None:
            count = min(_TRIED, self.lm.max_context)
            self._caching = continues(self.lm, torch.arange(count)[None] % self.lm.embedding.shape[0])
        return self._caching


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    length = min(len(a), len(b))
    return next((at for at in range(length) if a[at] != b[at]), length)
