"""Whether steps can be compiled here."""

from functools import cache
from importlib.util import find_spec

from monolex.runtime import log


@cache
def available() -> bool:
    """Whether there is a compiler that works, the extra ``monolex[fast]``."""
    if find_spec("numba") is None:
        return False
    try:
        import numba  # noqa: F401 (a version of its own mind about numpy's says so here)
    except ImportError as error:
        log.warning("numba is installed but cannot be used, so training steps are not compiled: %s", error)
        return False
    return True
