"""What is kept of a prompt: as a forward of the whole, wherever it is cut, under edits and without."""

import pytest
import torch
from helpers import tiny
from helpers.live_models import FIRST, SECOND, firing, live_model, random_prompt, silent, usual_edits

from monolex.errors import UserError
from monolex.live.interventions import Intervention
from monolex.live.prompts import from_ids
from monolex.live.session import LiveModel, TraceRun
from monolex.live.trace import Tape, last_site
from monolex.model import hooks

TOLERANCE = 1e-10
"""In float64; a forward of one token and one of many round differently."""


def uncached(live: LiveModel, run: TraceRun, interventions=()) -> dict[str, torch.Tensor]:
    prompt = from_ids(live, run.trace.ids)
    tape = Tape(live.lm, live.sites, live.edits(interventions, prompt), caching=False)
    tape.feed(prompt.ids)
    return {**tape.trace().x, "logits": tape.logits}


def same(live: LiveModel, run: TraceRun, expected: dict[str, torch.Tensor]) -> bool:
    return all(tiny.close(run.trace.x[site], expected[site], TOLERANCE) for site in (*live.sites, last_site(live.lm)))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_tape_without_edits_is_a_forward(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    ids = tiny.tokens(1, 10)
    tape = Tape(live.lm, live.sites)
    for start, stop in ((0, 4), (4, 5), (5, 10)):
        tape.feed(ids[0, start:stop].tolist())
    assert tape.computed == 10 and tape.reused == 0
    assert tiny.close(tape.logits, hooks.logits(live.lm, ids)[0, -1], TOLERANCE)
    for site in live.sites:
        assert tiny.close(tape.trace().x[site], tiny.read(live.lm, site, ids)[0], TOLERANCE)
        assert torch.equal(tape.rows(site, 3), tape.trace().x[site][3:])


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_beginning_in_common_is_not_run_again(architecture, edited, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    first, other = random_prompt(live, 10), random_prompt(live, 12, seed=9).ids
    interventions = usual_edits(live, first)[:3] if edited else ()
    live.run(first, interventions)
    window = architecture in ("gemma3_text", "mistral")
    for shared in (10, 1, 5, 9):
        after = (first.ids[shared % 10] + 1) % 101
        second = from_ids(live, (*first.ids[:shared], after, *other[shared + 1 :]))
        run = live.run(second, interventions)
        reused = 0 if window and shared < 10 else shared
        assert run.cost == (12 - reused, reused), "a window has dropped what is before it"
        assert same(live, run, uncached(live, run, interventions))
        again = live.run(second, interventions)
        assert again.cost == (0, 12) and all(torch.equal(again.trace.x[s], run.trace.x[s]) for s in live.sites)


def test_a_window_that_is_not_full_is_cut_like_others(tmp_path):
    live = live_model(tmp_path, tiny.model("gemma3_text"))
    live.run(random_prompt(live, 3))
    run = live.run(from_ids(live, (*random_prompt(live, 3).ids[:2], 7, 8, 9)))
    assert run.cost == (3, 2) and same(live, run, uncached(live, run))


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_edits_reuse_what_they_do_not_change(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live, 10)
    live.run(prompt)
    feature = firing(live, prompt, SECOND, 6)[0]
    ablated = Intervention(SECOND, feature, where=6)
    run = live.run(prompt, [ablated])
    assert run.cost == ((10, 0) if architecture == "gemma3_text" else (4, 6)) and run.notes == ()
    assert same(live, run, uncached(live, run, [ablated]))
    assert not tiny.close(run.trace.x[SECOND.split("/")[0]][6], live.run(prompt).trace.x[SECOND.split("/")[0]][6])


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_an_edit_that_changes_nothing_is_a_note_and_no_forward(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live, 10)
    base = live.run(prompt)
    feature = silent(live, prompt, FIRST)
    run = live.run(prompt, [Intervention(FIRST, feature)])
    assert run.cost == (0, 10)
    assert run.notes == (
        f"ablate feature {feature} of {FIRST}: the feature is active on none of these tokens, so nothing changes",
    )
    assert all(torch.equal(run.trace.x[site], base.trace.x[site]) for site in live.sites)
    # nor would a forward under it change a bit
    tape, plain = Tape(live.lm, live.sites, live.edits([Intervention(FIRST, feature)], prompt)), Tape(live.lm, ())
    tape.feed(prompt.ids)
    plain.feed(prompt.ids)
    assert torch.equal(tape.logits, plain.logits)


def test_traces_of_other_edits_are_kept_apart(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 10)
    edits = usual_edits(live, prompt)
    base, edited = live.run(prompt), live.run(prompt, edits)
    assert not tiny.close(edited.trace.x[last_site(live.lm)], base.trace.x[last_site(live.lm)])
    for run, interventions in ((live.run(prompt), ()), (live.run(prompt, edits), edits)):
        assert run.cost == (0, 10)
        assert same(live, run, uncached(live, run, interventions))
    turned = live.run(prompt, edits[:1])
    assert turned.cost.computed > 0 and same(live, turned, uncached(live, turned, edits[:1]))


def test_the_order_of_interventions_does_not_matter(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live, 10)
    edits = usual_edits(live, prompt)
    a, b = live.run(prompt, edits), live.run(prompt, edits[::-1])
    assert same(live, b, {**a.trace.x})


def test_what_is_kept_is_never_changed(tmp_path):
    live = live_model(tmp_path, tiny.model("gemma3_text"))
    trace = live.run(random_prompt(live, 5)).trace
    assert trace.cache is not None
    before = [(layer.keys.clone(), layer.get_seq_length()) for layer in trace.cache.layers]
    live.run(from_ids(live, (*trace.ids, 1, 2, 3)))
    assert all(
        torch.equal(layer.keys, keys) and layer.get_seq_length() == length
        for layer, (keys, length) in zip(trace.cache.layers, before, strict=True)
    )


def test_a_cache_that_gives_something_else_is_not_used(monkeypatch, tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    monkeypatch.setattr("monolex.live.session.continues", lambda *_: False)
    prompt = random_prompt(live, 6)
    live.run(prompt)
    run = live.run(from_ids(live, (*prompt.ids, 5)))
    assert run.cost == (7, 0) and same(live, run, uncached(live, run))
    tape = live.tape(prompt)
    tape.feed([3])
    assert tape.computed == 6 + 7, "all tokens anew"
    assert tiny.close(tape.logits, hooks.logits(live.lm, torch.tensor([[*prompt.ids, 3]]))[0, -1])


def test_memory_is_bounded(tmp_path):
    lm = tiny.model("llama")
    alone = live_model(tmp_path, lm, trace_bytes=0)
    first, second = random_prompt(alone, 10), random_prompt(alone, 10, seed=3)
    assert alone.run(first).trace.bytes == 10 * 8 * (3 * 32 + 3 * 2 * 16)
    assert alone.run(first).cost == (0, 10), "the last one is always kept"
    alone.run(second)
    assert alone.run(first).cost == (10, 0)
    live = live_model(tmp_path, lm)
    for seed in range(9):
        live.run(random_prompt(live, 10, seed))
    assert live.run(random_prompt(live, 10, 8)).cost == (0, 10)
    assert live.run(random_prompt(live, 10, 0)).cost == (10, 0), "the eldest made room"


def test_the_end_of_a_model_s_context(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    live.run(random_prompt(live, 64))
    with pytest.raises(UserError, match="takes at most 64"):
        random_prompt(live, 65)
