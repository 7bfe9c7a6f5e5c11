"""What models, sites and dictionaries are called where other tools keep them."""

import re

from monolex.dictionaries.listing import RunDictionary
from monolex.model.sites import Site


def model_id(title: str) -> str:
    """A model's name as it stands in an address.

    >>> model_id("SmolLM2-135M-Instruct (Q4_1)"), model_id("EleutherAI/pythia-70m-deduped")
    ('smollm2-135m-instruct-q4_1', 'pythia-70m-deduped')
    """
    return _plain(title.rpartition("/")[2]).lower() or "model"


def set_name(dictionary: RunDictionary) -> str:
    """A dictionary's name without its layer, which Neuronpedia puts in front: ``resid_post-tied-a0.01-r2-s0``."""
    return _plain(f"{Site.parse(dictionary.site).kind}-{dictionary.name}")


def source_id(dictionary: RunDictionary) -> str:
    """A dictionary's name with its layer in front."""
    return f"{layer(dictionary)}-{set_name(dictionary)}"


def layer(dictionary: RunDictionary) -> int:
    """Block index of the site that it reads."""
    return Site.parse(dictionary.site).layer


def folder_name(dictionary: RunDictionary) -> str:
    """Where a dictionary lies among those that are published: ``SITE/NAME``, without further slashes."""
    return f"{dictionary.site}/{_plain(dictionary.name)}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", text).strip("-")
