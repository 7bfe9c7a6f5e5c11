"""Continuations: the tokens of generate, the features of a full forward, and nothing twice."""

import itertools

import pytest
import torch
from helpers import tiny
from helpers.live_models import (
    BOTH,
    FIRST,
    SECOND,
    SITES,
    dictionaries,
    firing,
    live_model,
    random_prompt,
    silent,
    usual_edits,
)
from helpers.tiny_texts import make_tokenizer

from monolex.causal import edits
from monolex.errors import UserError
from monolex.live import continuation
from monolex.live.continuation import Continued, GeneratedToken, Sampling, Side, TwoContinued, pair, stream
from monolex.live.interventions import Intervention
from monolex.live.prompt import LivePrompt
from monolex.live.prompts import from_ids
from monolex.live.reading import TokenFeatures, read
from monolex.live.session import LiveModel
from monolex.model.load import wrap


def finished(events) -> tuple[list[GeneratedToken], Continued]:
    *tokens, end = events
    assert isinstance(end, Continued) and all(isinstance(token, GeneratedToken) for token in tokens)
    return tokens, end


def features(tokens) -> list[tuple[bool, int, list[tuple[int, float]]]]:
    return [(t.counts, t.active, [(f.feature, round(f.value, 8)) for f in t.top]) for t in tokens]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_it_is_what_generate_writes_with_the_features_of_a_full_forward(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live, 6)
    tokens, end = finished(stream(live, prompt, Sampling(7), wanted=BOTH))
    expected = live.lm.hf.generate(
        torch.tensor([prompt.ids]), attention_mask=torch.ones(1, 6).long(), max_new_tokens=7, do_sample=False
    )
    assert list(end.prompt.ids) == expected[0].tolist() and end.why == "length" and end.cost == (13, 0)
    assert [token.token for token in tokens] == list(end.prompt.ids[6:]) and [t.position for t in tokens] == list(
        range(6, 13)
    )
    assert end.prompt == from_ids(live, end.prompt.ids, generated=[False] * 6 + [True] * 7)
    whole = read(live_model(tmp_path / "fresh", live.lm), end.prompt, BOTH)
    for title in (FIRST, SECOND):
        streamed: list[TokenFeatures] = [token.features[title] for token in tokens]
        assert features(streamed) == features(whole.features[title][6:])
    logits = live.lm.hf(torch.tensor([end.prompt.ids])).logits[0].softmax(-1)
    for token in tokens:
        assert abs(token.probability - float(logits[token.position - 1, token.token].detach())) < 1e-10


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_under_interventions_it_is_what_edits_generate(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live, 6)
    a, b = firing(live, prompt, SECOND, 5)[:2]
    dictionary = live.dictionary(SECOND).weights
    for where, positions in (("all", None), ("generated", slice(5, None)), ("prompt", slice(0, 6))):
        several = [
            Intervention(SECOND, a, "scale", 4.0, where=where),
            Intervention(SECOND, b, "scale", 4.0, where=where),
        ]
        edit = edits.FeatureEdit(dictionary, [a, b], edits.scaled(4.0), positions)
        expected = edits.generate(live.lm, torch.tensor([prompt.ids]), {SITES[1]: edit}, 8)
        _, end = finished(stream(live, prompt, Sampling(8), interventions=several))
        assert list(end.prompt.ids) == expected[0].tolist() and end.notes == ()


def test_a_second_turn_computes_only_its_new_tokens(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 6)
    acting = usual_edits(live, prompt)
    for interventions in ((), acting[:3]):
        _, first = finished(stream(live, prompt, Sampling(5), interventions=interventions))
        second = from_ids(live, (*first.prompt.ids, 1, 2, 3), generated=(*first.prompt.generated, *[False] * 3))
        tokens, end = finished(stream(live, second, Sampling(4), interventions=interventions, wanted=BOTH))
        assert end.cost == (3 + 4, 11)
        fresh = live_model(tmp_path / "fresh", live.lm)
        again, whole = finished(stream(fresh, second, Sampling(4), interventions=interventions, wanted=BOTH))
        assert whole.cost == (14 + 4, 0) and end.prompt == whole.prompt
        for mine, other in zip(tokens, again, strict=True):
            assert all(
                features([mine.features[title]]) == features([other.features[title]]) for title in BOTH.dictionaries
            )
    assert finished(stream(live, first.prompt, Sampling(1)))[1].cost.computed > 0
    assert finished(stream(live, prompt, Sampling(5)))[1].cost == (5, 6), "generated anew, the prompt was there"


