"""Texts of tokens: each says which bytes it is, no two say the same, and together they are the text."""

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sentence_pieces import sentence_pieces
from helpers.tiny_texts import UNICODE, make_tokenizer

import monolex
from monolex.text.characters import Piece, alone, joined, json_quoted, pieces, quoted, raw_bytes
from monolex.text.vocabulary import Texts

HARD = (*UNICODE, "😀 北京", "“so” — it's", "naïve", r"b'\xff\xe5\x8c' is \\xe5", "  \n    four", "the was cat s sing")


@pytest.fixture(params=["bytes", "demo", "fallback"])
def tokenizer(request) -> Any:
    if request.param == "demo":
        return monolex.load_model("demo").tokenizer
    return make_tokenizer() if request.param == "bytes" else sentence_pieces()


def texts_of(tokenizer) -> Texts:
    lm: Any = SimpleNamespace(tokenizer=tokenizer)
    return Texts(lm)


def test_tokens_are_joined_into_the_text_that_they_are(tokenizer):
    texts = texts_of(tokenizer)
    for text in HARD:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert texts.joined(ids) == (f" {text}" if tokenizer.unk_token == "<unk>" else text)
        known = dict(texts.of(ids))
        assert joined(known[token] for token in ids) == texts.joined(ids)


def test_a_token_alone_is_its_text_or_its_bytes(tokenizer):
    texts, ids = texts_of(tokenizer), tokenizer("😀 北京", add_special_tokens=False)["input_ids"]
    raw = b"".join(raw_bytes(text) for token in ids for _, text in texts.of([token]))
    assert raw.decode().strip() == "😀 北京"
    for _, text in texts.of(ids):
        assert text.isascii() and (text == " " or text.replace(" ", "").startswith("\\x"))


def test_every_token_has_a_text_of_its_own(tokenizer):
    texts = [
        text for token, text in texts_of(tokenizer).of(range(len(tokenizer))) if not is_ascii_byte(tokenizer, token)
    ]
    assert len(set(texts)) == len(texts)
    assert not any("\ufffd" in text for text in texts)


def is_ascii_byte(tokenizer, token: int) -> bool:
    """SentencePiece keeps a second token for every character of ASCII, which it has no use for."""
    piece = tokenizer.convert_ids_to_tokens(token)
    return piece.startswith("<0x") and int(piece[3:5], 16) < 0x80


@pytest.mark.parametrize(
    ("piece", "text"), [("▁was", " was"), ("▁", " "), ("▁▁", "  "), ("▁▁▁▁", "    "), ("ing", "ing")]
)
def test_pieces_keep_all_their_spaces(piece, text):
    tokenizer: Any = sentence_pieces()
    assert texts_of(tokenizer).of([tokenizer.convert_tokens_to_ids(piece)])[0][1] == text


def test_an_escaped_text_says_which_bytes_it_is():
    for raw in (
        b"a",
        b"\\",
        rb"\xff",
        rb"\\xff",
        b"\\\xff",
        rb"a\xffb",
        "é\\".encode(),
        "é".encode()[:1],
        b" \xe2\x80",
        b"\x8c\\xe5",
    ):
        assert raw_bytes(alone(raw)) == raw
    everything = [bytes([a, b]) for a in range(0, 256, 5) for b in range(256)]
    assert len({alone(raw) for raw in everything}) == len(everything)


def test_tokens_that_share_characters_are_one_piece():
    first, second, third = alone(b"\xe5"), alone(b"\x8c\x97\xe4"), alone(b"\xba\xac")
    assert pieces(["a", first, second, third, " b"]) == [Piece(0, 1, "a"), Piece(1, 4, "北京"), Piece(4, 5, " b")]
    # what is cut off at the edges stays a piece of its own
    assert pieces([second, third, first]) == [Piece(0, 2, r"\x8c\x97京"), Piece(2, 3, r"\xe5")]
    both = [alone("é".encode()[:1]), alone("é".encode()[1:])]
    assert pieces([*both, *both]) == [Piece(0, 2, "é"), Piece(2, 4, "é")]
    assert pieces([]) == [] and joined([]) == ""


def test_a_text_that_looks_like_bytes_is_not_joined():
    looks = [rb"\xe5", rb"\x8c", rb"\x97"]
    assert joined(alone(raw) for raw in looks) == r"\xe5\x8c\x97"
    assert joined(["\\", "xe5", "\\", "x8c", "\\", "x97"]) == r"\xe5\x8c\x97"


def test_quotation_marks_leave_bytes_as_they_are_shown():
    assert quoted(alone(b"\n\xe5")) == r"'\n\xe5'" and quoted("\\n") == r"'\\n'"
    assert json_quoted(alone(b'"\xe5')) == r'"\"\xe5"' and json_quoted("京\n") == r'"京\n"'
