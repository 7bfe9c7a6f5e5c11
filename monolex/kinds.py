"""The kinds of dictionary, one row each; no torch, so that configs and the command line read them too.

A new kind that is trained is a row of :data:`KINDS`, a loss in ``training/losses.py`` unless one there fits, and its
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
ANNEALED_CONVENTION = (
    f"{L1_CONVENTION}; the gradient of Σ|c| is that of Σ|c|^p times Σ|c| / Σ|c|^p, with p from 1 to p_end"
)
MSE = "mean over batch and dimensions of (x - x̂)²"
AUXK_CONVENTION = f"{MSE} + auxk · the same of the dead features' error"
NESTED_CONVENTION = f"mean over prefixes of the features of {AUXK_CONVENTION}"
JUMPRELU_CONVENTION = f"{AUXK_CONVENTION} + a multiplier, moved until L0 is k, · mean over batch of the active features"
GATED_CONVENTION = (
    f"{MSE} + alpha / scale · mean over batch of Σ relu(gate) + the squared error of decoding relu(gate), in which the "
    "decoder is constant"
)
TOPK = "-topk"
"""How the baselines end that keep the k largest codes."""
THRESHOLDED = ("threshold", "lista")
"""Activations that keep what is above a threshold, one number, that is learned as a mean over batches."""
NEUTRAL = "ink"
"""Colour of a kind that a saved file names and this version does not know."""


@dataclass(frozen=True)
class TrainedKind:
    """A kind that is trained by gradient descent."""

    name: str
    """As configs and saved files call it."""
    loss: str
    """Key of ``LOSSES`` in ``training/losses.py``."""
    activation: str
    """Key of ``ACTIVATIONS`` or ``ENCODERS`` in ``dictionaries/base.py``; where it is one of :data:`THRESHOLDED`, one
    is learned, where `jumprelu`, one a feature."""
    sparsity: Literal["alpha", "k"]
    """What sets the number of active features: an L1 coefficient, or that number itself (of JumpReLU the mean that a
    controller holds)."""
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
    frozen: Literal["", "W_enc", "W_dec"] = ""
    """A control: the weights that stay random. Decoder rows take any length where the encoder does."""
    reads_back: bool = False
    """Whether its codes depend on what is left of a row when some have been decoded: it can be no transcoder."""
    matrices: int = 6
    """Matrices of the batch's codes that a step holds at once, without those of the auxiliary loss (measured)."""

    @property
    def two_matrices(self) -> bool:
        """Whether encoder and decoder are trained and are not the same."""
        return not self.tied and not self.frozen


@dataclass(frozen=True)
class BaselineFamily:
    """Baselines that share one fit."""

    name: str
    """First word of its kinds."""
    spelled: str
    """As sentences call it."""
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
        TrainedKind(
            "matryoshka", "matryoshka", "threshold", "k", NESTED_CONVENTION, "teal", modern=True, auxk=True, matrices=9
        ),
        TrainedKind(
            "jumprelu", "jumprelu", "jumprelu", "k", JUMPRELU_CONVENTION, "rose", modern=True, auxk=True, matrices=9
        ),
        TrainedKind("gated", "gated", "jumprelu", "alpha", GATED_CONVENTION, "brown", modern=True, matrices=12),
        TrainedKind("p-anneal", "p-anneal", "relu", "alpha", ANNEALED_CONVENTION, "slate", matrices=7),
        # Costa et al. 2025 (arXiv 2506.03093); its encoder is its decoder, one feature after the other
        TrainedKind(
            "matching-pursuit", "pursuit", "pursuit", "k", AUXK_CONVENTION, "olive", tied=True, modern=True, auxk=True,
            reads_back=True, matrices=12,
        ),
        # a step of Gregor and LeCun 2010 before the choice of BatchTopK
        TrainedKind(
            "lista", "lista", "lista", "k", AUXK_CONVENTION, "green", modern=True, auxk=True, reads_back=True,
            matrices=12,
        ),
        # Korznikov et al. 2026 (arXiv 2602.14111): what of a result is owed to learned directions, what to the rest
        TrainedKind(
            "frozen-decoder", "batchtopk", "threshold", "k", AUXK_CONVENTION, "ink", modern=True, auxk=True, matrices=7,
            frozen="W_dec",
        ),
        TrainedKind(
            "frozen-encoder", "batchtopk", "threshold", "k", MSE, "ink", modern=True, matrices=7, frozen="W_enc"
        ),
    )
}  # fmt: skip
FAMILIES = {
    family.name: family
    for family in (
        BaselineFamily("neurons", "neurons", ("", "-pm"), "olive", None, complete=("-pm",)),
        BaselineFamily("random", "random directions", ("", TOPK), "ink", "fit_rows", per_width=None),
        BaselineFamily("pca", "PCA", ("", "-pm", TOPK), "green", "fit_rows", complete=("", "-pm")),
        BaselineFamily("ica", "ICA", ("", "-pm", TOPK), "purple", "ica_rows", complete=("", "-pm")),
        BaselineFamily("nmf", "NMF", ("",), "ink", "nmf_rows", marker="square"),
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

    >>> heading("topk"), heading("pca-pm"), heading("unheard")
    ('Trained', 'Baselines', 'Of a kind that this version of monolex does not know')
    """
    unknown = "Of a kind that this version of monolex does not know"
    return "Trained" if kind in KINDS else "Baselines" if kind in BASELINES else unknown
