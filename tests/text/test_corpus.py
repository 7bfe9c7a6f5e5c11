"""Packing is checked against the plain identity: the rows of a document, put together, are its own encoding."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_texts import (
    UNICODE,
    WORDS,
    by_document,
    config,
    kept_text,
    make_tokenizer,
    refuse,
    sentence,
    texts_of,
    write_jsonl,
)
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from monolex.config import CorpusConfig
from monolex.text import corpus
from monolex.text.separator import separator


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def same(a: corpus.Rows, b: corpus.Rows) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.docs, b.docs) and torch.equal(a.keep, b.keep)


def test_rows_are_the_separate_encodings_joined(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [sentence(i) for i in range(40)] + [*UNICODE]
    built = corpus.build(config(write_jsonl(tmp_path / "a.jsonl", texts)), tokenizer)
    expected = {(tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids) for text in texts}
    documents = by_document(built.train)
    assert sorted(documents) == list(range(max(documents) + 1))
    last = max(documents)
    whole = {tuple(tokens) for doc, tokens in documents.items() if doc != last}
    assert whole <= expected and len(whole) >= len(texts) - 2
    docs = built.train.docs.flatten()
    assert (docs.diff() >= 0).all(), "documents follow one another in reading order"
    assert built.train.keep.all() and built.train.n_tokens == built.train.tokens.numel()
    assert built.report.tokens == built.train.tokens.numel() + built.report.dropped_tokens
    assert built.report.dropped_tokens < 8
    assert built.train.tokens.dtype == built.train.docs.dtype == torch.int32 and built.train.keep.dtype == torch.bool
    assert built.train.context_length == 8 and built.train.documents == len(documents)


@pytest.mark.parametrize("text", UNICODE)
def test_text_survives_byte_for_byte(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    built = corpus.build(config(path, context_length=512), tokenizer)
    assert kept_text(built.train, tokenizer) == "<s>" + text


def test_document_tokens_takes_the_beginning_of_each(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(n) * 9 for n in range(30)])
    settings = {"corpus": str(path), "context_length": 8, "held_out": 0.0, "row_separator": False}
    whole = corpus.build(CorpusConfig(**settings), tokenizer)
    clipped = corpus.build(CorpusConfig(**settings, document_tokens=10), tokenizer)
    assert whole.report.documents == clipped.report.documents == 30
    assert clipped.report.tokens == 300
    for rows in (whole, clipped):
        assert rows.train.tokens.numel() > 0
    first = {int(d): whole.train.tokens[whole.train.docs == d][:10].tolist() for d in whole.train.docs.unique()[:-1]}
    for document in clipped.train.docs.unique()[:-1].tolist():
        assert clipped.train.tokens[clipped.train.docs == document].tolist() == first[document]


def test_a_single_short_row_is_padded(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("the cat", encoding="utf-8")
    rows = corpus.build(config(tmp_path / "a.txt", context_length=64), tokenizer).train
    length = 1 + len(tokenizer("the cat", add_special_tokens=False).input_ids)
    assert len(rows) == 1 and rows.keep[0].tolist() == [True] * length + [False] * (64 - length)
    assert rows.tokens[0, length:].unique().tolist() == [tokenizer.bos_token_id]
    assert rows.docs[0, length:].unique().tolist() == [-1] and rows.documents == 1


@pytest.mark.parametrize(("bos", "eos", "first"), [(True, True, "<s>"), (False, True, "</s>"), (False, False, None)])
def test_separator(bos: bool, eos: bool, first: str | None, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    expected = None if first is None else tokenizer.get_vocab()[first]
    assert separator(tokenizer) == expected
    built = corpus.build(config(write_jsonl(tmp_path / "a.jsonl", [sentence(i) for i in range(9)])), tokenizer)
    starts = {tokens[0] for tokens in by_document(built.train).values()}
    digits = {tokenizer.get_vocab()[digit] for digit in "012345678"}
    assert starts == ({expected} if first else digits)


def test_separator_is_what_the_tokenizer_puts_first() -> None:
    tokenizer = make_tokenizer(bos=False, eos=True)
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    assert separator(tokenizer) == 0


def test_special_strings_in_text_stay_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "cat <s> sat <|im_end|> on"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    rows = corpus.build(config(tmp_path / "a.txt", context_length=64), tokenizer).train
    tokens = rows.tokens[rows.keep].tolist()
    assert [i for i, token in enumerate(tokens) if token in tokenizer.all_special_ids] == [0]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in tokens
    assert tokenizer.decode(tokens[1:]) == text
    assert tokenizer.bos_token_id in tokenizer(text, add_special_tokens=False).input_ids, "or this could not fail"


def test_seed_decides_order_and_split(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(i) for i in range(60)])
    first, again, other = (corpus.build(config(path, held_out=0.3, corpus_seed=seed), tokenizer) for seed in (0, 0, 1))
    assert first.digest == again.digest and same(first.train, again.train) and same(first.held_out, again.held_out)
    held, others = (texts_of(built.held_out, tokenizer) for built in (first, other))
    assert len(held & others) < len(held) / 2
    orders = [corpus.build(config(path, corpus_seed=seed), tokenizer).train.tokens for seed in (0, 1)]
    assert not torch.equal(orders[0][:5], orders[1][:5])
    in_file_order = [tokenizer.bos_token_id, *tokenizer(sentence(0), add_special_tokens=False).input_ids]
    assert by_document(corpus.build(config(path), tokenizer).train)[0] != in_file_order


def test_held_out_documents_are_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [sentence(i) for i in range(200)]
    path = write_jsonl(tmp_path / "a.jsonl", texts * 2)
    built = corpus.build(config(path, held_out=0.25), tokenizer)
    train, held = texts_of(built.train, tokenizer) & set(texts), texts_of(built.held_out, tokenizer) & set(texts)
    assert not train & held, "two copies of a text are on one side"
    assert not set(by_document(built.train)) & set(by_document(built.held_out)), "no id is on both sides"
    assert 0.15 < len(held) / 200 < 0.35
    assert len(train | held) >= 198
    fewer = corpus.build(config(path, held_out=0.25, max_tokens=1500), tokenizer)
    whole = texts_of(fewer.held_out, tokenizer) & set(texts)
    assert whole and whole <= held, "the split does not depend on max_tokens"


@pytest.mark.parametrize("fraction", [1e-12, 1 - 1e-12])
def test_two_documents_fill_both_splits(fraction: float, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    built = corpus.build(config(write_jsonl(tmp_path / "a.jsonl", ["cat", "dog"]), held_out=fraction), tokenizer)
    assert {kept_text(built.train, tokenizer), kept_text(built.held_out, tokenizer)} == {"<s>cat", "<s>dog"}


def test_nothing_held_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    built = corpus.build(config(write_jsonl(tmp_path / "a.jsonl", ["cat", "dog"])), tokenizer)
    assert built.held_out.tokens.shape == (0, 8) and built.held_out.n_tokens == 0 and built.held_out.documents == 0


@pytest.mark.parametrize("limit", [1, 7, 64, 65, 300])
def test_max_tokens_is_exact(limit: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(i) for i in range(60)])
    full = corpus.build(config(path), tokenizer).train.tokens.flatten()
    built = corpus.build(config(path, max_tokens=limit), tokenizer)
    assert built.report.tokens == limit
    kept = built.train.tokens[built.train.keep]
    assert len(kept) == (limit if limit < 8 else limit - limit % 8) and torch.equal(kept, full[: len(kept)])


def test_long_documents_are_cut_exactly(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["=" * 64])
    # The second text makes fewer tokens than its characters promise, so it is encoded twice.
    for text in (" ".join(WORDS * 2000), "=" * 64_000 + " the end"):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        rows = corpus.build(config(tmp_path / "a.txt", max_tokens=400), tokenizer).train
        expected = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False).input_ids][:400]
        assert len(expected) == 400 and rows.tokens.flatten().tolist() == expected


@pytest.mark.parametrize("positions", ["1:", ":3", "-2:", "::3"])
def test_positions(positions: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(i) for i in range(20)])
    rows = corpus.build(config(path, positions=positions), tokenizer).train
    expected = torch.zeros(8, dtype=torch.bool)
    expected[[p for p in range(8) if p in config(path, positions=positions).position_slice()]] = True
    assert torch.equal(rows.keep, expected.expand(len(rows), 8))
    assert torch.equal(rows.tokens, corpus.build(config(path), tokenizer).train.tokens)


def test_user_errors(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", ["cat"])
    refuse(tokenizer, "context_length = 513 .* 512 positions", one, context_length=513)
    refuse(tokenizer, "no such file or folder", tmp_path / "missing")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "picture.png").write_bytes(b"\x89PNG")
    refuse(tokenizer, "the folder holds no file to read", tmp_path / "bare")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    refuse(tokenizer, r"holds no text \(.*1 empty \(first: empty.txt: empty\)\)", tmp_path / "empty.txt")
    refuse(tokenizer, "only one document .* set held_out = 0", one, held_out=0.5)
    refuse(tokenizer, "only one document", write_jsonl(tmp_path / "twice.jsonl", ["cat", "cat"]), held_out=0.5)
    refuse(tokenizer, "text_field = 'body': .* the fields there are text", one, text_field="body")
    refuse(tokenizer, "positions = '5:' .* keep no token", one, positions="5:")
    refuse(tokenizer, "the stdlib corpus is plain text", "stdlib", corpus_format="jsonl")
