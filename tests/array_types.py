"""What ``pytest`` checks of annotations at run time: every array's type and shape, in every call of the package.

jaxtyping's import hook (``--jaxtyping-packages`` in pyproject.toml) puts :func:`jaxtyped` around every function and
class, and :func:`checked` is what it checks with. Other annotations are pyright's affair: tests hand in fakes that only
behave like the type named.
"""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

_jaxtyped = jaxtyping.jaxtyped


def holds_array(hint: Any) -> bool:
    """Whether an annotation says something of an array, anywhere in it."""
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(holds_array, get_args(hint)))


def checked(function: Callable) -> Callable:
    """The function, its arrays checked by beartype."""
    arrays = {name: hint for name, hint in function.__annotations__.items() if holds_array(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)


def jaxtyped(*, typechecker: Callable) -> Callable[[Any], Any]:
    """jaxtyping's decorator for what has arrays (or a quoted annotation, which may) alone; the rest stays as it is.

    Its wrapper costs some microseconds a call even where there is nothing to check, a sixth of the time of all tests.
    """
    decorate = _jaxtyped(typechecker=typechecker)

    def decorated(thing: Any) -> Any:
        hints = getattr(thing, "__annotations__", {}).values()
        return decorate(thing) if any(isinstance(hint, str) or holds_array(hint) for hint in hints) else thing

    return decorated
