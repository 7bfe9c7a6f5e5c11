"""The check of arrays is on in tests, here and in every process of them, and can be turned off for one."""

import jaxtyping
import numpy as np
import pytest
import torch
from array_types import holds_array
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from monolex.causal.prompts.behaviour import kl
from monolex.config import require
from monolex.interp.records import Failure, Fragment


def test_a_wrong_shape_or_type_is_seen():
    with pytest.raises(jaxtyping.TypeCheckError, match="vocab=3"):
        kl(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(jaxtyping.TypeCheckError, match="i64"):
        kl(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))


def test_nothing_is_seen_where_a_test_says_so(unchecked_arrays):
    assert kl(torch.zeros(2, 3), torch.zeros(2, 1)).tolist() == [0, 0]


def test_arrays_are_found_anywhere_in_an_annotation():
    assert holds_array(dict[str, tuple[Float[Tensor, "rows"], ...]]) and holds_array(Float[NDArray, "rows"] | Failure)
    assert not holds_array(Tensor) and not holds_array(dict[str, list[int]]) and not holds_array("Float")


def test_what_has_no_arrays_is_left_as_it_is():
    assert hasattr(kl, "__wrapped__") and not hasattr(require, "__wrapped__")
    with pytest.raises(jaxtyping.TypeCheckError):
        Fragment(doc=1, row=2, tokens=(3,), texts=(" a",), activations=np.zeros((1, 1), np.int64))
