"""Ways in which a model could be read or edited silently wrong, each put into ten tiny architectures.

A fault is put into a sound model (or into what monolex believes of its structure), which is then loaded and used as
anyone would; somewhere on that way a sentence has to say so. The same use of the sound model has to pass.

What no check can see, here or anywhere: hooks that stay on from before the load and only change what attention or MLP
give (the sum still holds; `harvest` refuses them, `capture` reads what flows); a tokenizer of another model whose ids
all exist; a mean ablation by the mean of another site of the same width; live edits with a dictionary of the same site
of another model of the same width (runs compare the weights' hashes; a mere edit does not compute them).
"""

import copy
import dataclasses
from functools import cache

import pytest
from helpers.model_faults import (
    ABSOLUTE,
    GATED,
    IDS,
    NORMED_AFTER,
    PADDED,
    SERIAL,
    Fault,
    activation,
    activations,
    arguments,
    at,
    believing,
    changing,
    continued,
    dictionary,
    edited,
    hooked,
    layers,
    not_a_number,
    on_vocabulary,
    pads_like_text,
    part,
    positions,
    queries,
    read_padded,
    remembering,
    run_twice,
    sealed,
    without,
)
from helpers.tiny import ARCHITECTURES, VOCAB, tiny_hf
from torch import nn

from monolex.causal import edits
from monolex.errors import UserError
from monolex.model.hooks import capture
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap
from monolex.model.sites import Place, SiteError, resolve
from monolex.model.verify import require_unhooked, verify

# Faults in what monolex believes of a model


BELIEFS = [
    Fault("every layer is the next one", "resid_post.1 is not resid_pre.2", layers(1, 2, 0)),
    Fault("two layers are swapped", "resid_post.0 is not resid_pre.1", layers(1, 0, 2)),
    Fault(
        "blocks in another order",
        "resuming at layer",
        lambda lm: dataclasses.replace(lm.structure, blocks=nn.ModuleList([lm.structure.blocks[i] for i in (1, 0, 2)])),
    ),
    Fault(
        "half a residual: attention before its norm",
        r"resid_pre \+ attn_out \+ mlp_out against resid_post",
        believing(lambda lm: {"attn_out": Place(part(lm, "attn_z"), "output", lm.d_model)}),
        only=NORMED_AFTER,
    ),
    Fault(
        "half a residual: MLP before its norm",
        r"resid_pre \+ attn_out \+ mlp_out against resid_post",
        believing(lambda lm: {"mlp_out": Place(part(lm, "mlp_act"), "output", lm.d_model)}),
        only=NORMED_AFTER,
    ),
    Fault(
        "half a residual: attention twice and no MLP",
        r"resid_pre \+ attn_out \+ mlp_out against resid_post",
        believing(lambda lm: {"mlp_out": at(lm, "attn_out")}),
    ),
    Fault(
        "resid_post before the MLP is added",
        r"resid_pre \+ attn_out \+ mlp_out against resid_post",
        believing(lambda lm: {"resid_post": at(lm, "resid_mid")}),
        only=SERIAL,
    ),
    Fault(
        "resid_post without the stream",
        r"resid_pre \+ attn_out \+ mlp_out against resid_post",
        believing(lambda lm: {"resid_post": at(lm, "mlp_out")}),
    ),
    Fault(
        "resid_pre behind a norm",
        "against resid_post at layer 1|resid_post.0 is not resid_pre.1",
        believing(lambda lm: {"resid_pre": at(lm, "mlp_in")}),
    ),
    Fault(
        "resid_mid before attention is added",
        r"site resid_mid.1 .* it is not resid_pre.1 \+ attn_out.1",
        believing(lambda lm: {"resid_mid": at(lm, "resid_pre")}),
        only=SERIAL,
    ),
    Fault("attn_z is what the queries are made of", "attn_z.1 .* makes of it is not attn_out.1", believing(queries)),
    Fault(
        "mlp_act before the activation function",
        "site mlp_act.1 .* makes of it is not mlp_out.1",
        believing(
            lambda lm: {"mlp_act": dataclasses.replace(at(lm, "mlp_act"), module=activation(lm), side="input")}
        ),
    ),
    Fault(
        "mlp_act before the gate is multiplied",
        "site mlp_act.1 .* makes of it is not mlp_out.1",
        believing(
            lambda lm: {"mlp_act": dataclasses.replace(at(lm, "mlp_act"), module=activation(lm), side="output")}
        ),
        only=GATED,
    ),
    Fault(
        "mlp_in before its norm",
        "site mlp_in.1 .* makes of it is not mlp_out.1",
        believing(lambda lm: {"mlp_in": dataclasses.replace(at(lm, "resid_pre"), through=at(lm, "mlp_in").through)}),
    ),
]  # fmt: skip


# Faults in the model, there when it is loaded


