"""Prompts out of texts, out of chats, as they were written down, and behind earlier ones.

Each is made while the model's lock is held: a tokenizer serves one thread at a time.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

import torch

from monolex.config import require
from monolex.errors import UserError
from monolex.features.prompt_activations import tokenise, tokenizer_of
from monolex.live.prompt import LivePrompt, special_tokens
from monolex.live.session import LiveModel
from monolex.model.hooks import require_tokens
from monolex.text import chats
from monolex.text.encode import encode_chat, encode_texts, special_pattern
from monolex.text.records import Document

Arguments = ParamSpec("Arguments")


def _locked(
    make: Callable[Concatenate[LiveModel, Arguments], LivePrompt],
) -> Callable[Concatenate[LiveModel, Arguments], LivePrompt]:
    @wraps(make)
    def locked(live: LiveModel, *args: Arguments.args, **kwargs: Arguments.kwargs) -> LivePrompt:
        with live.lock:
            return make(live, *args, **kwargs)

    return locked


@_locked
def from_text(live: LiveModel, text: str, *, literal: bool = False) -> LivePrompt:
    """``text`` behind the separator with which documents begin, which it may begin with itself.

    Names of special tokens, such as ``<|im_start|>``, are those tokens; with ``literal`` ordinary characters.

    Raises:
        UserError: no tokenizer, a text without a token, or one of more tokens than the model takes.
    """
    _require_unicode("prompt", text)
    encoded = tokenise(live.lm, [text], literal=literal)
    (tokens,) = encoded.tokens
    require(len(tokens) > 0, f"prompt = {text!r}: the tokenizer makes no token of it; give another text")
    require(
        encoded.truncated == 0,
        f"the prompt has more tokens than the {live.lm.max_context} that {live.lm.name} takes; shorten it",
    )
    lead = [] if encoded.separator is None else [encoded.separator]
    return from_ids(live, [*lead, *tokens], notes=encoded.notes)


@_locked
def from_chat(live: LiveModel, messages: Sequence[tuple[str, str]]) -> LivePrompt:
    """Pairs of role and content through the tokenizer's template, up to where the assistant's answer begins.

    Nothing is put before it: a template begins chats itself. Names of special tokens in a content are ordinary
    characters, as in a corpus of chats, so that no content can pretend to be another message.

    Raises:
        UserError: no tokenizer or no template, messages that the template refuses, or more tokens than the model takes.
    """
    tokenizer = tokenizer_of(live.lm)
    text, spans = _rendered(live, messages)
    document = Document(text, "the chat", tuple(spans))
    ids, _ = encode_chat(document, special_pattern(tokenizer), (), tokenizer)
    return from_ids(live, ids.tolist())


def _rendered(live: LiveModel, messages: Sequence[tuple[str, str]]) -> tuple[str, list[chats.Span]]:
    tokenizer = tokenizer_of(live.lm)
    require(
        bool(tokenizer.chat_template),
        f"the tokenizer of {live.lm.name} has no chat template, so roles mean nothing to it; give a text",
    )
    for name, text in ((name, text) for said in messages for name, text in zip(("role", "content"), said, strict=True)):
        _require_unicode(name, text)
    try:
        chat = [{"role": role, "content": content} for role, content in messages]
        return chats.render(tokenizer, chat, answer=True)
    except ValueError as error:
        raise UserError(f"messages cannot be made a prompt of {live.lm.name}: {error}") from error


@_locked
def from_ids(
    live: LiveModel, ids: Sequence[int], *, generated: Sequence[bool] = (), notes: tuple[str, ...] = ()
) -> LivePrompt:
    """Exactly these tokens; ``generated`` says which of them the model has generated, by default none.

    Raises:
        UserError: no token, what is no token id of this model, more than it takes, or ``generated`` of another length.
    """
    wrong = [token for token in ids if type(token) is not int]
    require(not wrong, f"ids hold {wrong[:1]}: give whole numbers, the ids of tokens")
    require(len(ids) > 0, "ids are empty: give at least one token")
    # larger ones are no numbers of a tensor; of the others the model says which it lacks
    beyond = [token for token in ids if abs(token) >= 2**63]
    require(not beyond, f"token id {beyond[:1]} has no row in the embedding of {live.lm.name}")
    require_tokens(live.lm, torch.tensor([list(ids)]))
    require(
        len(generated) in (0, len(ids)),
        f"generated is of {len(generated)} tokens and ids of {len(ids)}: give it of all",
    )
    known, marked = dict(live.texts.of(ids)), special_tokens(live.lm)
    texts, special = (known[token] for token in ids), (token in marked for token in ids)
    flags = map(bool, generated or (False,) * len(ids))
    return LivePrompt(tuple(ids), tuple(texts), tuple(special), tuple(flags), notes)


@_locked
def with_text(live: LiveModel, prompt: LivePrompt, text: str, *, literal: bool = False) -> LivePrompt:
    """``prompt``, token for token, and ``text`` behind it.

    Raises:
        UserError: no tokenizer, a text without a token, or more tokens than the model takes.
    """
    _require_unicode("text", text)
    new = encode_texts([text], live.lm.max_context + 1, tokenizer_of(live.lm), special=not literal)[0]
    require(len(new) > 0, f"text = {text!r}: the tokenizer makes no token of it; give another text")
    return _longer(live, prompt, new)


@_locked
def with_message(live: LiveModel, prompt: LivePrompt, content: str, *, role: str = "user") -> LivePrompt:
    """``prompt``, token for token, of which the end is an answer of the assistant, and the next message of a chat.

    What stands between the two, and the beginning of the next answer, are the template's words.

    Raises:
        UserError: as :func:`from_chat`.
    """
    tokenizer = tokenizer_of(live.lm)
    require(bool(content.strip()), f"content = {content!r}: a message says something; give a text")
    text, spans = _rendered(live, [("user", "?"), ("assistant", "?"), (role, content)])
    assert len(spans) == 3, "each has a content"
    end = spans[1].end
    tail = [span._replace(start=span.start - end, end=span.end - end) for span in spans[2:]]
    document = Document(text[end:], "the chat", tuple(tail))
    ids, _ = encode_chat(document, special_pattern(tokenizer), (), tokenizer)
    new = ids.tolist()
    # the model may have ended its answer itself, with the token that the template ends it with
    return _longer(live, prompt, new[1:] if new[:1] == [prompt.ids[-1]] and prompt.special[-1] else new)


def _longer(live: LiveModel, prompt: LivePrompt, new: Sequence[int]) -> LivePrompt:
    flags = (*prompt.generated, *(False,) * len(new))
    return from_ids(live, (*prompt.ids, *new), generated=flags, notes=prompt.notes)


def _require_unicode(name: str, text: str) -> None:
    """Halves of surrogate pairs, which JSON can hold, are no characters."""
    whole = isinstance(text, str) and not any("\ud800" <= character <= "\udfff" for character in text)
    require(whole, f"{name} = {text!r} is no text of whole characters: give such a text")
