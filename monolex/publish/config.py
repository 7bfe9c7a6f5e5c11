"""What is published of a run, and how what others wrote is taken in; needs no torch."""

from dataclasses import dataclass
from typing import Literal

from monolex.config import require, unhashed

Format = Literal["neuronpedia", "neuron-explainer", "delphi"]


@dataclass(frozen=True)
class PublishConfig:
    """Which features, in which format."""

    format: Format = "neuronpedia"
    """`neuronpedia`: SAEDashboard's batch-N.json with explanations beside them; `neuron-explainer`: records and
    simulation results of explained features; `delphi`: explanations, and a cache of activations."""
    dictionaries: tuple[str, ...] = ()
    """SITE/NAME, SITE, NAME, or a pattern of one of them; left out: every dictionary whose evidence was gathered
    (`neuronpedia`) or whose features were explained."""
    features: tuple[int, ...] = ()
    """Numbers of features; left out: all."""
    explanations: tuple[str, ...] = ()
    """Names of explanations of the run; left out: all that there are."""
    explainers: tuple[str, ...] = ()
    """Only what these explainers said; left out: all of them."""
    groups: tuple[Literal["top", "quantile", "near_zero", "random", "inactive"], ...] = (
        "top",
        "quantile",
        "near_zero",
        "random",
        "inactive",
    )
    """neuronpedia: which contexts; those of `top quantile` take two thirds of the room of all."""
    window: int = 0
    """neuronpedia: tokens of a context around its strongest; 0 leaves contexts whole."""
    vectors: bool = True
    """neuronpedia: with the decoder direction of every feature, by which `monolex import` knows the dictionary again;
    some 2 kB a feature in 576 dimensions, compressed."""
    logits: bool = True
    """neuronpedia: with the histogram of every feature's direct logits, for which the model is loaded."""
    latents: Literal["held_out", "train", "none"] = "held_out"
    """delphi: the split whose activations are encoded into a cache."""
    publish_device: str = unhashed("auto")
    """Where the model and the dictionaries run."""

    def __post_init__(self) -> None:
        for name in ("dictionaries", "explanations", "explainers"):
            value = getattr(self, name)
            require(not isinstance(value, str), f"{name} = {value!r} is one text: give a list, [{value!r}]")
        require(self.window >= 0, f"window = {self.window}: give a number of tokens, or 0 for all of them")
        for number in self.features:
            require(number >= 0, f"features = {number}: features are numbered from 0")


@dataclass(frozen=True)
class ImportConfig:
    """Of which dictionary the files are, and what they are called."""

    dictionary: str = ""
    """SITE/NAME of the run's dictionary whose features the files are about."""
    name: str = ""
    """Folder in RUN/imported; left out: the dictionary's name and the first file's."""
    author: str = ""
    """Who explained, where the files do not say."""
    unproved: bool = False
    """Take in what has no directions, logits or activations to show that its numbers are of this dictionary."""

    def __post_init__(self) -> None:
        require(self.dictionary != "", "dictionary is missing: give --dictionary SITE/NAME of the run")
        require(
            not set(self.name) & set('/\\<>:"|?*') and not self.name.startswith("."),
            f"name = {self.name!r} is no name of a folder: leave out slashes and signs",
        )
