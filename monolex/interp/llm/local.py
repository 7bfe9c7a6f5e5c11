"""A local model that answers as an endpoint would: chats, completions, and the log-probabilities of a prompt."""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, final

import jinja2

from monolex import runtime
from monolex.artifact import digest
from monolex.features.prompt_activations import tokenizer_of
from monolex.interp.llm.client import Answer, Keep, More, Usage, collect, key_of, reply
from monolex.interp.llm.identity import precision
from monolex.interp.llm.sampling import Draw, RankedToken, decoded, pieces, run
from monolex.interp.records import Failure, Reply, Request
from monolex.model.language_model import LanguageModel
from monolex.text.characters import raw_bytes
from monolex.text.vocabulary import Texts

KNOWN = frozenset({"max_tokens", "temperature", "top_p", "stop", "echo", "logprobs", "top_logprobs", "seed"})
"""Parameters that are obeyed, as OpenAI defines them (a seed makes it another request, which is all it has to do); a
request with any other is a failure, since leaving it out would answer something else."""
COMPLETION_TOKENS = 16
"""What a completion writes where ``max_tokens`` is not given; a chat writes up to the end of the context."""
TOP = 20
"""Most likely tokens an endpoint gives at a place."""
VERSION = 1
"""Part of a reply's key: raised when the same request would be answered otherwise."""