def test_a_pair_runs_in_turn_and_says_where_it_parts(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 6)
    acting = [Intervention(SECOND, firing(live, prompt, SECOND, 5)[0], "add", -8.0, where="generated")]
    events = list(pair(live, prompt, acting, Sampling(6), wanted=BOTH))
    sides, end = events[:-1], events[-1]
    assert isinstance(end, TwoContinued) and all(isinstance(event, Side) for event in sides)
    assert [event.side for event in sides] == ["base", "edited"] * 7
    base, edited = (finished(stream(live, prompt, Sampling(6), interventions=i))[1].prompt.ids for i in ((), acting))
    assert (end.base.prompt.ids, end.edited.prompt.ids) == (base, edited) and base != edited
    assert base[: end.differ_at] == edited[: end.differ_at] and base[end.differ_at] != edited[end.differ_at]
    assert end.edited.cost.reused == 5, "what is before the edit is shared"
    idle = [Intervention(SECOND, silent(live, end.base.prompt, SECOND))]
    *_, same = pair(live, prompt, idle, Sampling(6))
    assert same.differ_at is None and same.base.prompt == same.edited.prompt
    assert same.base.notes == () and same.edited.notes[0].endswith("on none of these tokens, so nothing changes")


def test_draws_have_a_seed_and_pairs_share_it(tmp_path):
    live = live_model(tmp_path, tiny.model("gpt2"))
    prompt = random_prompt(live, 6)

    def drawn(**settings) -> tuple[int, ...]:
        return finished(stream(live, prompt, Sampling(12, **settings)))[1].prompt.ids

    assert drawn(temperature=1.0, seed=1) == drawn(temperature=1.0, seed=1) != drawn(temperature=1.0, seed=2)
    assert drawn(temperature=1.0, top_p=1e-9) == drawn() == drawn(temperature=1e-4)
    weak = [Intervention(SECOND, silent(live, prompt, SECOND), "add", 1e-9)]
    *_, end = pair(live, prompt, weak, Sampling(12, temperature=1.0, seed=3))
    assert end.differ_at is None and end.edited.notes == ()


def talking(folder, *ends: int) -> tuple[LiveModel, LivePrompt]:
    tokenizer = make_tokenizer()
    lm = wrap(tiny.tiny_hf("gpt_neox", vocab_size=len(tokenizer)), tokenizer, name="talking")
    lm.hf.generation_config.eos_token_id = list(ends)
    live = live_model(folder, lm, {t: d.to(torch.float32) for t, d in dictionaries().items()})
    return live, from_ids(live, [0, 20, 21, 22])


def test_it_ends_where_the_model_ends_it_or_the_context_does(tmp_path):
    live, prompt = talking(tmp_path)
    tokens, free = finished(stream(live, prompt, Sampling(100), wanted=BOTH))
    assert free.why == "context" and len(free.prompt.ids) == 64 and [t.position for t in tokens] == list(range(4, 64))
    third = free.prompt.ids[6]
    ending, _ = talking(tmp_path / "ending", third, 999)
    tokens, end = finished(stream(ending, prompt, Sampling(100), wanted=BOTH))
    assert end.why == "end" and end.prompt.ids == free.prompt.ids[: free.prompt.ids.index(third, 4) + 1]
    assert tokens[-1].features[FIRST].top, "the end's features too"
    full, end = finished(stream(live, free.prompt, Sampling(5)))
    assert full == [] and end.why == "context" and end.prompt == free.prompt


