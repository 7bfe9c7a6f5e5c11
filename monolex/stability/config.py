"""What is asked of the features that come back under other seeds, and of those that do not; needs no torch."""

from dataclasses import dataclass

from monolex.config import require, unhashed


@dataclass(frozen=True)
class StabilityConfig:
    """Features that reappear under other seeds beside those that do not: how large, how explainable, what for."""

    dictionaries: tuple[str, ...] = ()
    """Dictionaries that have other seeds, or patterns of them; left out: the first seed of every recipe."""
    stable: float = 0.75
    """Features that reappear in at least this share of the other seeds are stable."""
    unstable: float = 0.25
    """Features that reappear in at most this share of them are unstable."""
    sample: int = 60
    """Features of either group that are ablated, at random among those active at least ten times."""
    occurrences: int = 16
    """Tokens on which each of them is ablated, of as many documents as there are."""
    rows: int = 10_000
    """Held-out activations on which the reconstruction is measured without the features of a group."""
    scores: tuple[str, ...] = ()
    """Scores whose features are compared too: names of `[score.NAME]`; left out: none."""
    stability_seed: int = 0
    """Seed of the sample, the occurrences and the bootstrap."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    level: float = 0.95
    """Coverage of the intervals."""
    batch_tokens: int = unhashed(8192)
    """Tokens in a forward pass."""
    stability_device: str = unhashed("auto")
    """Where the model runs."""

    @property
    def folder_name(self) -> str:
        """Of its artefact, where none is given."""
        return "seeds"

    def __post_init__(self) -> None:
        for name in ("dictionaries", "scores"):
            value = getattr(self, name)
            require(not isinstance(value, str), f"{name} = {value!r} is one text: give a list, [{value!r}]")
        require(
            0 <= self.unstable < self.stable <= 1,
            f"unstable = {self.unstable} and stable = {self.stable}: give shares, the first below the second",
        )
        for name, least in (("sample", 2), ("occurrences", 1), ("rows", 2), ("resamples", 1), ("batch_tokens", 1)):
            require(getattr(self, name) >= least, f"{name} = {getattr(self, name)}: give at least {least}")
        require(self.stability_seed >= 0, f"stability_seed = {self.stability_seed}: a seed cannot be negative")
        require(0 < self.level < 1, f"level = {self.level}: give a coverage in (0, 1)")
