"""A prompt as exact token ids: out of a text, out of a chat, as it was written down, or behind an earlier one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from monolex.config import require
from monolex.errors import UserError
from monolex.features.prompt_activations import tokenise, tokenizer_of
from monolex.model.hooks import require_tokens
from monolex.model.language_model import LanguageModel
from monolex.text import chats
from monolex.text.characters import joined
from monolex.text.encode import encode_chat, encode_texts, special_ids, special_pattern
from monolex.text.records import Document
from monolex.text.separator import separator
from monolex.text.vocabulary import Texts


@dataclass(frozen=True)
class LivePrompt:
    """Tokens that a model is given."""

    ids: tuple[int, ...]
    """Token ids, the separator included; never empty."""
    texts: tuple[str, ...]
    r"""Of every token alone; a part of a character is its bytes, ``\xe5``, as :mod:`monolex.text.characters` has it."""
    special: tuple[bool, ...]
    """Which tokens are special ones, the separator among them."""
    generated: tuple[bool, ...]
    """Which tokens the model has generated itself."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it, a sentence each."""

    @property
    def length(self) -> int:
        """Tokens before the model's last answer: without those at the end that it has generated; at least one."""
        return next(at for at in range(len(self.ids), 0, -1) if at == 1 or not self.generated[at - 1])

    @property
    def text(self) -> str:
        """What all tokens are together."""
        return joined(self.texts)


def from_text(lm: LanguageModel, text: str, *, literal: bool = False) -> LivePrompt:
    """``text`` behind the separator with which documents begin, which it may begin with itself.

    Names of special tokens, such as ``<|im_start|>``, are those tokens; with ``literal`` ordinary characters.

    Raises:
        UserError: no tokenizer, a text without a token, or one of more tokens than the model takes.
    """
    _require_unicode("prompt", text)
    encoded = tokenise(lm, [text], literal=literal)
    (tokens,) = encoded.tokens
    require(len(tokens) > 0, f"prompt = {text!r}: the tokenizer makes no token of it; give another text")
    require(
        encoded.truncated == 0, f"the prompt has more tokens than the {lm.max_context} that {lm.name} takes; shorten it"
    )
    lead = [] if encoded.separator is None else [encoded.separator]
    return from_ids(lm, [*lead, *tokens], notes=encoded.notes)


def from_chat(lm: LanguageModel, messages: Sequence[tuple[str, str]]) -> LivePrompt:
    """Pairs of role and content through the tokenizer's template, up to where the assistant's answer begins.

    Nothing is put before it: a template begins chats itself. Names of special tokens in a content are ordinary
    characters, as in a corpus of chats, so that no content can pretend to be another message.

    Raises:
        UserError: no tokenizer or no template, messages that the template refuses, or more tokens than the model takes.
    """
    tokenizer = tokenizer_of(lm)
    text, spans = _rendered(lm, messages)
    document = Document(text, "the chat", tuple(spans))
    ids, _ = encode_chat(document, special_pattern(tokenizer), (), tokenizer)
    return from_ids(lm, ids.tolist())


def _rendered(lm: LanguageModel, messages: Sequence[tuple[str, str]]) -> tuple[str, list[chats.Span]]:
    tokenizer = tokenizer_of(lm)
    require(
        bool(tokenizer.chat_template),
        f"the tokenizer of {lm.name} has no chat template, so roles mean nothing to it; give a text, or a chat model",
    )
    for _, content in messages:
        _require_unicode("content", content)
    try:
        chat = [{"role": role, "content": content} for role, content in messages]
        return chats.render(tokenizer, chat, answer=True)
    except ValueError as error:
        raise UserError(f"messages cannot be made a prompt of {lm.name}: {error}") from error


def from_ids(
    lm: LanguageModel, ids: Sequence[int], *, generated: Sequence[bool] = (), notes: tuple[str, ...] = ()
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
    require(not beyond, f"token id {beyond[:1]} has no row in the embedding of {lm.name}")
    require_tokens(lm, torch.tensor([list(ids)]))
    require(
        len(generated) in (0, len(ids)),
        f"generated is of {len(generated)} tokens and ids of {len(ids)}: give it of all",
    )
    known, marked = dict(Texts(lm).of(ids)), special_tokens(lm)
    texts, special = (known[token] for token in ids), (token in marked for token in ids)
    flags = map(bool, generated or (False,) * len(ids))
    return LivePrompt(tuple(ids), tuple(texts), tuple(special), tuple(flags), notes)


def with_text(lm: LanguageModel, prompt: LivePrompt, text: str, *, literal: bool = False) -> LivePrompt:
    """``prompt``, token for token, and ``text`` behind it.

    Raises:
        UserError: no tokenizer, a text without a token, or more tokens than the model takes.
    """
    _require_unicode("text", text)
    new = encode_texts([text], lm.max_context + 1, tokenizer_of(lm), special=not literal)[0]
    require(len(new) > 0, f"text = {text!r}: the tokenizer makes no token of it; give another text")
    return _longer(lm, prompt, new)


def with_message(lm: LanguageModel, prompt: LivePrompt, content: str, *, role: str = "user") -> LivePrompt:
    """``prompt``, token for token, of which the end is an answer of the assistant, and the next message of a chat.

    What stands between the two, and the beginning of the next answer, are the template's words.

    Raises:
        UserError: as :func:`from_chat`.
    """
    tokenizer = tokenizer_of(lm)
    require(bool(content.strip()), f"content = {content!r}: a message says something; give a text")
    text, spans = _rendered(lm, [("user", "?"), ("assistant", "?"), (role, content)])
    assert len(spans) == 3, "each has a content"
    end = spans[1].end
    tail = [span._replace(start=span.start - end, end=span.end - end) for span in spans[2:]]
    document = Document(text[end:], "the chat", tuple(tail))
    ids, _ = encode_chat(document, special_pattern(tokenizer), (), tokenizer)
    new = ids.tolist()
    # the model may have ended its answer itself, with the token that the template ends it with
    return _longer(lm, prompt, new[1:] if new[:1] == [prompt.ids[-1]] and prompt.special[-1] else new)


def _longer(lm: LanguageModel, prompt: LivePrompt, new: Sequence[int]) -> LivePrompt:
    flags = (*prompt.generated, *(False,) * len(new))
    return from_ids(lm, (*prompt.ids, *new), generated=flags, notes=prompt.notes)


def _require_unicode(name: str, text: str) -> None:
    """Halves of surrogate pairs, which JSON can hold, are no characters."""
    whole = not any("\ud800" <= character <= "\udfff" for character in text)
    require(whole, f"{name} holds half of a surrogate pair, which is no character: give text")


def special_tokens(lm: LanguageModel) -> set[int]:
    """Special tokens of a model's tokenizer, the separator among them; none without a tokenizer."""
    if lm.tokenizer is None:
        return set()
    lead = separator(lm.tokenizer)
    return special_ids(lm.tokenizer) | ({lead} if lead is not None else set())
