"""What ``pytest`` checks of annotations at run time: every array's type and shape, in every call of the package.

jaxtyping's import hook (``--jaxtyping-packages`` in pyproject.toml) puts :func:`checked` around every function. Other
annotations are pyright's affair: tests hand in fakes that only behave like the type named.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


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
