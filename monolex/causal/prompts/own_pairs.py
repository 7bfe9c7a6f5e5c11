"""One's own pairs of prompts, one JSON object a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from monolex.causal.prompts.pairs import Pair, PromptPairs, continuations, encode, stack
from monolex.config import require
from monolex.errors import UserError

REQUIRED = ("base", "donor", "right", "wrong")
FIELDS = (*REQUIRED, "donor_right")


def from_jsonl(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
    """Pairs out of lines ``{"base", "donor", "right", "wrong"[, "donor_right"]}``; the only role is ``END``.

    Answers are a string or a list of them, and each is one token behind its prompt (with the space before it, where
    it has one). Base and donor have equally many tokens. Empty lines are passed over.

    Raises:
        UserError: no such file, no line in it, or the first line that is not so, by number.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a file of JSON lines") from error
    pairs = [
        _pair(f"{path}:{number}", _record(f"{path}:{number}", line), tokenizer)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    require(len(pairs) > 0, f"{path} is empty: give one JSON object with {', '.join(REQUIRED)} a line")
    return stack(path.name, "", pairs)


def _record(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({error}); write one object a line") from error
    require(isinstance(record, dict), f"{where}: a line is one JSON object with {', '.join(REQUIRED)}")
    missing = [name for name in REQUIRED if name not in record]
    require(not missing, f"{where}: {', '.join(missing)} is missing; a line needs {', '.join(REQUIRED)}")
    unknown = [name for name in record if name not in FIELDS]
    require(not unknown, f"{where}: {', '.join(unknown)} is not known; the fields are {', '.join(FIELDS)}")
    return record


def _pair(where: str, record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Pair:
    for name in ("base", "donor"):
        text = record[name]
        require(isinstance(text, str) and text != "", f"{where}: {name} is {text!r}; give it as text")
    base, donor = encode(tokenizer, (record["base"], record["donor"]))
    require(
        len(base) == len(donor),
        f"{where}: base has {len(base)} tokens and donor {len(donor)}; reword one so that they are equally long",
    )
    require(base != donor, f"{where}: base and donor are the same; what is patched between them would change nothing")
    right, wrong, donor_right = (_answers(where, name, record, tokenizer) for name in ("right", "wrong", "donor_right"))
    for name, answers in (("right", right), ("wrong", wrong)):
        require(len(answers) > 0, f"{where}: {name} is empty; give at least one answer")
    both = tokenizer.decode(list(set(right) & set(wrong)))
    require(not set(right) & set(wrong), f"{where}: {both!r} is both right and wrong; leave it out of one")
    return Pair((record["base"], record["donor"]), (base, donor), right, wrong, donor_right, {})


def _answers(where: str, name: str, record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    written = record.get(name, [])
    texts = [written] if isinstance(written, str) else written
    fine = isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)
    require(fine, f"{where}: {name} is {written!r}; give a string or a list of strings")
    prompt = record["donor" if name == "donor_right" else "base"]
    spelled = continuations(tokenizer, prompt, texts)
    for text, ids in zip(texts, spelled, strict=True):
        instead = f"is {len(ids)} tokens after" if ids else "melts into the end of"
        require(
            len(ids) == 1,
            f"{where}: {name} {text!r} {instead} {prompt[-20:]!r} and should be one token; begin an answer with its "
            "space, or give another",
        )
    return tuple(dict.fromkeys(token for (token,) in spelled))
