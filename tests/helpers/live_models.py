"""Live models of tiny language models and random dictionaries."""

from pathlib import Path

import torch
from helpers import random_pairs, tiny
from torch import Tensor

from monolex.dictionaries.base import Dictionary
from monolex.dictionaries.listing import RunDictionary
from monolex.live.interventions import Intervention
from monolex.live.prompt import LivePrompt
from monolex.live.prompts import from_ids
from monolex.live.reading import Wanted
from monolex.live.session import LiveModel
from monolex.model.language_model import LanguageModel

SITES = ("resid_post.0", "resid_post.1")
FIRST, SECOND = "resid_post.0/topk", "resid_post.1/threshold"
BOTH = Wanted((FIRST, SECOND), 4)


def dictionaries(d_in: int = 32, scale: float = 0.3) -> dict[str, Dictionary]:
    """By title: one at each of two sites."""
    return {
        FIRST: random_pairs.dictionary(d_in, 48, "topk", seed=1, site=SITES[0], scale=scale),
        SECOND: random_pairs.dictionary(d_in, 40, "threshold", seed=2, site=SITES[1], scale=scale),
    }


def live_model(folder: Path, lm: LanguageModel, given: dict[str, Dictionary] | None = None, **bounds: int) -> LiveModel:
    """The dictionaries are written to ``folder`` and read from there, as those of a run."""
    records = []
    for number, (title, dictionary) in enumerate((given or dictionaries()).items()):
        home = folder / str(number)
        dictionary.save(home)
        records.append(RunDictionary("subject", *title.split("/"), home, dictionary.config))
    return LiveModel(lm, records, **bounds)


def random_prompt(live: LiveModel, length: int = 10, seed: int = 0) -> LivePrompt:
    return from_ids(live, tiny.tokens(1, length, seed)[0].tolist())


def codes(live: LiveModel, prompt: LivePrompt, title: str) -> Tensor:
    """Of a forward that knows nothing of what is kept."""
    dictionary = live.dictionary(title)
    return dictionary.weights.encode(tiny.read(live.lm, dictionary.site, torch.tensor([prompt.ids]))[0])


def firing(live: LiveModel, prompt: LivePrompt, title: str, position: int) -> list[int]:
    """The features that fire at a token, the strongest first."""
    row = codes(live, prompt, title)[position]
    return [feature for feature in row.argsort(descending=True).tolist() if row[feature] > 0]


def silent(live: LiveModel, prompt: LivePrompt, title: str) -> int:
    """A feature that fires nowhere."""
    return int((codes(live, prompt, title) > 0).any(0).int().argmin())


def usual_edits(live: LiveModel, prompt: LivePrompt) -> tuple[Intervention, ...]:
    """Some of every kind that act, at both sites."""
    a, b, *_ = firing(live, prompt, FIRST, 3)
    c, d, e, *_ = firing(live, prompt, SECOND, 4)
    return (
        Intervention(FIRST, a),
        Intervention(FIRST, b, "scale", 2.0),
        Intervention(SECOND, c, "swap", other=d),
        Intervention(SECOND, e, "add", 0.5, where="generated"),
    )
