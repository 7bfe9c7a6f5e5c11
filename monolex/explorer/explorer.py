"""Several runs at once, and where a feature is among them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

from monolex.config import require
from monolex.errors import nearest
from monolex.explorer.directions import Directions
from monolex.explorer.models import LiveRuns
from monolex.explorer.run import SHORT, ExploredRun, IndexedDictionary, NotThere, slugs


class PlacedDictionary(NamedTuple):
    """A dictionary and its run."""

    run: ExploredRun
    """Which run."""
    dictionary: IndexedDictionary
    """Which dictionary of it."""


@final
class Explorer:
    """The runs that a server shows; with ``writable`` false nothing is ever written into them.

    Raises:
        UserError: no run, a run that is given twice, or one that is damaged.
    """

    def __init__(self, folders: Sequence[Path], *, writable: bool = True) -> None:
        require(len(folders) > 0, "RUN is missing: give the folder of a run")
        real = [folder.resolve() for folder in folders]
        twice = [str(folder) for folder in folders if real.count(folder.resolve()) > 1]
        require(not twice, f"RUN = {twice[:1]} is given twice; give it once")
        named = zip(slugs(list(folders)), folders, strict=True)
        self.runs = {slug: ExploredRun(folder, slug, writable=writable) for slug, folder in named}
        owners: dict[str, ExploredRun] = {}
        for run, dictionary in self.places():
            other = owners.setdefault(dictionary.hash, run)
            require(
                other is run,
                f"RUN = {str(run.folder)!r} is a copy of {str(other.folder)!r} (both hold the same "
                f"{dictionary.title}): open one of them at a time",
            )
        self.directions = Directions()
        self.live = LiveRuns()

    def run(self, slug: str) -> ExploredRun:
        """The run that is called so in addresses.

        Raises:
            NotThere: there is none.
        """
        if slug not in self.runs:
            raise NotThere(f"run = {slug!r} is not open here; {nearest(slug, list(self.runs))}")
        return self.runs[slug]

    def place(self, key: str) -> PlacedDictionary:
        """The dictionary of a hash and its run; where several runs have it, the first that gathered its evidence.

        Raises:
            NotThere: no run has it.
        """
        places = [place for place in self.places() if len(key) >= SHORT and place.dictionary.hash.startswith(key)]
        if not places:
            raise NotThere(f"{key!r} is the hash of no dictionary here; it may have been made again since")
        return max(places, key=lambda place: place.dictionary.gathered)

    def places(self) -> Iterable[PlacedDictionary]:
        """All dictionaries, run by run."""
        return (
            PlacedDictionary(run, dictionary) for run in self.runs.values() for dictionary in run.dictionaries.values()
        )

    def refresh(self) -> None:
        """Read anew what was made since."""
        for run in self.runs.values():
            run.refresh()

    @property
    def titles(self) -> Mapping[str, str]:
        """What every gathered dictionary is called, by its key: with its run where there are several."""
        several = len(self.runs) > 1
        return {d.key: f"{run.slug}: {d.title}" if several else d.title for run, d in self.places() if d.gathered}
