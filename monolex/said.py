"""What a verb has to say, printed as text or with ``--json`` as one JSON value."""

import functools
import inspect
import json as json_format
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import tyro

JSON_HELP = "Print one JSON value instead of text."


class VerbAnswer(NamedTuple):
    """An answer in both forms; only the one that is printed is made."""

    lines: Callable[[], Iterable[str]]
    """As text."""
    data: Callable[[], Any]
    """As plain values, or what :func:`plain` makes such."""
    code: int = 0
    """The exit code."""


def answering(verb: Callable[..., VerbAnswer]) -> Callable[..., int]:
    """A verb that prints its answer, with the flag ``--json``; it gives the exit code."""

    @functools.wraps(verb)
    def printed(*args: Any, json: bool = False, **kwargs: Any) -> int:
        answer = verb(*args, **kwargs)
        if json:
            say_json(answer.data())
        else:
            for line in answer.lines():
                say(line)
        return answer.code

    hint = Annotated[bool, tyro.conf.arg(help=JSON_HELP)]
    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
    signature = inspect.signature(verb)
    parameters = [*signature.parameters.values(), flag]
    printed.__dict__["__signature__"] = signature.replace(parameters=parameters, return_annotation=int)
    printed.__annotations__ = {**verb.__annotations__, "json": hint, "return": int}
    return printed


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print a value as JSON on one line, in ASCII, which every stream can carry."""
    from monolex.explorer.page import plain

    say(json_format.dumps(plain(value), allow_nan=False))
