"""Language models behind an OpenAI-compatible endpoint, and :func:`open_client`, which makes what the settings say.

The ``openai`` package sends, and tries again (with a server's Retry-After); here is how many calls are under way, and
which of its errors concern one request (a counted failure) and which all of them (the stage stops). The key is read
from the environment, handed to that package, and held, shown and written nowhere else.
"""

import importlib
import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from monolex.config import ModelConfig, require
from monolex.errors import UserError
from monolex.interp.config import LlmConfig
from monolex.interp.llm.answers import CUT
from monolex.interp.llm.client import Answer, Keep, More, Usage, collect
from monolex.interp.llm.dialect import OWN_TEMPERATURE, SENT, Dialect, Ways, masked, other_way, sent
from monolex.interp.llm.meter import Meter
from monolex.interp.llm.recorded import Absent, Recorded
from monolex.interp.llm.replies import Replies
from monolex.interp.records import Failure, Reply, Request

log = logging.getLogger("monolex")

IN_A_ROW = 3
"""Calls in a row that fail by the server's fault, further tries included, after which the stage stops."""
REFUSED = 8
"""Calls that are refused before any is accepted, after which the stage stops: it is not they that are to blame."""
GRACE = 10.0
"""Seconds that calls under way get to finish when the stage has to stop."""
GOES_ON = "all replies so far are kept, and the same command goes on where it stopped"
_NO_KEY = "no-key"


def open_client(config: LlmConfig, run: Path) -> Recorded:
    """The language model that the settings name, behind the store of replies of ``run``; to be closed.

    Raises:
        UserError: no such local model, no key, no ``openai`` package, or a store that cannot be used.
    """
    require(bool(config.llm), "llm is empty: name a local model, or with base_url the model that an endpoint knows")
    meter = Meter(config.price_in, config.price_out, config.budget_tokens, config.budget_usd)
    path = Path(config.replies) if config.replies else run / "replies.sqlite"
    if config.base_url and not config.offline:
        store = Replies(path)
        try:
            # what was accepted once: of a run that goes on, the first calls may be those that were refused before
            return Recorded(EndpointClient(config, known=bool(store.identity(config.llm, config.llm))), store, meter)
        except UserError:
            store.close()
            raise
    if config.offline:
        store = Replies(path, existing=True)
        local = "" if config.base_url else store.identity(config.llm, f"local:{config.llm_dtype}:")
        return Recorded(Absent(config.llm, config.llm if config.base_url else local), store, meter)
    # Here, since they import torch.
    from monolex.interp.llm.local import LocalClient
    from monolex.model.load import load

    lm = load(ModelConfig(model=config.llm, model_dtype=config.llm_dtype, device=config.llm_device))
    return Recorded(LocalClient(lm, batch_tokens=config.batch_tokens), Replies(path), meter)


