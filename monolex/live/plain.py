"""Answers as plain JSON values."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """``value`` with every record as a mapping of its fields and every tuple as a list, as JSON has them.

    >>> from monolex.live.reading import ActiveFeature
    >>> plain((ActiveFeature(17, 2.5, 1.0), None))
    [{'feature': 17, 'value': 2.5, 'share': 1.0}, None]
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    assert value is None or isinstance(value, str | int | float), f"{type(value).__name__} is no value of JSON"
    assert not isinstance(value, float) or math.isfinite(value), "JSON has no NaN and no infinity"
    return value
