"""What a saved dictionary says of itself: what it is, and how it was trained."""

import math
from collections.abc import Mapping
from typing import Any

from monolex.dictionaries.base import DictionaryConfig
from monolex.kinds import KINDS, THRESHOLDED
from monolex.train_config import TrainConfig
from monolex.training.members import SweepMember
from monolex.training.optim import Recipe


def described(
    member: SweepMember, chosen: Recipe, config: TrainConfig, threshold: float, scale: float, facts: Mapping[str, Any]
) -> DictionaryConfig:
    """The configuration of a member as it is now.

    ``threshold`` and ``scale`` are those of training; ``facts`` say how far it is: ``steps``, ``steps_done``,
    ``steps_before``, ``dead_after``, ``precision``, of JumpReLU its ``pressure``, and the model by name and fingerprint
    (``model``, ``model_fingerprint``).
    """
    kind = KINDS[member.kind]
    assert math.isfinite(threshold), (member, threshold)
    recipe = {
        "name": member.name,
        "alpha": member.alpha,
        "ratio": member.ratio,
        "seed": member.seed,
        "lr": member.lr,
        "preset": config.preset,
        "steps": facts["steps"],
        "steps_done": facts["steps_done"],
        "batch_size": config.batch_size,
        "rows_seen": facts["steps_done"] * config.batch_size,
        "data_seed": config.data_seed,
        "warmup": chosen.warmup,
        "decay": chosen.decay,
        "preprocess": chosen.preprocess,
        "scale": scale,
        "auxk": chosen.auxk,
        "decoder_rate": chosen.decoder_rate,
        "resamplings": config.resamplings,
        "dead_after": facts["dead_after"],
        "init": config.init,
        "precision": facts["precision"],
        "steps_before": facts["steps_before"],
    }
    if kind.sparsity == "k" and config.k_start is not None:
        recipe |= {"k_start": config.k_start, "anneal": config.anneal}
    if kind.loss == "p-anneal":
        recipe |= {"p_end": config.p_end, "anneal": config.anneal}
    if member.skip:
        recipe["skip"] = True
    if member.prefixes:
        recipe["prefixes"] = list(member.prefixes)
    if kind.loss == "jumprelu":
        recipe["pressure"] = facts["pressure"]
    return DictionaryConfig(
        kind=member.kind,
        activation=kind.activation,
        d_in=member.d_in,
        d_out=member.d_out,
        d_sae=member.d_sae,
        k=member.k,
        threshold=threshold / scale if kind.activation in THRESHOLDED else None,
        site=member.site,
        target=member.target,
        model=facts["model"],
        model_fingerprint=facts["model_fingerprint"],
        loss_convention=kind.convention,
        recipe=recipe,
    )
