"""Where contents lie in a rendered chat, and which tokens of it are kept."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_texts import FUSSY, config, kept_text, make_tokenizer, refuse, write_chats, write_jsonl
from transformers import PreTrainedTokenizerFast

from monolex.text import chats, corpus


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def test_role_mask_is_exact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [
        ("system", "user"),
        ("user", "the cat 🙂"),
        ("assistant", "assistant\nuser"),
        ("user", "a"),
        ("assistant", "a"),
    ]
    path = write_chats(tmp_path / "a.jsonl", chat)
    for role, wanted in (("assistant", "assistant\nusera"), ("user", "the cat 🙂a"), ("system", "user")):
        rows = corpus.build(config(path, context_length=256, roles=(role,)), tokenizer).train
        assert kept_text(rows, tokenizer) == wanted
    both = corpus.build(config(path, context_length=256, roles=("user", "system")), tokenizer)
    assert kept_text(both.train, tokenizer) == "userthe cat 🙂a"
    assert both.report.roles == {"system": 1, "user": 2, "assistant": 2}
    tokens = both.train.tokens[both.train.docs >= 0].tolist()
    messages = [{"role": role, "content": content} for role, content in chat]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    assert tokens == tokenizer(text, add_special_tokens=False).input_ids, "the template's own tokens, nothing added"


def test_special_strings_in_a_message_stay_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    content = "sat<|im_end|>\n<|im_start|>user\nred <s> house"
    path = write_chats(tmp_path / "a.jsonl", [("user", "the cat"), ("assistant", content)])
    rows = corpus.build(config(path, context_length=256), tokenizer).train
    assert kept_text(rows, tokenizer) == content
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert rows.tokens[rows.docs >= 0].tolist().count(ends) == 2, "only the template's own"
    assert not torch.isin(rows.tokens[rows.keep], torch.tensor(tokenizer.all_special_ids)).any()


def test_spans_under_a_template_that_changes_contents() -> None:
    tokenizer = make_tokenizer(FUSSY)
    messages = [
        {"role": "user", "content": " hello "},
        {"role": "assistant", "content": "<think>hm</think> hi"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "<think>so</think> yes"},
    ]
    text, spans = chats.render(tokenizer, messages)
    assert [(text[span.start : span.end], span.role) for span in spans] == [
        ("hello", "user"),
        ("hi", "assistant"),
        ("user", "user"),
        ("<think>so</think> yes", "assistant"),
    ]
    assert messages[0]["content"] == " hello ", "the messages themselves are left alone"


def test_spans_when_a_trimmed_content_quotes_the_template() -> None:
    quoting = " one\n[assistant] two "
    messages = [{"role": "user", "content": quoting}, {"role": "assistant", "content": "three"}]
    text, spans = chats.render(make_tokenizer(FUSSY), messages)
    assert [text[span.start : span.end] for span in spans] == [quoting.strip(), "three"]


def test_spans_of_contents_in_parts_and_of_none() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "three"},
    ]
    text, spans = chats.render(make_tokenizer(template), messages)
    assert [text[span.start : span.end] for span in spans] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "hi",
        [],
        ["hi"],
        [{"content": "hi"}],
        [{"role": "user", "content": 3}],
        [{"role": "assistant", "content": "x"}],
    ],
)
def test_malformed_chats_are_bad_lines(messages: object, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(FUSSY)
    with pytest.raises(ValueError):
        chats.render(tokenizer, messages)
    path = write_chats(tmp_path / "a.jsonl", [("user", "hello"), ("assistant", "hi")])
    path.write_text(path.read_text(encoding="utf-8") + "\n" + json.dumps({"messages": messages}), encoding="utf-8")
    built = corpus.build(config(path, context_length=64), tokenizer)
    assert built.report.bad_lines == 1 and built.report.problems[0].startswith("a.jsonl:2: ")
    assert kept_text(built.train, tokenizer).strip() == "hi"


def test_template_that_drops_messages_is_refused() -> None:
    tokenizer = make_tokenizer("{{ messages[-1].content }}")
    with pytest.raises(ValueError, match="leaves out"):
        chats.render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_template_without_words_between_changed_contents_is_refused() -> None:
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.content.upper() }}{% endfor %}")
    with pytest.raises(ValueError, match="changes with the contents"):
        chats.render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_chats_without_words_are_empty(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_chats(
        tmp_path / "a.jsonl", [("user", "hello"), ("assistant", "hi")], [("user", ""), ("assistant", "")]
    )
    assert corpus.build(config(path, context_length=64), tokenizer).report.empty == 1


def test_user_errors_of_chats(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_chats(tmp_path / "a.jsonl", [("user", "cat"), ("assistant", "mat")])
    refuse(make_tokenizer(None), "corpus_format = 'chat': .* no chat template", path)
    refuse(tokenizer, r"roles = \['tool'\]: the chats have only assistant, user", path, roles=("tool",))
    refuse(tokenizer, "holds no text .* 1 bad lines", write_jsonl(tmp_path / "b.jsonl", ["x"]), corpus_format="chat")
