"""What an experiment is about: features and dictionaries of a run by name, what they are made of, and their words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from monolex.artifact import MANIFEST, Manifest, json_bytes
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, choose, run_dictionaries, source_folders
from monolex.errors import UserError
from monolex.features.find import find
from monolex.features.known import open_store
from monolex.features.query import FindConfig
from monolex.model.language_model import LanguageModel
from monolex.model.sites import Site
from monolex.pieces import Piece, Work
from monolex.text.characters import quoted
from monolex.text.vocabulary import Texts

DIGITS = 12


class ChosenFeature(NamedTuple):
    """A feature that an experiment is about."""

    dictionary: RunDictionary
    """Its dictionary."""
    feature: int
    """Its number."""

    @property
    def key(self) -> str:
        """``SITE/NAME:NUMBER``, as it is asked for."""
        return f"{self.dictionary.title}:{self.feature}"


def chosen_features(run: Path, features: Sequence[str]) -> list[ChosenFeature]:
    """Features by ``SITE/NAME:NUMBER`` or ``SITE/NAME@TOKEN``, the one with the largest share on the token shown so.

    Raises:
        UserError: none, not of this form, no such dictionary or feature, or none that is active on the token.
    """
    require(len(features) > 0, "features is empty: say which, as --features SITE/NAME:NUMBER")
    listed = run_dictionaries(run)
    return [_chosen(run, listed, text) for text in features]


def _chosen(run: Path, listed: Sequence[RunDictionary], text: str) -> ChosenFeature:
    title, mark, what = _parts(text)
    fitting = choose(listed, (title,))
    if len(fitting) > 1:
        raise UserError(f"features = {text!r}: {title!r} fits {len(fitting)} dictionaries; write one as SITE/NAME")
    dictionary, d_sae = fitting[0], fitting[0].config.d_sae
    require(
        not dictionary.config.target,
        f"features = {text!r}: {dictionary.title} reconstructs {dictionary.config.target} from {dictionary.site}, so "
        "its features are no part of what it reads; choose one of an autoencoder",
    )
    if mark == ":":
        require(int(what) < d_sae, f"features = {text!r}: {dictionary.title} has features 0 to {d_sae - 1}")
        return ChosenFeature(dictionary, int(what))
    try:
        hits = find(run, FindConfig(on=what, dictionaries=(dictionary.title,), limit=1)).rows
    except UserError as error:
        raise UserError(f"features = {text!r}: {error}") from error
    require(bool(hits), f"features = {text!r}: no feature of {dictionary.title} is mostly active on {what!r}")
    return ChosenFeature(dictionary, hits[0].feature)


def named_sites(features: Sequence[str], harvested: Sequence[str]) -> dict[str, str]:
    """The site of every feature that is asked for by one, not by a pattern or by its dictionary's name alone.

    Raises:
        UserError: not of the form that :func:`chosen_features` reads, or a site that is not among the ``harvested``.
    """
    sites = {text: _parts(text)[0].rpartition("/")[0] for text in features}
    sites = {text: site for text, site in sites.items() if site and not set(site) & set("*?[")}
    for text, site in sites.items():
        stored = site in harvested or f"{Site.parse(site).kind}.*" in harvested
        require(stored, f"features = {text!r}: the harvest stores no {site}; it stores {', '.join(harvested)}")
    return sites


def used_folders(run: Path, used: Iterable[RunDictionary], *, evidence: bool = False) -> dict[str, Path]:
    """The run's activations and the artefacts that the dictionaries lie in, for
    :func:`~monolex.dictionaries.listing.parents`; with ``evidence`` that of their features too, if any was gathered."""
    gathered = evidence and (run / "features" / MANIFEST).exists()
    folders = {"activations": run / "activations"} | ({"features": run / "features"} if gathered else {})
    return folders | source_folders(used)


def words(dictionary: RunDictionary, feature: int, count: int = 3) -> str:
    """The tokens that a feature is most active on, where evidence was gathered."""
    if dictionary.evidence is None:
        return ""
    with closing(open_store(dictionary)) as store:
        query = "SELECT text FROM token JOIN vocabulary USING (token) WHERE feature = ? ORDER BY rank LIMIT ?"
        return " ".join(quoted(text) for (text,) in store.rows(query, (feature, count)))


def token_text(lm: LanguageModel) -> Callable[[int], str]:
    """What gives a token's number as people read it."""
    texts = Texts(lm)
    return lambda token: texts.of([token])[0][1]


def finish(
    work: Work,
    name: str,
    pieces: Mapping[str, Piece],
    used: Mapping[str, Iterable[RunDictionary]],
    *,
    size: int = 1,
    unit: str = "feature",
) -> Manifest:
    """Do a piece a feature, of ``size`` ``unit`` on the progress bar; they are the list ``name`` of ``KIND.json``.

    ``used`` are the dictionaries that each reads.
    """
    shared = {key: content for key, content in work.parents.items() if key in ("activations", "features")}
    needs = {piece: {**shared, **{d.key: d.content for d in dictionaries}} for piece, dictionaries in used.items()}
    entry = {name: list(work.done(pieces, sizes=dict.fromkeys(pieces, size), unit=unit, needs=needs).values())}
    return work.finish({f"{work.kind}.json": json_bytes(entry)}, {"features": list(pieces)})


def _parts(text: str) -> tuple[str, str, str]:
    at, colon = text.find("@"), text.rfind(":")
    if at >= 0 and text[at + 1 :]:
        return text[:at], "@", text[at + 1 :]
    if colon >= 0 and text[colon + 1 :].isdecimal() and len(text) - colon < DIGITS:
        return text[:colon], ":", text[colon + 1 :]
    raise UserError(f"features = {text!r}: write SITE/NAME:NUMBER, or SITE/NAME@TOKEN")
