"""How long pieces of work take here and now: each is done once, for a fraction of a second, and remembered.

What cannot be done in a second (a language model that is asked, a search) is a number that was measured elsewhere, in
seconds of a machine whose Python is as fast as :data:`PYTHON` says, and is brought to this one.
"""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, final

import torch
from torch import Tensor
from torch.nn.functional import linear

from monolex.model.hooks import capture, run_from
from monolex.model.language_model import LanguageModel

PYTHON: Final = 0.0049
"""Seconds of :func:`_python` on the machine that all numbers of seconds in estimates are of."""
FLOPS: Final = 4e10
"""Floating-point operations a second there, those of a language model or of a dictionary."""
LEAST: Final = 0.06
"""Seconds that a piece of work is repeated for."""
TOKENS: Final = 1024
"""Tokens of the forward pass that is timed."""
LOGITS: Final = 2**24
"""Logits that are held for it, or those of one row."""
ROWS: Final = 1024
"""Activations that are encoded for it."""
WIDEST: Final = 8192
"""Features of the widest dictionary that they are encoded with; beyond that time goes with the width."""


@final
class Speed:
    """Seconds of pieces of work here: of ``lm`` where there is one; of another machine's if nothing is ``measured``."""

    def __init__(
        self,
        lm: LanguageModel | None = None,
        context: int = 256,
        *,
        measured: bool = True,
        loading: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._lm, self._context, self._measured, self._clock = lm, context, measured, clock
        self.loading = loading
        """Seconds that loading the model took."""
        self._seconds: dict[Hashable, float] = {}

    def timed(self, key: Hashable, work: Callable[[], object], flops: float) -> float:
        """Seconds of ``work``, which takes about so many operations: the mean after a first time that counts not."""
        if key not in self._seconds:
            self._seconds[key] = self._time(work) if self._measured else flops / FLOPS
        return self._seconds[key]

    def python(self, seconds: float) -> float:
        """What took ``seconds`` in Python there, here."""
        return seconds * self.timed("python", _python, PYTHON * FLOPS) / PYTHON

    def token(self, block: int) -> float:
        """Seconds of a token in a forward pass through the blocks, which have ``block`` parameters."""
        lm = self._lm
        if lm is None:
            return 2 * block / FLOPS
        ids = self._tokens(lm)
        last, mask = [f"resid_post.{lm.n_layers - 1}"], torch.ones_like(ids)  # whatever else its ids may mean
        work = partial(capture, lm, ids, last, mask=mask)
        return self.timed("forward", work, 2.0 * block * ids.numel()) / ids.numel()

    def prediction(self, vocab: int, width: int) -> float:
        """Seconds of a token's logits and of their comparison with others."""
        lm, flops = self._lm, 2.0 * vocab * width + 20.0 * vocab
        if lm is None:
            return flops / FLOPS
        ids = self._tokens(lm)
        ids = ids[: max(LOGITS // (vocab * ids.shape[1]), 1)]
        x = torch.randn(*ids.shape, lm.d_model, dtype=lm.dtype, device=lm.device)
        clean: list[Tensor] = []

        @torch.no_grad()
        def work() -> None:
            logits = run_from(lm, lm.n_layers, x, ids).logits
            assert logits is not None, "run_from gives logits"
            log_q = logits[0].float().log_softmax(-1)
            log_p = (clean or [log_q])[0]
            clean[:] = [log_p]
            (log_p.exp() * (log_p - log_q)).sum(1).cpu()

        return self.timed("prediction", work, flops * ids.numel()) / ids.numel()

    def product(self, flops: float) -> float:
        """Seconds of that many operations in products of float32 matrices."""
        return flops * self.coded(512, 1024) / (4.0 * 512 * 1024)

    def coded(self, d_in: int, d_sae: int) -> float:
        """Seconds of an activation that a dictionary encodes, counts and decodes."""
        wide = min(d_sae, WIDEST)
        key, flops = ("coded", d_in, wide), 4.0 * d_in * wide * ROWS
        if key not in self._seconds:
            where = self._lm.device if self._lm else "cpu"
            self.timed(key, _coding(d_in, wide, where) if self._measured else _python, flops)
        return self._seconds[key] / ROWS * d_sae / wide

    def _tokens(self, lm: LanguageModel) -> Tensor:
        length = min(self._context, lm.max_context)
        rows = max(TOKENS // length, 1)
        return torch.arange(rows * length).reshape(rows, length) * 7 % lm.vocab_size

    def _time(self, work: Callable[[], object]) -> float:
        began = self._clock()
        work()
        first = self._clock() - began
        if first > 20 * LEAST:  # warm by itself, or compiled just now
            began = self._clock()
            work()
            return min(first, self._clock() - began)
        began, spent, count = self._clock(), 0.0, 0
        while spent < LEAST:
            work()
            count, spent = count + 1, self._clock() - began
        return spent / count


def _coding(d_in: int, d_sae: int, where: torch.device | str) -> Callable[[], float]:
    """Encodes, counts and decodes some noise."""
    x, weights = torch.randn(ROWS, d_in, device=where), torch.randn(d_sae, d_in, device=where)

    def work() -> float:
        codes = linear(x, weights).relu()
        return float((codes != 0).sum(0)[0] + (codes @ weights)[0, 0])

    return work


def _python() -> int:
    """A little of what stages do beside matrix products: dictionaries, strings, small tensors."""
    counts: dict[str, int] = {}
    for number in range(20_000):
        key = f"{number % 997}"
        counts[key] = counts.get(key, 0) + number
    small = torch.ones(16)
    for _ in range(400):
        small = (small * 0.5).relu() + 0.5
    return len(counts)
