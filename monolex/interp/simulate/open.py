"""The simulator that a configuration asks for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from monolex.interp.config import ScoreConfig
from monolex.interp.llm.meter import Meter, nothing_done
from monolex.interp.llm.recorded import Recorded
from monolex.interp.records import Simulator
from monolex.interp.simulate import sanity
from monolex.interp.simulate.by_rule import RulesSimulator
from monolex.interp.simulate.chat import ChatJudge, JsonSimulator, gives_logprobs
from monolex.interp.simulate.sanity import SanityResult
from monolex.interp.simulate.whole_characters import WholeCharacters


class OpenSimulator(NamedTuple):
    """What scores a run."""

    simulator: Simulator
    """Predicts activations."""
    client: Recorded | None = None
    """The endpoint that it asks."""
    judge: ChatJudge | None = None
    """Who is asked for detection and fuzzing; None where predictions serve."""
    weights: str = ""
    """What tells a local model from another one of its name; empty for rules and endpoints."""


@contextmanager
def open_simulator(config: ScoreConfig, run: Path) -> Iterator[OpenSimulator]:
    """``rules`` needs nothing, ``exact`` a local model; what the others are told, by either, is kept in ``run``.

    Raises:
        UserError: a model or an endpoint that cannot be asked.
    """
    if config.simulator == "rules":
        yield OpenSimulator(RulesSimulator())
        return
    # Here, since they import torch or ask an endpoint.
    if config.simulator == "exact":
        from monolex.interp.simulate.exact import local

        simulator = local(config)
        yield OpenSimulator(WholeCharacters(simulator), weights=simulator.weights)
        return
    from monolex.interp.llm.endpoint import open_client
    from monolex.interp.simulate.completions import connect

    with open_client(config, run) as client:
        weights = "" if config.base_url else client.backend.identity
        if config.simulator == "json":
            limit, judges = config.reply_tokens, set(config.scorers) - {"correlation"}
            by = ChatJudge(client, bool(judges) and gives_logprobs(client, limit), limit)
            yield OpenSimulator(WholeCharacters(JsonSimulator(client, limit)), client, by, weights)
        else:
            yield OpenSimulator(WholeCharacters(connect(client)), client, weights=weights)


def sanity_result(config: ScoreConfig) -> SanityResult:
    """What the simulator makes of hand-made features; its replies are kept only where ``config`` names a file.

    Raises:
        UserError: as :func:`open_simulator`, or of all calls none was answered.
    """
    with tempfile.TemporaryDirectory() as aside, open_simulator(config, Path(aside)) as opened:
        meter = Meter() if opened.client is None else opened.client.meter
        tried = meter.replied
        ranking = sanity.run(opened.simulator)
        if meter.failures and meter.replied == tried:
            raise nothing_done(f"llm = {config.llm!r}: all calls failed", meter.failures)
        return ranking
