"""What the verb asks for; importing this needs no torch."""

from dataclasses import dataclass

from monolex.config import require


@dataclass(frozen=True)
class ExportConfig:
    """What of a run is exported."""

    dictionaries: tuple[str, ...] = ("*",)
    """Patterns of names or of SITE/NAME; only dictionaries whose evidence was gathered are exported."""
    features: int | None = None
    """Of each dictionary the most interesting ones, so many, and those that are labelled, pinned, on the front page or
    named by an experiment; by default all."""
    embed: tuple[str, ...] = ()
    """SITE/NAME:NUMBER of features with a page of their own to stand in another; by default those that are labelled or
    pinned, and those on the front page."""

    def __post_init__(self) -> None:
        require(
            self.features is None or self.features > 0, f"features = {self.features}: give 1 or more, or none for all"
        )
