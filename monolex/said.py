"""What a verb has to say, printed as text or with ``--json`` as one JSON value."""

import functools
import inspect
import json as json_format
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from monolex.ranks import here

JSON_HELP = "Print one JSON value instead of text."


class VerbAnswer(NamedTuple):
    """An answer in both forms; only the one that is printed is made."""

    lines: Callable[[], Iterable[str]]
    """As text."""
    data: Callable[[], Any]
    """As plain values, or what :func:`as_json` makes such."""
    code: int = 0
    """The exit code."""


def answering(verb: Callable[..., VerbAnswer]) -> Callable[..., int]:
    """A verb that prints its answer, with the flag ``--json``; it gives the exit code. Its attribute is ``answers``."""

    @functools.wraps(verb)
    def printed(*args: Any, json: bool = False, **kwargs: Any) -> int:
        answer = verb(*args, **kwargs)
        if here.rank() > 0:
            return answer.code
        if json:
            say_json(answer.data())
        else:
            for line in answer.lines():
                say(line)
        return answer.code

    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    signature = inspect.signature(verb)
    parameters = [*signature.parameters.values(), flag]
    about = inspect.cleandoc(verb.__doc__ or "")
    # the parser of the command line would read flags and help of what is wrapped, which has no --json
    del printed.__dict__["__wrapped__"]
    printed.__dict__["answers"] = verb
    printed.__dict__["__signature__"] = signature.replace(parameters=parameters, return_annotation=int)
    printed.__annotations__ = {**verb.__annotations__, "json": bool, "return": int}
    printed.__doc__ = f"{about}\n    json: {JSON_HELP}"
    return printed


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print a value as JSON on one line, in ASCII, which every stream can carry."""
    from monolex.answers import as_json

    say(json_format.dumps(as_json(value), allow_nan=False))
