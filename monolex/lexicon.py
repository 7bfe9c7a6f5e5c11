"""A run in Python and in notebooks: sites, their dictionaries, and every feature with all that is known of it.

::

    lexicon = monolex.open("demo-run")
    lexicon.site("resid_post.3").dictionary("batchtopk-k24-r2-s0").feature(17)  # its card, in a notebook
    print(lexicon.find(prompt="def __init__(self"))
    lexicon.live()  # prompts tried live, by the functions of monolex.live
"""

import operator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, final

from jaxtyping import Float
from torch import Tensor

from monolex.activations.stored import stored_model
from monolex.artifact import MANIFEST, SUBJECT, open_artifact, read_json
from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import RunDictionary, by_site, run_dictionaries
from monolex.errors import UserError, nearest
from monolex.features.answer import FoundFeatures
from monolex.features.evidence import Evidence, Summary
from monolex.features.find import find
from monolex.features.known import open_store
from monolex.features.query import FindConfig
from monolex.features.store import FeatureStore
from monolex.interp.records import Scored
from monolex.interp.score import cards
from monolex.live.session import LiveModel
from monolex.model.language_model import LanguageModel
from monolex.text.characters import quoted


@final
@dataclass(frozen=True)
class Feature:
    """One feature of a dictionary."""

    dictionary: "LexiconDictionary"
    """Its dictionary."""
    number: int
    """Which one."""

    @cached_property
    def evidence(self) -> Evidence:
        """All that was gathered of it."""
        return self.dictionary.store.feature(self.number)

    @property
    def summary(self) -> Summary:
        """Its numbers."""
        return self.evidence.summary

    @property
    def direction(self) -> Float[Tensor, "d_out"]:
        """Its decoder direction, of unit length."""
        row = self.dictionary.weights.W_dec[self.number]
        return row / row.norm().clamp_min(1e-8)

    def __repr__(self) -> str:
        if self.dictionary.record.evidence is None:
            return f"Feature {self.number} of {self.dictionary.record.title}: nothing gathered"
        top = self.dictionary.store.text(self.summary.top_token)
        what = (
            f"active in {self.summary.density:.3%} of rows, most on {quoted(top)}" if self.summary.n_active else "dead"
        )
        return f"Feature {self.number} of {self.dictionary.record.title}: {what}"

    def _repr_html_(self) -> str | None:
        """Its card; nothing where nothing was gathered, so that a notebook falls back to the line above."""
        if self.dictionary.record.evidence is None:
            return None
        from monolex.pages.card import card_html

        scored = self.dictionary.scored.get(self.number, ())
        return card_html(self.evidence, self.dictionary.store.meta, self.dictionary.store.text, scored)


@final
@dataclass(frozen=True)
class LexiconDictionary:
    """One dictionary of a run; weights and evidence are read when they are first used."""

    run: Path
    """Folder of the run."""
    record: RunDictionary
    """Which dictionary."""

    @property
    def name(self) -> str:
        """Unique at its site."""
        return self.record.name

    @cached_property
    def weights(self) -> Dictionary:
        """The dictionary itself, on the CPU."""
        return self.record.weights()

    @cached_property
    def store(self) -> FeatureStore:
        """The evidence of its features; :class:`UserError` if none was gathered."""
        return open_store(self.record)

    @cached_property
    def scored(self) -> dict[int, list[Scored]]:
        """Explanations of its features with their scores, by feature; {} where there are none."""
        key = SUBJECT, self.record.site, self.name
        return cards.scored(self.run, only=key).get(key, {})

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Its rows of ``eval/metrics.json`` by metric; empty if the run is not evaluated."""
        if not (self.run / "eval" / MANIFEST).exists():
            return {}
        open_artifact(self.run / "eval", "eval")
        head = {"model": SUBJECT, "site": self.record.site, "name": self.name, "other": ""}
        rows = read_json(self.run / "eval" / "metrics.json")
        return {row["metric"]: row for row in rows if head.items() <= row.items()}

    def feature(self, number: SupportsIndex) -> Feature:
        """Feature ``number``.

        Raises:
            UserError: there is no such feature.
        """
        number = operator.index(number)
        if not 0 <= number < len(self):
            raise UserError(f"feature {number}: {self.record.title} has features 0 to {len(self) - 1}")
        return Feature(self, number)

    def __len__(self) -> int:
        return self.record.config.d_sae

    def __repr__(self) -> str:
        state = "with evidence" if self.record.evidence else "nothing gathered"
        return f"{self.record.title}: {len(self)} features, {state}"


@final
@dataclass(frozen=True)
class LexiconSite:
    """One site of a run."""

    name: str
    """As in ``sites``."""
    entries: dict[str, LexiconDictionary]
    """Its dictionaries by name."""

    @property
    def dictionaries(self) -> list[str]:
        """Their names, in the order of the evaluation."""
        return list(self.entries)

    def dictionary(self, name: str) -> LexiconDictionary:
        """The dictionary called ``name``.

        Raises:
            UserError: there is none.
        """
        if name not in self.entries:
            raise UserError(f"dictionary {name!r}: there is none at {self.name}; {nearest(name, self.dictionaries)}")
        return self.entries[name]

    def __repr__(self) -> str:
        return f"{self.name}: {', '.join(self.entries)}"


@final
class Lexicon:
    """The dictionaries of a run; made by :func:`open_run`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._sites = {
            site: LexiconSite(site, {record.name: LexiconDictionary(run, record) for record in dictionaries})
            for site, dictionaries in by_site(run_dictionaries(run)).items()
        }
        self._lm: LanguageModel | None = None
        self._live: LiveModel | None = None

    @property
    def sites(self) -> list[str]:
        """Names of the sites that have dictionaries."""
        return list(self._sites)

    def site(self, name: str) -> LexiconSite:
        """The site called ``name``.

        Raises:
            UserError: the run has no dictionary there.
        """
        if name not in self._sites:
            raise UserError(f"site {name!r}: {self.run} has no dictionary there; {nearest(name, self.sites)}")
        return self._sites[name]

    def model(self) -> LanguageModel:
        """The model that was harvested, loaded once.

        Raises:
            UserError: the model of that name has other weights than it had.
        """
        if self._lm is None:
            self._lm = stored_model(self.run / "activations")
        return self._lm

    def live(self) -> LiveModel:
        """The model with all dictionaries of the run, to be tried on prompts; made once, and threads may share it.

        Raises:
            UserError: as :meth:`model`.
        """
        if self._live is None:
            records = [entry.record for site in self._sites.values() for entry in site.entries.values()]
            self._live = LiveModel(self.model(), records)
        return self._live

    def find(self, **settings: Any) -> FoundFeatures:
        """Features by ``settings`` (fields of :class:`FindConfig`), as ``find(prompt="def f(x):", limit=5)``."""
        return find(self.run, FindConfig(**settings), lm=self.model)

    def __repr__(self) -> str:
        dictionaries = sum(len(site.entries) for site in self._sites.values())
        return f"Lexicon of {self.run}: {dictionaries} dictionaries at {', '.join(self.sites)}"


def open_run(run: str | Path) -> Lexicon:
    """The dictionaries, evidence and model of the folder that ``monolex run`` wrote.

    Raises:
        UserError: it is no run, or has no dictionary.
    """
    return Lexicon(Path(run))
