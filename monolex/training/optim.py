"""Recipes and schedules: which learning rate a member has at a step, and what else a preset decides.

A preset is a row of plain numbers, resolved once per kind (:func:`recipe`), so that nothing downstream asks for the
preset's name. The modern kinds of :mod:`monolex.kinds` always use a decoder bias, centring at the start and unit rows;
under the paper's presets they take only its learning rate and flat schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from monolex.kinds import KINDS
from monolex.train_config import Preprocess, Preset, TrainConfig
from monolex.training.records import Params

AUXK = 1 / 32
DECODER_RATE = 5.0
"""How much faster than the rest a decoder goes whose rows are kept unit and are no encoder's. Held-out FVU is 2 to 17 %
lower than at the rest's own rate, at rates from 3e-4 to 3e-3; 10 is better at the low end and worse at the high one
(docs/log.md)."""
BETAS = (0.9, 0.999)
"""Adam's, of every member."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's names of what it remembers of a parameter."""
LONGEST_DEAD = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What a preset decides for the members of one kind."""

    lr: float
    """Learning rate, at 2^14 features if it is scaled."""
    scaled: bool
    """Whether the learning rate goes with 1 / sqrt(d_sae / 2^14)."""
    warmup: float
    """Fraction of the steps over which the learning rate rises."""
    decay: float
    """Last fraction of the steps over which it falls to 0."""
    bias: bool
    """A learned decoder bias, subtracted before encoding, that starts at the geometric median of a sample of rows."""
    unit: bool
    """Set decoder rows back to unit length after every step, which leaves the function as it is but keeps the turn of
    a row per step from shrinking as its stored length grows."""
    preprocess: Preprocess
    """What is done to activations before training."""
    auxk: float = 0.0
    """Weight of the auxiliary loss of dead features, of the kinds that have one."""
    decoder_rate: float = 1.0
    """Learning rate of the decoder, as a multiple of that of the rest."""


# The released code of the paper writes Adam's new step counter into a copy, so the bias correction stays at that of
# step 1: after an early spike the step settles at sqrt(0.001) / 0.1 = 0.32 of the nominal rate. `paper-effective` is a
# correct Adam at the rate that code really had.
RECIPES: dict[Preset, Recipe] = {
    "paper": Recipe(lr=1e-3, scaled=False, warmup=0.0, decay=0.0, bias=False, unit=False, preprocess="none"),
    "paper-effective": Recipe(
        lr=3.2e-4, scaled=False, warmup=0.0, decay=0.0, bias=False, unit=False, preprocess="none"
    ),
    "modern": Recipe(lr=2e-4, scaled=True, warmup=0.05, decay=0.2, bias=True, unit=True, preprocess="scale"),
}


def recipe(config: TrainConfig, kind: str) -> Recipe:
    """The preset as it holds for ``kind``, with the fields that ``config`` overrides."""
    base = RECIPES[config.preset]
    warmup = base.warmup if config.warmup is None else config.warmup
    decay = base.decay if config.decay is None else config.decay
    preprocess = config.preprocess or base.preprocess
    base = replace(base, warmup=warmup, decay=decay, preprocess=preprocess)
    row = KINDS[kind]
    auxk = 0.0 if not row.auxk else AUXK if config.auxk is None else config.auxk
    faster = DECODER_RATE if config.decoder_rate is None else config.decoder_rate
    decoder_rate = faster if config.acts("decoder_rate", kind) else 1.0
    return replace(
        base, bias=base.bias or row.modern, unit=base.unit or row.modern, auxk=auxk, decoder_rate=decoder_rate
    )


def learning_rate(chosen: Recipe, d_sae: int) -> float:
    """The preset's learning rate for a dictionary of ``d_sae`` features (law of Gao et al. 2024, section 3)."""
    return chosen.lr / (d_sae / 2**14) ** 0.5 if chosen.scaled else chosen.lr


def dead_after(config: TrainConfig, steps: int) -> int:
    """Activations without firing after which a feature counts as dead in a run of ``steps``."""
    # A fixed number would keep AuxK out of every run that is shorter.
    return config.dead_after or min(max(steps * config.batch_size // 10, 1), LONGEST_DEAD)


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """Factor of the learning rate at ``step`` (from 0): linear rise, 1, linear fall that reaches 0 after the last."""
    rising, falling = round(warmup * steps), round(decay * steps)
    up = (step + 1) / rising if step < rising else 1.0
    down = (steps - step) / falling if step >= steps - falling else 1.0
    return min(up, down)


def adam(members: Sequence[Params]) -> torch.optim.Adam:
    """One fused Adam (betas 0.9 and 0.999, eps 1e-8) with a group, hence a learning rate, for the decoder of every
    member and one for the rest; :func:`set_rate` sets both."""
    groups = [
        {"params": [t for name, t in params.items() if t.requires_grad and (name == "W_dec") == decoder]}
        for params in members
        for decoder in (False, True)
    ]
    # torch refuses one of nothing, which a rank without a member has
    return torch.optim.Adam(groups or [torch.zeros(0)], lr=0.0, betas=BETAS, eps=1e-8, fused=True)


def set_rate(optimiser: torch.optim.Adam, number: int, lr: float, decoder_rate: float) -> None:
    """The learning rate of a member's next step, and that of its decoder in it."""
    rest, decoder = optimiser.param_groups[2 * number : 2 * number + 2]
    rest["lr"], decoder["lr"] = lr, lr * decoder_rate
