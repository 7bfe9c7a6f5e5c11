"""What the stores of a run's dictionaries know of their features, for what stands beside every answer."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from monolex.dictionaries.listing import RunDictionary
from monolex.errors import UserError
from monolex.features.answer import Known
from monolex.features.query import Condition, as_sql
from monolex.features.store import FeatureStore
from monolex.stats import Estimate


@dataclass(frozen=True)
class Knowledge:
    """What the store of a dictionary, if there is one, says of all its features."""

    kept: Bool[NDArray, "d_sae"]
    """Features that the conditions keep."""
    largest: tuple[float, ...] = ()
    """Largest activation seen of every feature; empty where nothing was gathered, as ``known``."""
    known: tuple[Known, ...] = ()
    """The rest."""

    def of(self, feature: int) -> Known:
        """What is known of one feature."""
        return self.known[feature] if self.known else Known()

    def of_max(self, feature: int, activation: float) -> float | None:
        """``activation`` over the largest seen; None where nothing was gathered or it was never active."""
        largest = self.largest[feature] if self.largest else 0
        return activation / largest if largest > 0 else None


def knowledge(dictionary: RunDictionary, conditions: Sequence[Condition]) -> Knowledge:
    """Read the store of a dictionary for what stands beside every answer.

    Raises:
        UserError: there are conditions and nothing was gathered.
    """
    if dictionary.evidence is None and not conditions:
        return Knowledge(np.ones(dictionary.config.d_sae, dtype=bool))
    with closing(open_store(dictionary)) as store:
        numbers = "density, max, text, reappears, reappears_low, reappears_high, seeds"
        query = f"SELECT {numbers} FROM feature LEFT JOIN vocabulary ON token = top_token ORDER BY feature.id"
        rows = store.rows(query)
        kept = np.zeros(len(rows), dtype=bool)
        kept[[summary.id for summary in store.summaries(*as_sql(conditions))]] = True
    known = tuple(
        Known(density, text, Estimate(value, low, high, seeds, "seeds") if seeds else None)
        for density, _, text, value, low, high, seeds in rows
    )
    return Knowledge(kept, tuple(row[1] for row in rows), known)


def open_store(dictionary: RunDictionary) -> FeatureStore:
    """The evidence of a dictionary's features.

    Raises:
        UserError: none was gathered.
    """
    if dictionary.evidence is None:
        raise _nothing(dictionary)
    return FeatureStore(dictionary.evidence)


def gathered(dictionaries: Sequence[RunDictionary]) -> list[RunDictionary]:
    """Those with evidence; a run may gather that of a few dictionaries only.

    Raises:
        UserError: there is none.
    """
    kept = [dictionary for dictionary in dictionaries if dictionary.evidence is not None]
    if not kept:
        raise _nothing(dictionaries[0])
    return kept


def _nothing(dictionary: RunDictionary) -> UserError:
    return UserError(f"nothing was gathered of {dictionary.title}; run monolex features for it first")
