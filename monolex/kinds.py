"""The kinds of dictionary, one row each; no torch, so that configs and the command line read them too.

A new kind that is trained is a row of :data:`KINDS`, a loss in ``training/steps.py`` unless one there fits, and its
test. A new family of baselines is a row of :data:`FAMILIES` and a builder in ``dictionaries/families.py``. Either needs
an activation in ``dictionaries/base.py`` only if those there do not fit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

# On s·x with codes s·c the loss is s² · (mse + alpha / s · Σ|c|).
L1_CONVENTION = (
    "mean over batch and dimensions of (x - x̂)² + alpha / scale · mean over batch of Σ|c|, alpha and scale as in the "
    "recipe; alpha · d_in / scale is the coefficient of the literal Eq. 4 of arXiv 2309.08600"
)
AUXK_CONVENTION = "mean over batch and dimensions of (x - x̂)² + auxk · the same of the dead features' error"
TOPK = "-topk"
"""How the baselines end that keep the k largest codes."""
NEUTRAL = "ink"
"""Colour of a kind that a saved file names and this version does not know."""


@dataclass(frozen=True)
class TrainedKind:
    """A kind that is trained by gradient descent."""

    name: str
    """As configs and saved files call it."""
    loss: str
    """Key of ``LOSSES`` in ``training/steps.py``."""
    activation: str
    """Key of ``ACTIVATIONS`` in ``dictionaries/base.py``; where it is `threshold`, one is learned."""
    sparsity: Literal["alpha", "k"]
    """What sets the number of active features: an L1 coefficient, or that number itself."""
    convention: str
    """How the numbers of its loss are to be read."""
    colour: str
    """In charts."""
    tied: bool = False
    """Whether the encoder is the decoder."""
    modern: bool = False
    """Not the paper's: a decoder bias, centring at the start and unit rows whatever the preset."""
    auxk: bool = False
    """Whether an auxiliary loss revives its dead features."""
    matrices: int = 6
    """Matrices of the batch's codes that a step holds at once, without those of the auxiliary loss (measured)."""


@dataclass(frozen=True)
class BaselineFamily:
    """Baselines that share one fit."""

    name: str
    """First word of its kinds."""
    forms: tuple[str, ...]
    """What follows it: nothing, `-pm` (both directions of each axis) or :data:`TOPK`."""
    colour: str
    """In charts."""
    rows: str | None
    """Field of ``BaselineConfig`` that says how many rows it is fitted on; None if on none."""
    per_width: float | None = 2.0
    """Directions over d_in that its widest form has at most; None takes the config's ``ratio``."""
    complete: tuple[str, ...] = ()
    """Forms that reconstruct everything."""
    marker: str = "diamond"
    """In charts."""

    def directions(self, d_in: int, ratio: float) -> int:
        """Directions of its widest form at a site of ``d_in`` dimensions."""
        return max(1, round((self.per_width or ratio) * d_in))


KINDS = {
    kind.name: kind
    for kind in (
        TrainedKind("tied", "l1", "relu", "alpha", L1_CONVENTION, "blue", tied=True),
        TrainedKind("untied", "l1", "relu", "alpha", L1_CONVENTION, "sky"),
        TrainedKind("topk", "topk", "topk", "k", AUXK_CONVENTION, "vermilion", modern=True, auxk=True),
        TrainedKind(
            "batchtopk", "batchtopk", "threshold", "k", AUXK_CONVENTION, "orange", modern=True, auxk=True, matrices=7
        ),
    )
}
FAMILIES = {
    family.name: family
    for family in (
        BaselineFamily("neurons", ("", "-pm"), "olive", None, complete=("-pm",)),
        BaselineFamily("random", ("", TOPK), "ink", "fit_rows", per_width=None),
        BaselineFamily("pca", ("", "-pm", TOPK), "green", "fit_rows", complete=("", "-pm")),
        BaselineFamily("ica", ("", "-pm", TOPK), "purple", "ica_rows", complete=("", "-pm")),
        BaselineFamily("nmf", ("",), "ink", "nmf_rows", marker="square"),
    )
}
BASELINES = {family.name + form: family for family in FAMILIES.values() for form in family.forms}
"""The family of every kind of baseline."""

if TYPE_CHECKING:
    Kind = BaselineKind = str
else:  # from the rows, so that flags list and refuse what these say
    Kind, BaselineKind = Literal[tuple(KINDS)], Literal[tuple(BASELINES)]


def colour(kind: str) -> str:
    """Of any kind in charts; kinds of one family of baselines share it."""
    row = KINDS.get(kind) or FAMILIES.get(kind.partition("-")[0])
    return row.colour if row else NEUTRAL


def heading(kind: str) -> str:
    """What dictionaries of a kind stand under in tables.

    >>> heading("topk"), heading("pca-pm"), heading("gated")
    ('Trained', 'Baselines', 'Of a kind that this version of monolex does not know')
    """
    unknown = "Of a kind that this version of monolex does not know"
    return "Trained" if kind in KINDS else "Baselines" if kind in BASELINES else unknown
