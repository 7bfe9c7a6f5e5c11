"""Which dictionaries a run will make, by name: a pattern that fits none of them is refused before hours of work."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from monolex.errors import UserError, nearest
from monolex.kinds import TOPK
from monolex.model.sites import KINDS as SITE_KINDS
from monolex.run_toml import RunConfig
from monolex.training.members import members

FIELDS = ("dictionaries", "exact")
"""Of configurations, what holds names of dictionaries or patterns of them."""
WIDE = 2**20
"""A width that takes every k: names do not tell widths."""
ANY_K = "k*"
"""In place of the k that a baseline gets from an L0 that is not measured yet."""


def require_fitting(run: RunConfig) -> None:
    """Refuse patterns in the tables of a run that no dictionary of it will fit.

    Patterns that say more than a name (a site, a step of training, what a transcoder writes) are left to the stages
    that read them.

    Raises:
        UserError: as said.
    """
    names = list(dict.fromkeys(planned_names(run)))
    for verb, tables in run.tables.items():
        for name, config in tables.items():
            for field in FIELDS:
                patterns = getattr(config, field, ())
                for pattern in patterns if isinstance(patterns, tuple) else ():
                    if _more_than_a_name(pattern) or any(_fits(planned, pattern) for planned in names):
                        continue
                    raise UserError(
                        f"{field} = {pattern!r} of [{verb}{'.' * bool(name)}{name}]: the run makes none like it; "
                        f"{nearest(pattern, names)}"
                    )


def planned_names(run: RunConfig) -> Iterator[str]:
    """Names of the model's dictionaries, whatever their site; of baselines at an L0 with :data:`ANY_K`."""
    for config in run.tables["train"].values():
        for member in members(config, {"resid_post.0": WIDE}, {config.target_of("resid_post.0"): WIDE}):
            yield member.name
    for config in run.tables["baselines"].values():
        for kind in config.kinds:
            yield f"{kind}-{ANY_K}" if kind.endswith(TOPK) else kind


def _more_than_a_name(pattern: str) -> bool:
    kind = pattern.partition(".")[0]
    return any(sign in pattern for sign in ("/", "@", "-to-")) or kind in SITE_KINDS


def _fits(planned: str, pattern: str) -> bool:
    """Whether a name fits; one of an unknown k fits if it does with a number of the pattern for it, or with any."""
    if not planned.endswith(ANY_K):
        return fnmatchcase(planned, pattern)
    numbers = (*re.findall(r"\d+", pattern), "0")
    return any(fnmatchcase(planned.removesuffix("*") + number, pattern) for number in numbers)
