"""Every row begins with the separator, and the separator is the one that is asked for."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_texts import by_document, config, make_tokenizer, refuse, sentence, write_chats, write_jsonl
from transformers import PreTrainedTokenizerFast

from monolex.text import corpus
from monolex.text.separator import candidates, named, separator, use_separator


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(eos=True)


def in_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str], **changes: object) -> corpus.Rows:
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    return corpus.build(config(path, row_separator=True, **changes), tokenizer).train


@pytest.mark.parametrize("length", [2, 3, 8, 50])
def test_every_row_begins_with_it_and_nothing_else_changes(
    length: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [sentence(number) for number in range(40)]
    rows = in_rows(tmp_path, tokenizer, texts, context_length=length)
    plain = corpus.build(config(tmp_path / "a.jsonl", context_length=length), tokenizer).train
    assert (rows.tokens[:, 0] == 0).all() and not (plain.tokens[:, 0] == 0).all()
    inserted = ~rows.keep
    assert inserted.any() and not inserted[:, 1:].any() and (rows.tokens[inserted] == 0).all()
    # without those put in front of rows the documents are what they were
    stream = rows.tokens[rows.keep]
    assert torch.equal(stream[: plain.tokens.numel()], plain.tokens.flatten()[: len(stream)])
    own = rows.docs.clone()
    own[inserted] = -1
    assert (rows.docs[:, 0] == rows.docs[:, 1]).all(), "one in front is of the document that goes on there"
    # never two in a row: where a document begins with a row, its own separator is the row's
    assert not ((rows.tokens[:, 0] == 0) & (rows.tokens[:, 1] == 0)).any()


def test_a_document_that_begins_with_the_row_has_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = in_rows(tmp_path, tokenizer, ["aa", "bb"], context_length=3)
    assert rows.tokens.shape == (2, 3) and rows.keep.all()
    assert [tokens[0] for tokens in by_document(rows).values()] == [0, 0]


def test_a_chat_continued_in_a_row_has_one_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_chats(tmp_path / "a.jsonl", [("user", "the cat sat on a mat"), ("assistant", "two dogs run to that")])
    rows = corpus.build(config(path, row_separator=True), tokenizer).train
    assert len(rows) > 2 and (rows.tokens[:, 0] == 0).all() and not rows.keep[:, 0].any()


def test_none_and_names(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [sentence(number) for number in range(20)]
    assert candidates(tokenizer) == [0, 1]
    rows = in_rows(tmp_path, tokenizer, texts, separator="</s>")
    assert separator(tokenizer) == 1 and (rows.tokens[:, 0] == 1).all() and not (rows.tokens == 0).any()
    rows = in_rows(tmp_path, tokenizer, texts, separator="none")
    assert separator(tokenizer) is None and rows.keep.all() and not (rows.tokens <= 1).any()
    assert named(tokenizer, "<|im_end|>") == 3
    refuse(
        tokenizer,
        "separator = '<bos>' is no token of the tokenizer: give `<s>`, `</s>` or `none`",
        tmp_path,
        separator="<bos>",
    )


def test_a_choice_is_of_one_tokenizer_object(tokenizer: PreTrainedTokenizerFast) -> None:
    use_separator(tokenizer, 3)
    assert separator(tokenizer) == 3 and separator(make_tokenizer(eos=True)) == 0


def test_a_named_end_of_text_is_a_candidate() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    assert candidates(tokenizer) == [0, tokenizer.convert_tokens_to_ids("<|endoftext|>")]


def test_what_one_corpus_asked_for_is_not_what_auto_means_to_the_next(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [sentence(number) for number in range(20)]
    first = in_rows(tmp_path, tokenizer, texts)
    in_rows(tmp_path, tokenizer, texts, separator="none")
    assert torch.equal(in_rows(tmp_path, tokenizer, texts).tokens, first.tokens) and separator(tokenizer) == 0
    use_separator(tokenizer, 1)  # as measured
    assert (in_rows(tmp_path, tokenizer, texts).tokens[:, 0] == 1).all()