@final
class LocalClient:
    """A model of the machine, in batches of at most ``batch_tokens`` (prompt and answer, padding included).

    A chat goes through the tokenizer's template; without one, the roles are named in plain text.

    Raises:
        UserError: the model has no tokenizer.
    """

    def __init__(self, lm: LanguageModel, *, batch_tokens: int = 4096) -> None:
        self.lm, self.batch_tokens, self.model = lm, batch_tokens, lm.name
        self._tokenizer: Any = tokenizer_of(lm)
        self._texts = Texts(lm)
        words = [self._tokenizer.get_vocab(), self._tokenizer.chat_template]
        self.identity = f"local:{precision(lm)}:{digest([VERSION, lm.fingerprint, words])}"

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """The answers, in order."""
        return collect(self, requests)

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:
        """As ``Backend.answer``, the longest prompts first, those of like length together."""
        waiting = []
        for number, request in enumerate(requests):
            draw = self._draw(request)
            if isinstance(draw, Failure):
                keep(Answer(number, draw))
            else:
                waiting.append((number, draw))
        waiting.sort(key=lambda item: len(item[1].ids))
        while waiting and more():
            batch = [waiting.pop()]
            longest, new = len(batch[0][1].ids), batch[0][1].new
            while waiting:
                new = max(new, waiting[-1][1].new)
                if (len(batch) + 1) * (longest + new) > self.batch_tokens:
                    break
                batch.append(waiting.pop())
            started = time.monotonic()
            run(self.lm, [draw for _, draw in batch])
            seconds = (time.monotonic() - started) / len(batch)
            for number, draw in batch:
                usage = Usage(len(draw.ids), draw.cost)
                keep(Answer(number, self._reply(requests[number], draw), usage, seconds))

    def close(self) -> None:
        """Nothing to give up: the model is the caller's."""

    def _draw(self, request: Request) -> Draw | Failure:
        """What is to be done for a request, or why it cannot be."""
        params, chat = dict(request.params), bool(request.messages)
        if unknown := sorted(set(params) - KNOWN):
            return Failure(f"no local model takes {unknown[0]}")
        stop = params.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if chat and self._tokenizer.chat_template is None:
            stop = (*stop, *(f"\n\n{role.capitalize()}:" for role in ("system", "user", "assistant")))
        ids = self._chat(request) if chat else self._tokenizer(request.prompt)["input_ids"]
        if isinstance(ids, Failure) or not ids:
            return ids if isinstance(ids, Failure) else Failure("empty prompt")
        room = self.lm.max_context - len(ids)
        new = params.get("max_tokens")
        new = (room if chat else COMPLETION_TOKENS) if new is None else new
        if room < min(new, 1):
            return Failure("longer than the model's context")
        top = _top(params, chat)
        generator = runtime.generator("reply", key_of("", request))
        temperature, top_p = float(params.get("temperature", 1.0)), float(params.get("top_p", 1.0))
        return Draw(ids, min(new, room), temperature, top_p, stop, top, bool(params.get("echo")), generator)

    def _chat(self, request: Request) -> list[int] | Failure:
        if self._tokenizer.chat_template is None:
            said = "".join(f"{role.capitalize()}: {content}\n\n" for role, content in request.messages)
            return self._tokenizer(f"{said}Assistant:")["input_ids"]
        for messages in (request.messages, _without_system(request.messages)):
            chat = [{"role": role, "content": content} for role, content in messages]
            try:
                return self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
            except jinja2.TemplateError:  # Gemma's, for example, knows no system
                continue
        return Failure("the chat template refuses the messages")

    def _reply(self, request: Request, draw: Draw) -> Reply:
        if request.messages:
            text = _until(decoded(self.lm, draw.written), draw.stop)
            said = text if self._tokenizer.chat_template is not None else text.strip()
            logprobs = None if draw.top is None else {"content": [self._entry(ranked) for ranked in draw.ranked]}
            return reply(request, said, logprobs=logprobs, finish_reason=draw.finish)
        shown, read = pieces(self.lm, [*draw.ids, *draw.written]), len(draw.ids)
        prompt, written = "".join(shown[:read]), "".join(shown[read:])
        text = (prompt if draw.echo else "") + _until(written, draw.stop)
        logprobs = None if draw.top is None else self._layout(draw, shown if draw.echo else shown[read:], len(text))
        return reply(request, text, logprobs=logprobs, finish_reason=draw.finish)

    def _layout(self, draw: Draw, shown: list[str], length: int) -> dict[str, Any]:
        """OpenAI's layout of a completion; as there, nothing is known of a prompt's first token."""
        offsets = [offset for offset in accumulate(map(len, shown), initial=0) if offset < length][: len(shown)]
        ranked = ([None, *draw.prompt, *draw.ranked] if draw.echo else draw.ranked)[: len(offsets)]
        return {
            "tokens": shown[: len(offsets)],
            "token_logprobs": [None if entry is None else entry.logprob for entry in ranked],
            "top_logprobs": [None if entry is None else self._likeliest(entry) for entry in ranked],
            "text_offset": offsets,
        }

    def _likeliest(self, ranked: RankedToken) -> dict[str, float]:
        """By text, of which several tokens may have the same: then the likeliest; with the token itself, as OpenAI."""
        names = dict(self._texts.of([ranked.token, *(token for token, _ in ranked.top)]))
        by_text: dict[str, float] = {}
        for token, logprob in (*ranked.top, (ranked.token, ranked.logprob)):
            by_text.setdefault(names[token], logprob)
        return by_text

    def _entry(self, ranked: RankedToken) -> dict[str, Any]:
        """OpenAI's layout of one token of a chat."""
        names = dict(self._texts.of([ranked.token, *(token for token, _ in ranked.top)]))

        def said(token: int, logprob: float) -> dict[str, Any]:
            return {"token": names[token], "logprob": logprob, "bytes": list(raw_bytes(names[token]))}

        return said(ranked.token, ranked.logprob) | {"top_logprobs": [said(*entry) for entry in ranked.top]}


def _top(params: Mapping[str, Any], chat: bool) -> int | None:
    """How many likeliest tokens are wanted at each place; a chat says so in two parameters, a completion in one."""
    if chat:
        return min(TOP, int(params.get("top_logprobs") or 0)) if params.get("logprobs") else None
    wanted = params.get("logprobs")
    return None if wanted is None or wanted is False else min(TOP, int(wanted))


def _until(text: str, stops: Sequence[str]) -> str:
    """What comes before the first of ``stops``."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _without_system(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the system says at the head of the first other message."""
    said = "\n\n".join(content for role, content in messages if role == "system")
    rest = [message for message in messages if message[0] != "system"]
    return [(rest[0][0], f"{said}\n\n{rest[0][1]}"), *rest[1:]] if rest and said else rest
