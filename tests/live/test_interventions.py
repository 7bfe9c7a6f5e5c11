"""Edits of features: identities, what each does, what is refused, and notes."""

import dataclasses
import math

import pytest
import torch
from helpers import random_pairs, tiny
from helpers.live_models import FIRST, SECOND, SITES, codes, dictionaries, firing, live_model, random_prompt, silent
from torch import Tensor

from monolex.activations.rule import EVERY_ROW, RowRule
from monolex.causal import edits
from monolex.errors import UserError
from monolex.live.interventions import Effect, Intervention, place
from monolex.live.loaded import LoadedDictionary
from monolex.live.session import LiveModel
from monolex.live.trace import Tape
from monolex.model import hooks


@pytest.fixture
def live(tmp_path) -> LiveModel:
    return live_model(tmp_path, tiny.model("gpt_neox"))


def edited_logits(live: LiveModel, prompt, *interventions: Intervention) -> Tensor:
    """Of a forward of its own, of all tokens at once."""
    tape = Tape(live.lm, live.sites, live.edits(interventions, prompt), caching=False)
    tape.feed(prompt.ids)
    return tape.logits


@pytest.mark.parametrize("title", [FIRST, SECOND])
@pytest.mark.parametrize("how", ["ablate", "clamp", "add", "scale", "swap"])
def test_each_way_is_the_edit_of_that_name(live, title, how):
    prompt = random_prompt(live)
    a, b, *_ = firing(live, prompt, title, 5)
    value = {"clamp": 1.5, "add": -0.75, "scale": 3.0}.get(how)
    intervention = Intervention(title, a, how, value, b if how == "swap" else None)
    dictionary, ids = live.dictionary(title).weights, torch.tensor([prompt.ids])
    if how == "swap":
        exchanged = codes(live, prompt, title)[:, [b, a]]
        edit = edits.FeatureEdit(dictionary, [a, b], edits.set_to(exchanged))
    else:
        change = {"ablate": edits.set_to(0.0), "clamp": edits.set_to(1.5), "add": edits.added(-0.75)}
        edit = edits.FeatureEdit(dictionary, [a], change.get(how, edits.scaled(3.0)))
    expected = hooks.logits(live.lm, ids, {title.split("/")[0]: edit})[0, -1]
    assert tiny.close(edited_logits(live, prompt, intervention), expected)
    assert not tiny.close(expected, hooks.logits(live.lm, ids)[0, -1], 1e-4)


def test_ablating_what_is_silent_changes_no_bit(live):
    prompt = random_prompt(live)
    plain = edited_logits(live, prompt)
    for how, value in (("ablate", None), ("clamp", 0.0), ("scale", 7.0)):
        assert torch.equal(
            edited_logits(live, prompt, Intervention(FIRST, silent(live, prompt, FIRST), how, value)), plain
        )
    assert not torch.equal(
        edited_logits(live, prompt, Intervention(FIRST, silent(live, prompt, FIRST), "add", 1.0)), plain
    )


def test_clamping_to_what_it_is_changes_nothing(live):
    prompt = random_prompt(live)
    feature = firing(live, prompt, SECOND, 5)[0]
    value = float(codes(live, prompt, SECOND)[5, feature])
    same = edited_logits(live, prompt, Intervention(SECOND, feature, "clamp", value, where=5))
    assert tiny.close(same, edited_logits(live, prompt))
    assert torch.equal(
        edited_logits(live, prompt, Intervention(SECOND, feature, "scale", 1.0)), edited_logits(live, prompt)
    )


def test_a_swap_is_both_clamped_to_each_other(live):
    prompt = random_prompt(live)
    a, b, *_ = firing(live, prompt, SECOND, 5)
    values = codes(live, prompt, SECOND)[5]
    swapped = edited_logits(live, prompt, Intervention(SECOND, a, "swap", other=b, where=5))
    clamped = (
        Intervention(SECOND, a, "clamp", float(values[b]), where=5),
        Intervention(SECOND, b, "clamp", float(values[a]), where=5),
    )
    assert tiny.close(swapped, edited_logits(live, prompt, *clamped))
    assert tiny.close(swapped, edited_logits(live, prompt, Intervention(SECOND, b, "swap", other=a, where=5)))
    assert not tiny.close(swapped, edited_logits(live, prompt), 1e-4)


