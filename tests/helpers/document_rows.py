"""What the evals' tests share: dictionaries built by hand, and rows in memory that know their documents."""

import torch
from torch import Tensor

from monolex.dictionaries.base import Dictionary, DictionaryConfig


class DocumentRows:
    """Rows of one site with document ids, served as a :class:`Reader` serves those of an artefact."""

    site = "resid_post.0"

    def __init__(self, rows: Tensor, docs: Tensor) -> None:
        self.rows, self._docs = rows, docs
        self.n_rows, self.d_in = rows.shape

    def docs(self, start: int, stop: int) -> Tensor:
        return self._docs[start:stop].int()

    def read(self, start: int, stop: int) -> Tensor:
        return self.rows[start:stop]


def make(
    w_enc: Tensor,
    w_dec: Tensor | None = None,
    *,
    activation: str = "relu",
    kind: str = "untied",
    b_enc: Tensor | None = None,
    b_dec: Tensor | None = None,
    centre: Tensor | None = None,
    k: int | None = None,
) -> Dictionary:
    """A dictionary of these weights; the decoder is the encoder and biases are zero unless given."""
    w_dec = w_enc.clone() if w_dec is None else w_dec
    (d_sae, d_in), d_out = w_enc.shape, w_dec.shape[1]
    config = DictionaryConfig(kind, activation, d_in, d_out, d_sae, k=k)
    weights = {
        "W_enc": w_enc,
        "W_dec": w_dec,
        "b_enc": torch.zeros(d_sae) if b_enc is None else b_enc,
        "b_dec": torch.zeros(d_out) if b_dec is None else b_dec,
        "centre": torch.zeros(d_in) if centre is None else centre,
    }
    return Dictionary(config, weights)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(d: int, seed: int = 0) -> Dictionary:
    """A full orthonormal basis with signed codes, as PCA's: its reconstruction is exact."""
    return make(torch.linalg.qr(noise(d, d, seed=seed)).Q, activation="linear", kind="pca")


def identity(d: int) -> Dictionary:
    """Codes are the activations themselves: its reconstruction is bit-exact."""
    return make(torch.eye(d), activation="linear", kind="neurons")


def constant(d: int, value: Tensor) -> Dictionary:
    """Never fires and always reconstructs ``value``."""
    return make(torch.zeros(1, d), b_dec=value)