@final
class EndpointClient:
    """A model behind an endpoint, asked from ``calls`` threads, so that it works inside a running event loop too.

    ``known`` says that it answered before: it then never stops because all calls of this run are refused.

    Raises:
        UserError: no ``openai`` package, no usable address, or no key for an address elsewhere.
    """

    def __init__(self, config: LlmConfig, *, known: bool = False) -> None:
        self.model = self.identity = config.llm
        self.calls, self.timeout, self.retries = config.calls, config.timeout, config.retries
        self.base_url, self.key_env = config.base_url, config.key_env
        self._package = _package()
        local = _loopback(config.base_url)
        key = os.environ.get(config.key_env, "").strip()
        require(
            bool(key) or local,
            f"key_env: the environment variable {config.key_env} is empty; put the key of {config.base_url} into it",
        )
        # Else an error of the HTTP library would quote it.
        require(
            key.isascii() and key.isprintable() and " " not in key,
            f"key_env: the environment variable {config.key_env} holds blanks or other signs that no key has",
        )
        self._openai = self._package.OpenAI(
            api_key=key or _NO_KEY,
            base_url=config.base_url,
            timeout=config.timeout,
            max_retries=config.retries,
            # A proxy that the environment names cannot reach this machine's own address.
            http_client=self._package.DefaultHttpxClient(trust_env=False) if local else None,
        )
        self._lock, self._answered, self._troubles = threading.Lock(), False, 0
        self._refused, self._accepted = 0, known
        self._told: set[str] = set()
        self._dialect = Dialect()

    def __repr__(self) -> str:
        return f"EndpointClient({self.model} at {self.base_url})"

    def ask(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """The answers, in order, kept nowhere: :class:`monolex.interp.llm.recorded.Recorded` keeps them.

        Raises:
            UserError: as :meth:`answer`.
        """
        return collect(self, requests)

    def answer(self, requests: Sequence[Request], keep: Keep, more: More) -> None:
        """As :meth:`monolex.interp.llm.client.Backend.answer`; Ctrl-C starts no further call and waits for none.

        The threads are daemons, since a pool's would be waited for when the interpreter ends, tries and all.

        Raises:
            UserError: the endpoint refuses the key or the model, wants money, or is gone.
        """
        pending, turn, stop = iter(enumerate(requests)), threading.Lock(), threading.Event()
        errors: list[BaseException] = []

        def take() -> tuple[int, Request] | None:
            with turn:
                return next(pending, None) if not stop.is_set() and more() else None

        def work() -> None:
            try:
                while (item := take()) is not None:
                    started = time.monotonic()
                    reply, usage = self._call(item[1])
                    keep(Answer(item[0], reply, usage, time.monotonic() - started))
            except BaseException as error:
                errors.append(error)
                stop.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.calls, len(requests)))]
        for thread in threads:
            thread.start()
        try:
            _wait(threads, stop)
        finally:
            stop.set()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Close the connections; a call that is still under way after Ctrl-C then fails."""
        self._openai.close()

    def _call(self, request: Request) -> tuple[Reply | Failure, Usage | None]:
        verdict: Failure | UserError | None = None
        ways = self._dialect.ways if request.messages else Ways()
        while verdict is None:
            params = sent(dict(request.params), ways) if request.messages else dict(request.params)
            try:
                text = self._send(request, params)
            except self._package.OpenAIError as error:
                way = self._other_way(error, params) if request.messages else None
                # every way is tried once, so that this ends
                ways, verdict = (ways | {way}, None) if way else (ways, self._judge(error))
            except UnicodeEncodeError:
                verdict = Failure("no valid Unicode")
            else:
                return self._accept(request, text, ways)
        # Outside of the handler: what the package raised holds its request, and that the key.
        if isinstance(verdict, UserError):
            raise verdict
        return verdict, Usage()

    def _send(self, request: Request, params: dict[str, Any]) -> str:
        """The body of the reply, as it is: the package's own reading drops what it does not know."""
        if request.messages:
            messages = [{"role": role, "content": content} for role, content in request.messages]
            chat = self._openai.chat.completions.with_raw_response
            return chat.create(model=self.model, messages=messages, extra_body=params).text
        plain = self._openai.completions.with_raw_response
        return plain.create(model=self.model, prompt=request.prompt, extra_body=params).text

    def _other_way(self, error: Any, params: dict[str, Any]) -> str | None:
        """How to send a chat that was refused for one of its parameters."""
        if getattr(error, "status_code", 0) not in (400, 422):
            return None
        return other_way(params, str(getattr(error, "param", None) or ""), str(error))

    def _accept(self, request: Request, text: str, ways: Ways) -> tuple[Reply | Failure, Usage | None]:
        with self._lock:
            self._answered = self._accepted = True
            self._troubles = 0
        if new := self._dialect.learned(ways):
            said = ", ".join(sorted(new))
            log.info("%s refuses some parameters; all calls are sent with: %s", self.base_url, said)
        if OWN_TEMPERATURE in new:
            log.warning("%s takes no temperature: replies are drawn at its own, and vary", self.model)
        changed = sorted(way for way in ways if sent(dict(request.params), Ways({way})) != dict(request.params))
        return _parse(text, bool(request.messages), {SENT: changed} if changed else {})

    def _judge(self, error: Any) -> Failure | UserError:
        """What an error means: one failure, or the end of the stage."""
        status, code = getattr(error, "status_code", 0), str(getattr(error, "code", None) or "")
        if status in (401, 402, 403, 404) or code == "insufficient_quota":
            return UserError(self._fatal(402 if code == "insufficient_quota" else status) + self._said(error))
        if isinstance(error, self._package.APITimeoutError) or status == 408:
            return self._trouble("timed out")
        if isinstance(error, self._package.APIConnectionError):
            return self._trouble("no connection")
        if status in (409, 429) or status >= 500:
            return self._trouble("refused for its rate" if status == 429 else f"server error {status}")
        return self._refusal(error, status)

    def _refusal(self, error: Any, status: int) -> Failure | UserError:
        """Count a request that was refused as such; where all of them are, something else is wrong."""
        if "output limit was reached" in str(error):  # OpenAI's, of a model that thought up to there
            return CUT
        reason = f"refused ({status})" if status else type(error).__name__
        with self._lock:
            self._answered, self._troubles = True, 0
            self._refused += 1
            uniform = self._refused >= REFUSED and not self._accepted
            if reason not in self._told and not uniform:
                self._told.add(reason)
                log.warning("%s refused a request: %s", self.base_url, self._masked(str(error)))
        if not uniform:
            return Failure(reason)
        return UserError(
            f"llm = {self.model!r}: {self.base_url} refuses every call: {reason.replace('refused', 'status')}"
            + self._said(error)
        )

    def _trouble(self, reason: str) -> Failure | UserError:
        """Count a failure that is the server's fault; the first call to find nobody there ends the stage at once."""
        with self._lock:
            self._troubles += 1
            if not self._answered and reason == "no connection":
                return UserError(f"base_url = {self.base_url!r}: nobody answers there; start the server, or mend it")
            if self._troubles < IN_A_ROW:
                return Failure(reason, again=True)
        return UserError(
            f"{self.base_url} no longer answers ({self._troubles} calls in a row failed, the last: {reason}); "
            f"{GOES_ON}; if it is too slow, raise timeout or lower calls"
        )

    def _fatal(self, status: int) -> str:
        if status == 404:
            return (
                f"llm = {self.model!r}: {self.base_url} knows no such model or no such address (404); name one it has, "
                "and check that base_url is complete, often up to /v1"
            )
        if status == 402:
            return f"{self.base_url}: the account behind {self.key_env} has no credit left; {GOES_ON} once it has"
        if status == 403:
            return f"llm = {self.model!r}: the key in {self.key_env} may not use it at {self.base_url} (403)"
        return f"{self.base_url} refuses the key (401); put a valid one into the environment variable {self.key_env}"

    def _said(self, error: Any) -> str:
        """The server's own sentence, to stand behind ours."""
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        said = self._masked(message if isinstance(message, str) else str(error))
        return f"; the server says: {said}" if said else ""

    def _masked(self, text: str) -> str:
        return masked(text, self._openai.api_key)


