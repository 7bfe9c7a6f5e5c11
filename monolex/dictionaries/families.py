"""How each family of baselines is built: its fit once, then the kinds that are views of it.

:data:`BUILDERS` has one for every row of :data:`monolex.kinds.FAMILIES`; a builder returns what the config asks for of
its family, by name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monolex import runtime
from monolex.config import BaselineConfig
from monolex.dictionaries import axes, nmf
from monolex.dictionaries.axes import ActivationRows, Axes, Ica
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.dictionaries.nmf import Components
from monolex.kinds import FAMILIES

SIGN_ROWS = 20_000
SCALAR_ROWS = 8192
"""One number is fitted to that many times d_in values; more rows change its fourth digit."""


def _neurons(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    eye = torch.eye(reader.d_in)
    fitted = {}
    if "neurons" in config.kinds:
        fitted["neurons"] = _dictionary(reader, "neurons", "relu", eye, eye)
    if "neurons-pm" in config.kinds:
        both = torch.cat([eye, -eye])
        fitted["neurons-pm"] = _dictionary(reader, "neurons-pm", "relu", both, both)
    return fitted


def _random(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    """Unit Gaussian directions, not centred (as the paper's), read with a ReLU or the top k.

    Overlapping directions reconstruct the right shape at the wrong size, so one least-squares scalar stands on the
    decoder of each; the directions themselves stay as drawn.
    """
    shape = (FAMILIES["random"].directions(reader.d_in, config.ratio), reader.d_in)
    directions = torch.randn(shape, generator=runtime.generator("random", config.baseline_seed, reader.site))
    directions = directions / directions.norm(dim=1, keepdim=True)
    unscaled = {}
    if "random" in config.kinds:
        unscaled["random"] = _dictionary(reader, "random", "relu", directions, directions)
    if "random-topk" in config.kinds:
        for k in config.ks or ():
            unscaled[f"random-topk-k{k}"] = _dictionary(reader, "random-topk", "topk", directions, directions, k=k)
    rows = axes.sample(reader, min(SCALAR_ROWS, config.fit_rows), config.baseline_seed)
    scales = least_squares_scales(rows.split(2048), list(unscaled.values()))
    recipe = {"seed": config.baseline_seed, "rows": len(rows)}
    return {
        name: Dictionary(
            replace(drawn.config, recipe={**recipe, "scale": scale}), drawn.weights | {"W_dec": drawn.W_dec * scale}
        )
        for (name, drawn), scale in zip(unscaled.items(), scales, strict=True)
    }


def least_squares_scales(chunks: Iterable[Float[Tensor, "_rows d_in"]], dictionaries: list[Dictionary]) -> list[float]:
    """For each dictionary the s that minimises ``‖x - s·reconstruct(x)‖²`` over the rows (1 if none reconstructs)."""
    inner = torch.zeros(len(dictionaries), dtype=torch.float64)
    energy = torch.zeros_like(inner)
    for x in chunks:
        for i, dictionary in enumerate(dictionaries):
            guess = dictionary.reconstruct(x)
            inner[i] += (x * guess).sum(dtype=torch.float64)
            energy[i] += guess.square().sum(dtype=torch.float64)
    return torch.where(energy > 0, inner / energy, 1.0).tolist()


def _pca(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    of = axes.moments(axes.streamed(reader, config.fit_rows, "pca"))
    rows = axes.sample(reader, SIGN_ROWS, config.baseline_seed)
    return _axes_kinds(reader, "pca", axes.orient(axes.pca(of), rows), config, {"rows": of.rows})


def _ica(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    rows = axes.sample(reader, config.ica_rows, config.baseline_seed)
    runtime.log.info("ica %s: FastICA on %d rows of width %d", reader.site, *rows.shape)
    fit = axes.ica(rows, _sklearn_seed("ica", reader, config), config.ica_iterations)
    if not fit.converged:
        raise GivenUp(f"FastICA had not converged after ica_iterations = {fit.iterations} on {len(rows):,} rows")
    return _axes_kinds(reader, "ica", fit.axes, config, _iterated("ica", fit, len(rows), reader, config))


def _axes_kinds(
    reader: ActivationRows, family: str, fitted: Axes, config: BaselineConfig, recipe: dict[str, Any]
) -> dict[str, Dictionary]:
    """The signed, ± and top-k kinds of the same axes."""
    encoder, decoder = fitted.encoder, fitted.decoder
    both = torch.cat([encoder, -encoder]), torch.cat([decoder, -decoder])
    common = {"weights": {"centre": fitted.centre, "b_dec": fitted.centre}, "recipe": recipe}
    kinds = {}
    if family in config.kinds:
        kinds[family] = _dictionary(reader, family, "linear", encoder, decoder, **common)
    if f"{family}-pm" in config.kinds:
        kinds[f"{family}-pm"] = _dictionary(reader, f"{family}-pm", "relu", *both, **common)
    if f"{family}-topk" in config.kinds:
        for k in config.ks or ():
            kind = f"{family}-topk"
            kinds[f"{kind}-k{k}"] = _dictionary(reader, kind, "topk", *both, k=k, **common)
    return kinds


def _nmf(reader: ActivationRows, config: BaselineConfig) -> dict[str, Dictionary]:
    rows = axes.sample(reader, config.nmf_rows, config.baseline_seed)
    runtime.log.info("nmf %s: %d components of %d rows", reader.site, config.nmf_features, len(rows))
    components = nmf.fit(rows, config.nmf_features, _sklearn_seed("nmf", reader, config))
    positive, negative = components.rows.chunk(2, dim=1)
    directions = positive - negative
    recipe = _iterated("nmf", components, len(rows), reader, config)
    # the codes never read W_enc: it is there for whoever compares encoders
    weights = {"H": components.rows}
    return {"nmf": _dictionary(reader, "nmf", "nmf", directions, directions, recipe=recipe, weights=weights)}


def _iterated(
    family: str, fit: Ica | Components, rows: int, reader: ActivationRows, config: BaselineConfig
) -> dict[str, Any]:
    """The recipe of an iterative fit; one that ran out of iterations is said, not hidden."""
    if not fit.converged:
        runtime.log.warning("%s %s stopped unconverged after %d iterations", family, reader.site, fit.iterations)
    return {
        "rows": rows,
        "seed": config.baseline_seed,
        "converged": fit.converged,
        "iterations": fit.iterations,
    }


def _sklearn_seed(family: str, reader: ActivationRows, config: BaselineConfig) -> int:
    generator = runtime.generator(family, config.baseline_seed, reader.site)
    return int(torch.randint(2**31 - 1, (), generator=generator))


def _dictionary(
    reader: ActivationRows,
    kind: str,
    activation: str,
    encoder: Tensor,
    decoder: Tensor,
    *,
    k: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Dictionary:
    """A dictionary without biases and centre but those among ``weights``."""
    d_sae, d_in = encoder.shape
    zeros = torch.zeros(d_in)
    plain = {"W_enc": encoder, "b_enc": torch.zeros(d_sae), "centre": zeros, "W_dec": decoder, "b_dec": zeros}
    config = DictionaryConfig(
        kind=kind,
        activation=activation,
        d_in=d_in,
        d_out=d_in,
        d_sae=d_sae,
        k=k,
        site=reader.site,
        model=reader.model["name"],
        model_fingerprint=reader.model["fingerprint"],
        recipe=dict(recipe or {}),
    )
    # own memory for every weight: safetensors refuses tensors that share it
    separate = {n: w.to(torch.float32, copy=True).contiguous() for n, w in {**plain, **(weights or {})}.items()}
    return Dictionary(config, separate)


class GivenUp(Exception):
    """A fit that came to nothing within its budget; the message says why."""


Builder = Callable[[ActivationRows, BaselineConfig], dict[str, Dictionary]]
BUILDERS: dict[str, Builder] = {"neurons": _neurons, "random": _random, "pca": _pca, "ica": _ica, "nmf": _nmf}
