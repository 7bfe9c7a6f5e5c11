"""A tiny tokenizer trained in code, and the files and settings that the tests of text share."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monolex.config import CorpusConfig
from monolex.errors import UserError
from monolex.text import corpus

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# Shortens the answers before the last, trims, and refuses what does not begin with the user.
FUSSY = (
    "<s>{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}] "
    "{% if loop.last %}{{ m.content | trim }}{% else %}{{ m.content.split('</think>')[-1] | trim }}{% endif %}\n"
    "{% endfor %}"
)
UNICODE = (
    "emoji 👩‍👩‍👧 and 🙂",
    "漢字かな交じり",
    "cafe\u0301 e\u0301",
    "line one\r\nline two\r\n",
    "\u202eright to left א",
    "tab\there\n\n\n",
)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "to", "that", "red", "house"]


def make_tokenizer(template: str | None = CHATML, bos: bool = True, eos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<s>` = 0, `</s>`, `<|im_start|>` and `<|im_end|>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        model_max_length=16,
    )
    tokenizer.chat_template = template
    return tokenizer


def sentence(number: int) -> str:
    """Distinct short English-looking text."""
    return f"{number} " + " ".join(WORDS[(number * k) % len(WORDS)] for k in range(3, 3 + 5 + number % 7))


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_chats(path: Path, *conversations: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in chat]}) for chat in conversations]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def config(path: Path | str, **changes: object) -> CorpusConfig:
    """Short rows of nothing but the documents, nothing held out unless told."""
    plain = {"context_length": 8, "held_out": 0.0, "row_separator": False}
    return CorpusConfig(**{"corpus": str(path), **plain, **changes})  # pyright: ignore


def kept_text(rows: corpus.Rows, tokenizer: PreTrainedTokenizerFast) -> str:
    """The kept tokens as text."""
    return str(tokenizer.decode(rows.tokens[rows.keep].tolist()))


def by_document(rows: corpus.Rows) -> dict[int, list[int]]:
    """Tokens of every document."""
    found: dict[int, list[int]] = {}
    for doc, token in zip(rows.docs.flatten().tolist(), rows.tokens.flatten().tolist(), strict=True):
        found.setdefault(doc, []).append(token)
    return found


def texts_of(rows: corpus.Rows, tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Text of every document without its separator; the documents at a cut edge are in part."""
    return {str(tokenizer.decode(tokens[1:])) for tokens in by_document(rows).values()}


def refuse(tokenizer: PreTrainedTokenizerFast, wanted: str, path: Path | str, **changes: object) -> None:
    """Building must end in one sentence that matches ``wanted``."""
    with pytest.raises(UserError, match=wanted) as caught:
        corpus.build(config(path, **changes), tokenizer, max_context=512)
    assert "\n" not in str(caught.value)
