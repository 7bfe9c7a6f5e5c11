"""Packed rows of tokens."""

import hashlib
from dataclasses import dataclass

from jaxtyping import Bool, Int32
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows of tokens; all three tensors have one shape."""

    tokens: Int32[Tensor, "rows context"]
    """Token ids."""
    docs: Int32[Tensor, "rows context"]
    """Document of every token, numbered over both splits in reading order; -1 at padding."""
    keep: Bool[Tensor, "rows context"]
    """Tokens to learn from: in the position slice, in a wanted role, no padding."""

    def __len__(self) -> int:
        return len(self.tokens)

    def where(self, chosen: Bool[Tensor, "rows"]) -> "Rows":
        """The ``chosen`` rows, in order."""
        return Rows(self.tokens[chosen], self.docs[chosen], self.keep[chosen])

    @property
    def context_length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Kept tokens."""
        return int(self.keep.sum())

    @property
    def documents(self) -> int:
        """Documents with a kept token."""
        return len(self.docs[self.keep].unique())


def rows_digest(*splits: Rows) -> str:
    """SHA-256 of tokens, documents and kept places, in hexadecimal."""
    digest = hashlib.sha256()
    for rows in splits:
        for tensor in (rows.tokens, rows.docs, rows.keep):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