def _wait(threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Until all threads have ended; when they have to stop, no longer than :data:`GRACE`."""
    ends = None
    for thread in threads:
        while thread.is_alive() and (ends is None or time.monotonic() < ends):
            thread.join(0.1)  # never longer, so that Ctrl-C comes through on every system
            if ends is None and stop.is_set():
                ends = time.monotonic() + GRACE


def _parse(text: str, chat: bool, facts: dict[str, Any]) -> tuple[Reply | Failure, Usage | None]:
    """The first choice of an endpoint's reply with ``facts``, and its usage; what is no use is a failure, and costs."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return Failure("malformed reply", again=True), Usage()
    usage = _usage(body.get("usage"))
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Failure("no choices in the reply", again=True), usage or Usage()
    choice = choices[0]
    said = _content(choice.get("message")) if chat else choice.get("text")
    if not isinstance(said, str):
        return Failure("no text in the reply"), usage or Usage()
    if "prompt_logprobs" in body:  # vLLM: beside the choices of a chat
        choice = {"prompt_logprobs": body["prompt_logprobs"], **choice}
    return Reply(said, {**choice, **facts}), usage


def _content(message: Any) -> str | None:
    """What a message says, without what the model thought: that stands in fields or parts of other names.

    Empty where there is nothing else; None where it is no message.
    """
    if not isinstance(message, dict):
        return None
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, of which `thinking` is one kind
        texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    read, written = raw.get("prompt_tokens"), raw.get("completion_tokens", 0)
    return Usage(read, written) if isinstance(read, int) and isinstance(written, int) else None


def _package() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise UserError("base_url needs the openai package: pip install 'monolex[interp]'") from error


def _loopback(base_url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
