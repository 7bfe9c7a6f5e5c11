"""The explainers, one row each; no torch, so that configs and the command line read them too.

A new explainer is a row here and its function.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Explainer:
    """What says what a feature responds to."""

    name: str
    """As configs and saved files call it."""
    explain: str
    """Dotted (``module:name``), with the arguments that ``needs`` says."""
    needs: Literal["examples", "subject", "llm"]
    """``examples`` of one feature alone: ``(Examples) -> Explanation``; the ``subject`` model too:
    ``(lm, dictionary, site, examples of all, config)``; a language model: ``(examples of all, client, config)``."""


EXPLAINERS = {
    explainer.name: explainer
    for explainer in (
        Explainer("token", "monolex.interp.explain.lookup:token_table", "examples"),
        Explainer("ngram", "monolex.interp.explain.lookup:ngram", "examples"),
        Explainer("pattern", "monolex.interp.explain.pattern:explain", "subject"),
        Explainer("openai", "monolex.interp.explain.by_llm:explain_openai", "llm"),
        Explainer("examples", "monolex.interp.explain.by_llm:explain_examples", "llm"),
    )
}
LLM_EXPLAINERS = tuple(name for name, explainer in EXPLAINERS.items() if explainer.needs == "llm")
"""Explainers that ask a language model."""

if TYPE_CHECKING:
    ExplainerName = str
else:  # from the rows, so that flags list and refuse what these say
    ExplainerName = Literal[tuple(EXPLAINERS)]
