"""Answers as plain JSON values: records of every room, arrays and paths among them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def as_json(value: Any) -> Any:
    """``value`` as JSON holds it: records are objects, tuples and arrays lists, and a number that is none is null.

    >>> from monolex.stats import Estimate
    >>> as_json((Estimate(0.5, None, float("nan"), 3, "rows"), None))
    [{'value': 0.5, 'low': None, 'high': None, 'n': 3, 'over': 'rows', 'reason': ''}, None]
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
