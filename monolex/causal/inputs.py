"""What an experiment is about: dictionaries of a run (and of its control models) and features by name."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from monolex.artifact import MANIFEST, open_artifact
from monolex.config import require
from monolex.errors import UserError
from monolex.features.find import find
from monolex.features.listing import SUBJECT, Member, choose, control_runs, fits, members
from monolex.features.query import FindConfig
from monolex.sites import select

RESIDUAL = "resid_post.*"
DIGITS = 12


class Chosen(NamedTuple):
    """A dictionary and the model that it was learned from."""

    model: str
    """`subject`, or the control's name."""
    member: Member
    """The dictionary."""

    @property
    def key(self) -> str:
        """``MODEL/SITE/NAME``."""
        return f"{self.model}/{self.member.title}"


class Root(NamedTuple):
    """One feature of a dictionary."""

    member: Member
    """Its dictionary."""
    feature: int
    """Its number."""

    @property
    def key(self) -> str:
        """``SITE/NAME:NUMBER``, as it is asked for."""
        return f"{self.member.title}:{self.feature}"


def dictionaries(run: Path, sites: Sequence[str], names: Sequence[str], *, controls: bool) -> list[Chosen]:
    """The dictionaries of a run whose names fit ``names`` (all for none), site by site; with ``controls`` those of its
    control models too.

    ``sites`` left out means every site of the residual stream's blocks that has a dictionary.

    Raises:
        UserError: no run, or a name or site that fits nothing.
    """
    here = members(run)
    there = list(dict.fromkeys(member.site for member in here))
    wanted = select(sites or (RESIDUAL,), there, str(run))
    found = [Chosen(SUBJECT, member) for member in choose([m for m in here if m.site in wanted], names)]
    for home in control_runs(run) if controls else ():
        found += [
            Chosen(home.name, member)
            for member in members(home)
            if member.site in wanted and (not names or fits(member, names))
        ]
    return sorted(found, key=lambda one: wanted.index(one.member.site))


def roots(run: Path, features: Sequence[str]) -> list[Root]:
    """Features by ``SITE/NAME:NUMBER`` or ``SITE/NAME@TOKEN``, the one with the largest share on that token.

    Raises:
        UserError: none, not of this form, no such dictionary or feature, or none that is active on the token.
    """
    require(len(features) > 0, "features is empty: say which, as --features SITE/NAME:NUMBER")
    here = members(run)
    found = []
    for text in features:
        title, mark, what = _parts(text)
        (member,) = _one(here, title, text)
        if mark == "@":
            hits = find(run, FindConfig(on=what, dictionary=(member.title,), limit=1)).rows
            if not hits:
                raise UserError(f"features = {text!r}: no feature of {member.title} is mostly active on {what!r}")
            feature = hits[0].feature
        else:
            feature = int(what)
            if not feature < member.d_sae:
                raise UserError(f"features = {text!r}: {member.title} has features 0 to {member.d_sae - 1}")
        found.append(Root(member, feature))
    return found


def parents(run: Path, used: Sequence[Chosen], *, evidence: bool = False) -> dict[str, str]:
    """Content hashes of the run's activations and of the artefacts that the dictionaries lie in; with ``evidence`` that
    of the features' evidence too, if any was gathered."""
    there = evidence and (run / "features" / MANIFEST).exists()
    folders = {"activations": run / "activations"} | ({"features": run / "features"} if there else {})
    for one in used:
        source = one.member.folder.parents[1]
        folders[f"{one.model}.{source.parent.name}.{source.name}"] = source
    return {name: open_artifact(folder).content for name, folder in sorted(folders.items())}


def words(member: Member, feature: int, count: int = 3) -> str:
    """The tokens that a feature is most active on, where evidence was gathered."""
    if member.evidence is None:
        return ""
    with closing(member.store()) as store:
        query = "SELECT text FROM token JOIN vocabulary USING (token) WHERE feature = ? ORDER BY rank LIMIT ?"
        return " ".join(repr(text) for (text,) in store.rows(query, (feature, count)))


def _parts(text: str) -> tuple[str, str, str]:
    at, colon = text.find("@"), text.rfind(":")
    if at >= 0 and text[at + 1 :]:
        return text[:at], "@", text[at + 1 :]
    if colon >= 0 and text[colon + 1 :].isdecimal() and len(text) - colon < DIGITS:
        return text[:colon], ":", text[colon + 1 :]
    raise UserError(f"features = {text!r}: write SITE/NAME:NUMBER, or SITE/NAME@TOKEN")


def _one(here: Sequence[Member], title: str, text: str) -> list[Member]:
    fits = choose(here, (title,))
    if len(fits) > 1:
        raise UserError(f"features = {text!r}: {title!r} fits {len(fits)} dictionaries; write one as SITE/NAME")
    return fits