def test_swapping_twice_is_nothing(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"), {"resid_post.1/pca": random_pairs.complete(32, site=SITES[1])})
    (edit,) = live.edits([Intervention("resid_post.1/pca", 3, "swap", other=20)], random_prompt(live))
    ids = torch.arange(6)
    x = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = x + edit.delta(x, ids, 0)[0]
    assert not tiny.close(once, x, 1e-3)
    assert tiny.close(once + edit.delta(once, ids, 0)[0], x)


def test_where(live):
    prompt = dataclasses.replace(random_prompt(live), generated=(False,) * 7 + (True,) * 3)
    assert prompt.length == 7
    feature = silent(live, prompt, FIRST)
    spans = {}
    for where in ("all", "prompt", "generated", 4):
        (edit,) = live.edits([Intervention(FIRST, feature, "add", 1.0, where=where)], prompt)
        delta, effect = edit.delta(torch.zeros(10, 32, dtype=torch.float64), torch.tensor(prompt.ids), 0)
        spans[where] = delta.any(1).nonzero()[:, 0].tolist()
        assert effect == Effect(spans[where][0], None, spans[where][0])
        # as well from the middle on
        part, later = edit.delta(torch.zeros(4, 32, dtype=torch.float64), torch.tensor(prompt.ids[6:]), 6)
        assert torch.equal(part, delta[6:])
        assert later.changed == next((at for at in spans[where] if at >= 6), None)
    assert spans == {"all": list(range(10)), "prompt": list(range(7)), "generated": [6, 7, 8, 9], 4: [4]}


def test_rows_that_do_not_count_are_left_alone(live):
    weights = dictionaries()[SECOND]
    for rule, left in ((RowRule(separator=3), [1]), (RowRule(limit=2.0), [2]), (EVERY_ROW, [])):
        loaded = LoadedDictionary(SECOND, SITES[1], weights, rule)
        (edit,) = place([Intervention(SECOND, 0, "add", 1.0)], random_prompt(live), lambda _, loaded=loaded: loaded)
        x = torch.full((3, 32), 0.1, dtype=torch.float64)
        x[2] = 1.0
        delta, effect = edit.delta(x, torch.tensor([5, 3, 7]), 0)
        assert [at for at in range(3) if not delta[at].any()] == left and effect.meant == 0
    (edit,) = place([Intervention(SECOND, 0)], random_prompt(live), lambda _: loaded._replace(rule=RowRule(limit=1e-9)))
    assert edit.delta(x, torch.tensor([5, 3, 7]), 0)[1] == Effect()


def test_notes_say_why_nothing_changes(live):
    prompt = random_prompt(live)
    a, b = [f for f in range(48) if not (codes(live, prompt, FIRST)[:, f] > 0).any()][:2]
    fires = firing(live, prompt, SECOND, 5)[0]
    said = live.run(
        prompt,
        [
            Intervention(FIRST, a, "swap", other=b),
            Intervention(SECOND, fires, "scale", 1.0),
            Intervention(SECOND, silent(live, prompt, SECOND), where=2),
        ],
    ).notes
    assert [note.split(": ")[1] for note in said] == [
        "neither feature is active on any of these tokens, so nothing changes",
        "what it adds is nothing, or lost in rounding, so nothing changes",
        "the feature is active on none of these tokens, so nothing changes",
    ]
    assert said[0].startswith(f"swap feature {a} of {FIRST} with {b}: ")
    assert said[2].startswith(f"ablate feature {silent(live, prompt, SECOND)} of {SECOND} at token 2: ")
    assert live.run(prompt, [Intervention(SECOND, fires)]).notes == ()


REFUSED = {
    "how = 'erase'": {"how": "erase"},
    "value = nan: .* takes a finite number": {"how": "clamp", "value": math.nan},
    "value = inf": {"how": "add", "value": math.inf},
    "value = -1e\\+39": {"how": "scale", "value": -1e39},
    "value = None: to clamp feature 3 .* takes a finite number": {"how": "clamp"},
    "value = 2.0: to ablate feature 3 .* takes none": {"how": "ablate", "value": 2.0},
    "other = None: another feature goes with swap": {"how": "swap"},
    "other = 3: another feature": {"how": "swap", "other": 3},
    "other = 4: another feature": {"how": "ablate", "other": 4},
    "where = 'answer'": {"where": "answer"},
    "value = '2': to clamp feature 3": {"how": "clamp", "value": "2"},
    "value = True: to clamp feature 3": {"how": "clamp", "value": True},
    "feature = 3, other = 4.0: give numbers of features": {"how": "swap", "other": 4.0},
    "where = -1": {"where": -1},
    "where = True": {"where": True},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_done_is_a_sentence(sentence, unchecked_arrays):
    with pytest.raises(UserError, match=sentence) as caught:
        Intervention(FIRST, 3, **REFUSED[sentence])
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_run_is_a_sentence(live):
    prompt = random_prompt(live)
    for sentence, several in {
        "dictionary 'resid_post.0/topq': there is none; did you mean 'resid_post.0/topk'": [
            Intervention("resid_post.0/topq", 3)
        ],
        "feature 48: resid_post.0/topk has features 0 to 47": [Intervention(FIRST, 48)],
        "feature -1: resid_post.0/topk has features 0 to 47": [Intervention(FIRST, -1)],
        "swap feature 5 .* with 3: another intervention changes feature 3 too": [
            Intervention(FIRST, 3, "add", 1.0),
            Intervention(FIRST, 5, "swap", other=3),
        ],
        "at token 10: the prompt has 10 tokens": [Intervention(FIRST, 3, where=10)],
    }.items():
        with pytest.raises(UserError, match=sentence):
            live.run(prompt, several)
    both = [Intervention(FIRST, 3, "add", 1.0), Intervention(SECOND, 3, "add", 1.0)]
    assert live.run(prompt, both).notes == (), "the same number in two dictionaries is two features"


def test_a_transcoder_s_features_are_not_edited(tmp_path):
    dictionary = dictionaries()[FIRST]
    dictionary.config = dataclasses.replace(dictionary.config, target="mlp_out.0")
    live = live_model(tmp_path, tiny.model("llama"), {FIRST: dictionary})
    with pytest.raises(UserError, match="reconstructs mlp_out.0, not the site that it reads"):
        live.run(random_prompt(live), [Intervention(FIRST, 3)])


def test_values_that_leave_no_finite_logits_are_a_sentence_and_leave_nothing_behind(tmp_path):
    single = {title: dictionary.to(torch.float32) for title, dictionary in dictionaries(scale=3.0).items()}
    live = live_model(tmp_path, tiny.tiny("llama"), single)
    prompt = random_prompt(live)
    before = live.run(prompt)
    absurd = Intervention(SECOND, silent(live, prompt, SECOND), "add", 3e38)
    with pytest.raises(UserError, match=r"add feature \d+ of .* by 3e\+38: the model's logits are no longer finite"):
        live.run(prompt, [absurd])
    with pytest.raises(UserError, match="no longer finite"):
        live.run(prompt, [dataclasses.replace(absurd, where=2)])
    after = live.run(prompt)
    assert after.cost == (0, 10) and torch.equal(after.trace.x[SITES[1]], before.trace.x[SITES[1]])
    live.lm.hf.get_output_embeddings().weight.data[5, 0] = math.nan
    with pytest.raises(UserError, match="tiny-llama gives logits that are not finite on these tokens"):
        live.run(random_prompt(live, seed=5))


def test_what_would_be_infinite_elsewhere_does_not_matter(tmp_path):
    single = {title: dictionary.to(torch.float32) for title, dictionary in dictionaries().items()}
    live = live_model(tmp_path, tiny.tiny("llama"), single)
    prompt = random_prompt(live)
    fires = codes(live, prompt, SECOND) > 0
    feature = next(f for f in range(40) if fires[:, f].any() and not fires[4, f])
    run = live.run(prompt, [Intervention(SECOND, feature, "scale", 3e38, where=4)])
    assert torch.equal(run.trace.x[SITES[1]], live.run(prompt).trace.x[SITES[1]]) and len(run.notes) == 1
    (edit,) = live.edits([Intervention(SECOND, feature, "scale", 3e38, where=4)], prompt)
    assert not edit.delta(live.run(prompt).trace.x[SITES[1]], torch.tensor(prompt.ids), 0)[0].any()