MODELS = [
    Fault(
        "the stream changes between two blocks",
        "resid_post.0 is not resid_pre.1",
        changing("resid_pre.1", lambda x: x * 1.001),
    ),
    Fault("a block adds a third term", "against resid_post at layer 1", changing("resid_post.1", lambda x: x * 1.001)),
    Fault("a block remembers another one", "resuming at layer", remembering),
    Fault("a block runs twice", "fired twice", run_twice),
    Fault(
        "tokens see later ones",
        "at attn_out.0 tokens see later ones",
        changing("attn_out.0", lambda x: x + 1e-3 * x.mean(1, keepdim=True)),
    ),
    Fault(
        "dropout that eval mode does not reach",
        "edits that change nothing change the logits",
        changing("mlp_out.1", lambda x: nn.functional.dropout(x, 0.5, training=True)),
    ),
    Fault("a weight that is no number", "NaN or infinite logits", not_a_number),
    Fault("an adapter on the embedding", "its embedding gives other rows", on_vocabulary("input")),
    Fault("an adapter on the unembedding", "its unembedding is not its matrix alone", on_vocabulary("output")),
    Fault("an adapter of which nothing is known on the heads", "site attn_z.1 cannot be read", sealed("attn_z")),
    Fault(
        "an adapter of which nothing is known on the neurons",
        "site mlp_act.1 cannot be read|no.* linear map",
        sealed("mlp_act"),
    ),
    Fault(
        "the mask is not looked at",
        "cannot be given padding before a text",
        arguments(lambda kwargs: without(kwargs, "attention_mask", "position_ids")),
        read_padded,
    ),
    Fault(
        "positions behind padding one too large",
        "cannot be given padding before a text",
        positions(lambda p: p + 1),
        read_padded,
        only=ABSOLUTE,
    ),
    Fault(
        "positions behind padding counted twice",
        "cannot be given padding before a text",
        positions(lambda p: p * 2),
        read_padded,
    ),
]


# Faults in what is done with a model


USES = [
    Fault("a hook that somebody left", "hooks on .* change what it computes", use=hooked, sound=require_unhooked),
    Fault(
        "padding without a mask",
        "give mask=",
        pads_like_text,
        lambda lm: capture(lm, PADDED, ["resid_post.1"]),
        read_padded,
    ),
    Fault(
        "a token of another vocabulary",
        f"token id {VOCAB + 7} has no row in the embedding",
        use=lambda lm: capture(lm, IDS.clone().fill_(VOCAB + 7), ["resid_post.1"]),
        sound=lambda lm: capture(lm, IDS.clone().fill_(VOCAB - 1), ["resid_post.1"]),
    ),
    Fault(
        "an ablation of a silent feature",
        "the edit of resid_post.1 changes nothing: none of its features is active",
        use=edited(lambda lm: edits.ablate(dictionary(lm, bias=-1e6), [0, 1])),
        sound=edited(lambda lm: edits.ablate(dictionary(lm), [0, 1])),
    ),
    Fault(
        "a donor that is the base",
        "changes nothing: the codes are already what they are to become",
        use=edited(lambda lm: edits.swap(dictionary(lm), activations(lm))),
        sound=edited(lambda lm: edits.swap(dictionary(lm), activations(lm).flip(0))),
    ),
    Fault(
        "an edit that the precision swallows",
        "changes nothing: what it adds is lost in the rounding",
        use=edited(lambda lm: edits.ablate(dictionary(lm, size=1e-15), None)),
        sound=edited(lambda lm: edits.ablate(dictionary(lm, size=1e-2), None)),
    ),
    Fault(
        "features of another site",
        "features of resid_post.2 edited at resid_post.1",
        use=edited(lambda lm: edits.ablate(dictionary(lm, "resid_post.2"), None)),
        sound=edited(lambda lm: edits.ablate(dictionary(lm), None)),
    ),
    Fault(
        "a cache that already holds the tokens",
        "key-value cache holds 10 tokens",
        use=continued(again=True),
        sound=continued(again=False),
    ),
]  # fmt: skip


@cache
def sound(architecture: str) -> LanguageModel:
    return wrap(tiny_hf(architecture), name="tiny")


FAULTS = [*BELIEFS, *MODELS, *USES]
pytestmark = pytest.mark.usefixtures("unchecked_arrays")  # a third of the time; types have tests of their own
CASES = [pytest.param(fault, name, id=f"{fault.name}-{name}") for fault in FAULTS for name in fault.only]


@pytest.mark.parametrize(("fault", "architecture"), CASES)
def test_a_fault_is_said(fault: Fault, architecture: str) -> None:
    hf = copy.deepcopy(sound(architecture).hf)
    lm = LanguageModel(hf, None, "tiny", resolve(hf, 3, 32))
    with pytest.raises((UserError, SiteError), match=fault.says) as caught:
        structure = fault.inject(lm)
        if structure is not None:
            lm = dataclasses.replace(lm, structure=verify(dataclasses.replace(lm, structure=structure)))
        elif fault in MODELS:
            lm = wrap(hf, name="tiny")
        fault.use(lm)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_said_of_a_sound_model(architecture: str) -> None:
    lm = sound(architecture)
    assert not lm.structure.refused and not lm.structure.unpadded
    for fault in FAULTS:
        if architecture in fault.only:
            (fault.sound or fault.use)(lm)
