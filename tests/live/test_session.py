"""Threads, dictionaries in memory, and answers as JSON."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import tiny
from helpers.live_models import BOTH, FIRST, SECOND, live_model, random_prompt, usual_edits
from helpers.tiny_texts import make_tokenizer

from monolex.answers import as_json
from monolex.errors import UserError
from monolex.live import continuation
from monolex.live.continuation import Sampling, pair, stream
from monolex.live.lens import lens
from monolex.live.next_token import next_token
from monolex.live.prompts import from_text
from monolex.live.reading import read
from monolex.live.session import LiveModel
from monolex.model.load import wrap


def test_threads_are_answered_as_if_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(continuation, "PATIENCE", 0.0)  # so that they take turns at every token
    live = live_model(tmp_path, tiny.model("llama"))
    prompts = [random_prompt(live, 6, seed) for seed in range(4)]
    edits = [usual_edits(live, prompt) if number % 2 else () for number, prompt in enumerate(prompts)]

    def answer(number: int):
        events = list(stream(live, prompts[number], Sampling(10), interventions=edits[number], wanted=BOTH))
        return events[-1].prompt, [token.features[FIRST].active for token in events[:-1]]

    alone = [answer(number) for number in range(4)]
    live = live_model(tmp_path / "again", tiny.model("llama"))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(4))) == alone
    assert not live.lm.hf._forward_hooks and not live.lm.hf._forward_pre_hooks


def test_threads_share_a_tokenizer(tmp_path):
    tokenizer = make_tokenizer()
    live = live_model(tmp_path, wrap(tiny.tiny_hf("gpt_neox", vocab_size=len(tokenizer)), tokenizer, name="talking"))
    texts = [f"the cat {number} 🙂" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert [prompt.text for prompt in pool.map(lambda text: from_text(live, text), texts)] == [
            f"<s>{text}" for text in texts
        ]


def test_dictionaries_that_are_not_used_are_given_up(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"), dictionary_bytes=0)
    first = live.dictionary(FIRST)
    assert first.bytes == 8 * (2 * 48 * 32 + 48 + 2 * 32)
    assert live.dictionary(FIRST) is first, "the last one is kept"
    live.dictionary(SECOND)
    assert live.dictionary(FIRST) is not first
    roomy = live_model(tmp_path, tiny.model("llama"))
    first = roomy.dictionary(FIRST)
    roomy.dictionary(SECOND)
    assert roomy.dictionary(FIRST) is first


def test_two_dictionaries_of_a_title_are_refused(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    records = list(live._loaded.records.values())
    with pytest.raises(UserError, match="dictionaries: two have one title"):
        LiveModel(live.lm, [*records, records[0]])


def test_answers_are_json(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    edits = usual_edits(live, prompt)
    answers = [
        read(live, prompt, BOTH, edits),
        next_token(live, prompt, edits),
        lens(live, prompt),
        *pair(live, prompt, edits, Sampling(3), wanted=BOTH),
        edits,
    ]
    sent = json.loads(json.dumps(as_json(answers), allow_nan=False))
    assert sent[0]["prompt"]["ids"] == list(prompt.ids) and sent[1]["before"][0]["rank_before"] == 1
    assert sent[-1][0] == {"dictionary": FIRST, "feature": edits[0].feature, "how": "ablate", "value": None,
                           "other": None, "where": "all"}  # fmt: skip
    assert as_json([float("nan"), float("inf"), 1.5]) == [None, None, 1.5]
