"""Prompts: exact ids, the separator once, chats through a template, and what is refused."""

import dataclasses
import json

import pytest
from helpers import tiny
from helpers.live_models import live_model
from helpers.tiny_texts import CHATML, FUSSY, make_tokenizer

from monolex.answers import as_json
from monolex.errors import UserError
from monolex.live.prompt import LivePrompt
from monolex.live.prompts import from_chat, from_ids, from_text, with_message, with_text
from monolex.live.session import LiveModel
from monolex.model.load import wrap
from monolex.text.separator import use_separator

ANSWERING = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT = [("user", "the cat 🙂 <|im_end|>"), ("assistant", "sat"), ("user", "on a mat")]


def talking(folder, template=ANSWERING) -> LiveModel:
    tokenizer = make_tokenizer(template, eos=True)
    lm = wrap(tiny.tiny_hf("gpt_neox", vocab_size=len(tokenizer)), tokenizer, name="talking")
    return live_model(folder, lm)


@pytest.fixture
def live(tmp_path) -> LiveModel:
    return talking(tmp_path)


def test_a_text_stands_behind_the_separator_once(live):
    prompt = from_text(live, "the cat")
    assert (
        prompt.ids[0] == 0 and prompt.texts[0] == "<s>" and prompt.special == (True,) + (False,) * (len(prompt.ids) - 1)
    )
    assert prompt.text == "<s>the cat" and prompt.length == len(prompt.ids) and not any(prompt.generated)
    again = from_text(live, "<s>the cat")
    assert again.ids == prompt.ids and "once, not twice" in again.notes[-1]
    literal = from_text(live, "<s>the cat", literal=True)
    assert literal.text == "<s><s>the cat" and literal.special == (True,) + (False,) * (len(literal.ids) - 1)
    use_separator(live.lm.tokenizer, None)
    assert from_text(live, "the cat").ids == prompt.ids[1:]
    use_separator(live.lm.tokenizer, 3)
    assert from_text(live, "the cat").ids == (3, *prompt.ids[1:])


@pytest.mark.parametrize("text", ["漢字 🙂", "cafe\u0301", "</script>&amp;\x00", "\u202e א"])
def test_characters_of_several_tokens_are_those_of_the_text(live, text):
    prompt = from_text(live, text)
    assert prompt.text == "<s>" + text
    assert from_ids(live, prompt.ids) == prompt
    assert all("\ufffd" not in token for token in prompt.texts)


def test_exact_ids_are_replayed(live):
    ids = [0, 5, 5, 290, 0, 2]
    prompt = from_ids(live, ids, generated=[False] * 4 + [True] * 2)
    assert prompt.ids == tuple(ids) and prompt.special == (True, False, False, False, True, True) and prompt.length == 4
    sent = json.loads(json.dumps(as_json(prompt)))
    assert from_ids(live, sent["ids"], generated=sent["generated"]) == prompt
    assert from_ids(live, [7], generated=[True]).length == 1


def test_a_chat_is_what_the_template_makes_of_it(live):
    prompt = from_chat(live, CHAT)
    messages = [{"role": role, "content": content} for role, content in CHAT]
    assert prompt.text == live.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    names = [text for text, special in zip(prompt.texts, prompt.special, strict=True) if special]
    assert names == ["<|im_start|>", "<|im_end|>"] * 3 + ["<|im_start|>"], "no content pretends to be a message"


def test_a_second_turn_begins_with_the_first_token_for_token(live):
    first = from_chat(live, CHAT[:1])
    answer = live.lm.tokenizer("sat", add_special_tokens=False)["input_ids"]
    for end in ([], [3]):  # the model ends its answer itself, or is stopped
        ids = (*first.ids, *answer, *end)
        said = from_ids(live, ids, generated=(False,) * len(first.ids) + (True,) * (len(ids) - len(first.ids)))
        second = with_message(live, said, "on a mat")
        assert second.text == from_chat(live, CHAT).text and second.ids[: len(ids)] == ids
        assert second.generated[: len(ids)] == said.generated and second.length == len(second.ids)
    longer = with_text(live, said, " the <s>")
    assert longer.ids[: len(ids)] == ids and longer.ids[-1] == 0
    assert with_text(live, said, "<s>", literal=True).ids[-1] != 0


def test_a_model_without_roles_says_so(tmp_path):
    live = talking(tmp_path, None)
    for make in (lambda: from_chat(live, CHAT), lambda: with_message(live, from_text(live, "a"), "b")):
        with pytest.raises(UserError, match="the tokenizer of talking has no chat template"):
            make()
    assert from_text(live, "the cat").text == "<s>the cat"
    fussy = talking(tmp_path / "fussy", FUSSY)
    with pytest.raises(
        UserError, match="cannot be made a prompt of talking: the chat template refuses it \\(user first"
    ):
        from_chat(fussy, [("assistant", "sat")])


def test_a_model_without_a_tokenizer_takes_ids(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    assert from_ids(live, [5, 7]) == LivePrompt((5, 7), ("5", "7"), (False, False), (False, False))
    for make in (from_text, lambda live, text: from_chat(live, [("user", text)])):
        with pytest.raises(UserError, match="has no tokenizer"):
            make(live, "the cat")


def test_what_is_no_prompt_is_a_sentence(live, unchecked_arrays):
    some = from_text(live, "the")
    refused = {
        "prompt = '': the tokenizer makes no token of it": lambda: from_text(live, ""),
        "prompt = '<s>': the tokenizer makes no token": lambda: from_text(live, "<s>"),
        "more tokens than the 64 that talking takes": lambda: from_text(live, "the cat " * 64),
        "tokens have 65 positions": lambda: from_ids(live, [5] * 65),
        "tokens have .* positions: talking takes at most 64": lambda: with_text(live, some, "the cat " * 64),
        "text = '': the tokenizer makes no token": lambda: with_text(live, some, ""),
        "content = ' ': a message says something": lambda: with_message(live, some, " "),
        "messages cannot be made a prompt of talking: `messages` is not a list": lambda: from_chat(live, []),
        "role = None is no text of whole characters": lambda: from_chat(live, [(None, "a")]),
        "prompt = .a\\\\ud800. is no text of whole characters": lambda: from_text(live, "a\ud800"),
        "text = .a\\\\udfff. is no text": lambda: with_text(live, some, "a\udfff"),
        "content = .a\\\\ud800. is no text": lambda: from_chat(live, [("user", "a\ud800")]),
        "ids are empty": lambda: from_ids(live, []),
        "ids hold \\['a'\\]": lambda: from_ids(live, [1, "a"]),
        "ids hold \\[True\\]": lambda: from_ids(live, [True]),
        "ids hold \\[1.0\\]": lambda: from_ids(live, [1.0]),
        "token id -1 has no row in the embedding": lambda: from_ids(live, [5, -1]),
        "token id 330 has no row": lambda: from_ids(live, [330]),
        "token id \\[36893488147419103232\\] has no row": lambda: from_ids(live, [2**65]),
        "generated is of 1 tokens and ids of 2": lambda: from_ids(live, [5, 6], generated=[True]),
    }
    for sentence, make in refused.items():
        with pytest.raises(UserError, match=sentence) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_the_length_is_what_is_before_the_answer(live):
    prompt = from_ids(live, [1, 2, 3, 4])
    for flags, length in (
        ((0, 0, 0, 0), 4),
        ((0, 1, 0, 0), 4),
        ((0, 1, 0, 1), 3),
        ((0, 1, 1, 1), 1),
        ((1, 1, 1, 1), 1),
    ):
        assert dataclasses.replace(prompt, generated=tuple(map(bool, flags))).length == length
