"""The one exception a user is meant to read, and the hint of its sentence."""

import difflib
from collections.abc import Sequence

HINTED = 20
"""Names in a hint, at most."""


class UserError(Exception):
    """Something the user can mend: one sentence that names the field, the value and the fix.

    The command line prints it without a traceback and exits with status 2. It is no ``ValueError`` because the
    argument parser would wrap those in a message of its own. Broken invariants are ``assert`` statements and keep
    their traceback.
    """


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for a name that does not exist: the nearest ones, else the first that do."""
    close = difflib.get_close_matches(name, known, 3, 0.4)
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    return f"there are {', '.join(known[:HINTED])}" + (
        f" and {len(known) - HINTED} more" if len(known) > HINTED else ""
    )