def test_parts_of_characters_join_to_the_text(tmp_path):
    live, prompt = talking(tmp_path)
    tokens, end = finished(stream(live, prompt, Sampling(60, temperature=2.0, seed=4)))
    assert any("\\x" in token.text for token in tokens), "the model writes bytes at random"
    raw = live.lm.tokenizer.decode(end.prompt.ids, clean_up_tokenization_spaces=False)
    assert end.prompt.text.encode() and "\ufffd" not in end.prompt.text and "\ufffd" in raw
    assert [token.special for token in tokens] == [t.token in live.lm.tokenizer.all_special_ids for t in tokens]


def test_the_caller_may_stop_or_go(tmp_path, monkeypatch):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 6)
    calls = itertools.count()
    tokens, end = finished(stream(live, prompt, Sampling(50), stop=lambda: next(calls) >= 3))
    assert end.why == "stopped" and len(tokens) == 3
    monkeypatch.setattr(continuation, "PATIENCE", 0.0)  # a token at a time
    events = stream(live, prompt, Sampling(50))
    gone = [next(events), next(events)]
    events.close()
    again, end = finished(stream(live, from_ids(live, (*prompt.ids, *(token.token for token in gone))), Sampling(2)))
    assert end.cost == (2, 8), "what was written before is kept"
    assert not live.lm.hf._forward_hooks and not live.lm.hf._forward_pre_hooks


def test_tokens_come_in_bursts_of_a_moment(tmp_path, monkeypatch):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 6)
    rows = []
    real = continuation.token_features

    def counted(dictionary, x, ids, wanted):
        rows.append(len(x))
        return real(dictionary, x, ids, wanted)

    monkeypatch.setattr(continuation, "token_features", counted)
    monkeypatch.setattr(continuation, "PATIENCE", 1e9)
    slow, _ = finished(stream(live, prompt, Sampling(40), wanted=BOTH))
    assert rows == [32, 32, 8, 8], "all tokens of a burst at once, of each dictionary"
    monkeypatch.setattr(continuation, "PATIENCE", 0.0)
    rows.clear()
    single, _ = finished(stream(live, prompt, Sampling(40), wanted=BOTH))
    assert rows == [1] * 80
    for a, b in zip(slow, single, strict=True):
        assert a[:4] == b[:4] and all(features([a.features[t]]) == features([b.features[t]]) for t in BOTH.dictionaries)


def test_an_intervention_that_breaks_the_model_later_shows_what_was_before(tmp_path):
    single = {title: dictionary.to(torch.float32) for title, dictionary in dictionaries(scale=3.0).items()}
    live = live_model(tmp_path, tiny.tiny("llama"), single)
    prompt = random_prompt(live, 6)
    _, plain = finished(stream(live, prompt, Sampling(10)))
    codes = read(live, plain.prompt, BOTH).features[FIRST]
    early = {active.feature for token in codes[:9] for active in token.top}
    late = next(
        (active.feature, at)
        for at, token in enumerate(codes[9:], 9)
        for active in token.top
        if active.feature not in early
    )
    absurd = Intervention(FIRST, late[0], "scale", 3e38)
    events = stream(live, prompt, Sampling(10), interventions=[absurd], wanted=BOTH)
    seen = []
    with pytest.raises(UserError, match="the model's logits are no longer finite"):
        for event in events:
            seen.append(event)
    assert [event.token for event in seen] == list(plain.prompt.ids[6 : late[1]])
    assert finished(stream(live, prompt, Sampling(10)))[1].prompt == plain.prompt


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 6)
    for sentence, settings in {
        "max_new_tokens = 0": {"max_new_tokens": 0},
        "temperature = -1.0": {"temperature": -1.0},
        "temperature = nan": {"temperature": float("nan")},
        "temperature = inf": {"temperature": float("inf")},
        "top_p = 0": {"top_p": 0.0},
        "top_p = nan": {"top_p": float("nan")},
    }.items():
        with pytest.raises(UserError, match=sentence):
            Sampling(**settings)
    with pytest.raises(UserError, match="dictionary 'x'"):
        stream(live, prompt, interventions=[Intervention("x", 3)])
    with pytest.raises(UserError, match="at token 6"):
        pair(live, prompt, [Intervention(FIRST, 3, where=6)])
