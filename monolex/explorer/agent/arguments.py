"""The arguments of a tool as JSON Schema, and an agent's arguments as what the tool takes, refused in one sentence."""

import ast
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from monolex.errors import UserError, nearest

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def schema(question: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass of arguments, its strings as descriptions."""
    return _model(question).model_json_schema()


def read(question: type, arguments: Mapping[str, Any]) -> Any:
    """The dataclass that some arguments are.

    Raises:
        UserError: one of them is missing, unknown, or of another type; or as the dataclass says.
    """
    model = _model(question)
    try:
        json.dumps(arguments, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("an argument holds half of a character (a surrogate): give whole ones") from error
    try:
        values = model.model_validate(dict(arguments))
    except ValidationError as error:
        raise UserError(_sentence(error, list(model.model_fields))) from error
    return question(**{name: getattr(values, name) for name in model.model_fields})


def _sentence(error: ValidationError, known: list[str]) -> str:
    """The first thing that is wrong; what was said is not repeated, it may be anything."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(_printable(str(part)) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place} is no argument of this tool; {nearest(place, known) if known else 'it takes none'}"
    if first["type"] == "missing":
        return f"{place} is missing: give it"
    return f"{place}: {_printable(first['msg'][:1].lower() + first['msg'][1:])}"


def _printable(text: str) -> str:
    """A text on one line without halves of characters."""
    return re.sub(r"[\ud800-\udfff\x00-\x1f\x7f]", "?", text)[:200]


@lru_cache
def _model(question: type) -> type[BaseModel]:
    assert is_dataclass(question), "arguments are a dataclass"
    about, hints = _strings(question), get_type_hints(question)
    columns: dict[str, Any] = {}
    for field in fields(question):
        default = ... if field.default is MISSING else field.default
        columns[field.name] = (hints[field.name], Field(default, description=about[field.name]))
    return create_model(question.__name__, __config__=STRICT, **columns)


def _strings(question: type) -> dict[str, str]:
    """The string below every field, of a dataclass and of those that it extends."""
    said: dict[str, str] = {}
    for cls in reversed([each for each in question.__mro__ if is_dataclass(each)]):
        (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
        for field, string in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(string, ast.Expr):
                said[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(string.value)).replace("\n", " ")
    return said
