"""How a sweep is split over ranks: members, rows of a batch, features of a dictionary.

Of a job of ``groups · data_ranks · feature_ranks`` ranks, every group has members of its own; in a group,
``feature_ranks`` ranks beside each other (which are on one machine where they fit) hold the features of a dictionary by
ranges, and ``data_ranks`` of those sets see another part of the batch each.
"""

from typing import NamedTuple

from monolex.config import require
from monolex.ranks.group import ALONE, RankGroup
from monolex.ranks.here import size
from monolex.ranks.shares import share
from monolex.ranks.world import group, world


class Mesh(NamedTuple):
    """Where this rank stands."""

    groups: int = 1
    """Into which the members are dealt."""
    number: int = 0
    """Of this rank's group."""
    group: RankGroup = ALONE
    """Ranks with the same members."""
    rows: RankGroup = ALONE
    """Of those the ones with the same features, each with its part of the batch."""
    features: RankGroup = ALONE
    """Of those the ones with the same part of the batch, each with its features."""
    every: RankGroup = ALONE
    """All that train the sweep."""

    def owned(self, count: int) -> range:
        """Which of ``count`` features this rank has."""
        return share(count, self.features.size, self.features.index)


def mesh(data_ranks: int, feature_ranks: int) -> Mesh:
    """The mesh of this job; called by all ranks.

    Raises:
        UserError: the ranks that torchrun started are no multiple of what a member takes.
    """
    ranks, each = size(), data_ranks * feature_ranks
    require(
        ranks % each == 0,
        f"data_ranks = {data_ranks} times feature_ranks = {feature_ranks} is {each} ranks a member, and "
        + (f"there are {ranks}" if ranks > 1 else "this is one process")
        + f"; start it by torchrun with a multiple of {each} processes, or lower them",
    )
    standing = Mesh(ranks // each, every=world())
    for number in range(ranks // each):
        first = number * each
        together = group(range(first, first + each))
        rows = [group(range(first + f, first + each, feature_ranks)) for f in range(feature_ranks)]
        features = [group(range(start, start + feature_ranks)) for start in range(first, first + each, feature_ranks)]
        if together is not None:
            (same_features,), (same_rows,) = (list(filter(None, groups)) for groups in (rows, features))
            standing = Mesh(ranks // each, number, together, same_features, same_rows, world())
    return standing
