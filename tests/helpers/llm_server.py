"""A server process that speaks OpenAI's protocol around a local model, and fails as a script says.

``Server`` starts it (``python tests/helpers/llm_server.py FOLDER [MODEL [well]]`` is the process) and reads what it
wrote: FOLDER/port, FOLDER/log.jsonl with a line for every request that was answered with 200, in the order of the
answers, and FOLDER/most, the largest number of requests that were ever under way at once. ``well`` makes a model that
can do none of it answer most prompts well (:mod:`helpers.llm_answers`). The model :data:`SCRIPTED` says the same to
everything, and its process starts in no time, for it imports no torch.

A script is a list of faults. Each has `do` and may have `match` (only requests that contain this text), `times`
(how often; 1) and what it needs:
  closed     429 with Retry-After until `seconds` have passed since the first refusal
  hang       says nothing for `seconds`, then closes the connection
  status     answers with `status` and, in its message, the key it was sent
  malformed  200 with a body that is no JSON
  empty      200 with no choices
  silent     200 without usage
  thinks     400 to chats with max_tokens or a temperature, as models that think before they answer refuse them
  says       200 with the message `message` and the finish_reason `finish`
  gather     waits until `count` requests are under way
  exit       the process ends after `count` further good answers
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers import llm_answers

KEY_ENV = "MONOLEX_TEST_KEY"
MODEL = "demo-neox"
SCRIPTED = "scripted"
KEY, VARIABLE = "sk-secret-41f7aa09", "MONOLEX_TEST_KEY"
"""What the server wants to see, and where clients find it."""
WITHIN = 60.0
"""Seconds that a server may take to start."""


class Server:
    """A server process; as a context manager it is killed in the end."""

    def __init__(self, folder: Path, key: str = "", *model: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._key, self._model = folder, key, model
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process, on the port that it had before."""
        (self.folder / "ready").unlink(missing_ok=True)
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), KEY_ENV: self._key}
        self._process = subprocess.Popen([sys.executable, __file__, str(self.folder), *self._model], env=env)
        ends = time.monotonic() + WITHIN
        while not (self.folder / "ready").exists():
            assert self._process.poll() is None and time.monotonic() < ends, "the server did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """End the process, and wait for that."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait until the process has ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout=WITHIN)

    def script(self, *faults: dict[str, Any]) -> None:
        """Fail like this from now on; also forgets how many requests were under way at once."""
        body = json.dumps(faults).encode()
        self._post("/script", body)

    @property
    def base_url(self) -> str:
        """Address for a client."""
        return f"http://127.0.0.1:{(self.folder / 'port').read_text()}/v1"

    @property
    def log(self) -> list[dict[str, Any]]:
        """A line an answer: `body` (hash), `fault`, `text` (the end of what was asked)."""
        path = self.folder / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def most(self) -> int:
        """Requests under way at once, at most, since the last script."""
        return int((self.folder / "most").read_text())

    @property
    def refused(self) -> int:
        """Requests that were refused since the last script."""
        return int((self.folder / "refused").read_text())

    def _post(self, path: str, body: bytes) -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", int((self.folder / "port").read_text()))
        connection.request("POST", path, body)
        assert connection.getresponse().read() == b"ok"
        connection.close()


class State:
    """What all requests of the process share."""

    def __init__(self, folder: Path, client: Any, well: bool) -> None:
        self.folder, self.client, self.key, self.well = folder, client, os.environ.get(KEY_ENV, ""), well
        self.lock, self.model_lock, self.changed = threading.Lock(), threading.Lock(), threading.Condition()
        self.faults: list[dict[str, Any]] = []
        self.under_way = self.most = 0

    def script(self, faults: list[dict[str, Any]]) -> None:
        with self.lock:
            self.faults = [{"times": 1, **fault} for fault in faults]
            (self.folder / "refused").write_text("0")
        with self.changed:
            self.most = 0

    def fault(self, body: str) -> dict[str, Any]:
        """The next fault that is meant for a request; `exit` is for whoever answers."""
        with self.lock:
            for fault in self.faults:
                if fault["do"] != "exit" and fault["times"] > 0 and fault.get("match", "") in body:
                    if fault["do"] == "closed":
                        fault.setdefault("until", time.monotonic() + fault["seconds"])
                        if time.monotonic() >= fault["until"]:
                            continue
                    else:
                        fault["times"] -= 1
                    return fault
        return {"do": ""}

    def enter(self, by: int) -> None:
        with self.changed:
            self.under_way += by
            if self.under_way > self.most:
                self.most = self.under_way
                (self.folder / "most").write_text(str(self.most))
            self.changed.notify_all()

    def gather(self, count: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.under_way >= count, timeout=10)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: State

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/script":
            self.state.script(json.loads(body))
            return self.send(200, b"ok")
        self.state.enter(1)
        try:
            return self.serve(body)
        finally:
            self.state.enter(-1)

    def serve(self, body: bytes) -> None:
        fault = self.state.fault(body.decode())
        do = fault["do"]
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.state.key and key != self.state.key:
            return self.refuse(401, f"wrong key {key}")
        if do == "closed":
            return self.refuse(429, "slow down", {"Retry-After": str(fault["seconds"])})
        if do == "status":
            said = fault.get("message", f"this was scripted for the key {key}")
            return self.refuse(fault["status"], said, code=fault.get("code"))
        if do == "thinks" and (said := self.refused_parameter(json.loads(body))):
            return self.refuse(400, said, code="unsupported_parameter")
        if do == "says":
            choice = {"index": 0, "message": fault["message"], "finish_reason": fault.get("finish", "stop")}
            reply = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
            return self.answer(body, json.dumps(reply).encode(), do)
        if do == "hang":
            time.sleep(fault["seconds"])
            self.close_connection = True
            return None
        if do == "malformed":
            return self.answer(body, b'{"choices": [{"text": "cut', do)
        if do == "empty":
            return self.answer(body, json.dumps({"choices": [], "usage": {"prompt_tokens": 3}}).encode(), do)
        if do == "gather":
            self.state.gather(fault["count"])
        return self.model(json.loads(body), body, do)

    def refused_parameter(self, settings: dict[str, Any]) -> str:
        if "max_tokens" in settings:
            return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        if "temperature" in settings:
            return (
                "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default is supported."
            )
        return ""

    def model(self, settings: dict[str, Any], body: bytes, do: str) -> None:
        from monolex.interp.llm.client import Answer, ScriptedClient
        from monolex.interp.records import Failure, Request

        if settings.pop("model") != MODEL:
            return self.refuse(404, "no such model")
        if "max_completion_tokens" in settings:
            settings["max_tokens"] = settings.pop("max_completion_tokens")
        messages = tuple((message["role"], message["content"]) for message in settings.pop("messages", ()))
        prompt = settings.pop("prompt", "")
        if self.path != ("/v1/chat/completions" if messages else "/v1/completions"):
            return self.refuse(404, "no such address")
        request = Request(messages, prompt, tuple(sorted(settings.items())))
        answers: list[Answer] = []
        said = llm_answers.chat(messages) if self.state.well and messages else None
        with self.state.model_lock:
            client = self.state.client if said is None else ScriptedClient(lambda _: said)
            client.answer([request], answers.append, lambda: True)
        (answer,) = answers
        if isinstance(answer.reply, Failure):
            return self.refuse(400, answer.reply.reason)
        assert answer.usage is not None
        usage = {"prompt_tokens": answer.usage.read, "completion_tokens": answer.usage.written}
        choice = llm_answers.edited(request, answer.reply.choice) if self.state.well else answer.reply.choice
        reply = {"object": "reply", "model": MODEL, "choices": [choice]}
        return self.answer(body, json.dumps(reply if do == "silent" else {**reply, "usage": usage}).encode(), do)

    def answer(self, body: bytes, reply: bytes, fault: str) -> None:
        """Log and send as one, so that what is in the log was sent even where the process then ends."""
        line = {"body": hashlib.sha256(body).hexdigest(), "fault": fault, "text": body.decode()[-400:]}
        with self.state.lock:
            with (self.state.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.send(200, reply)
            for leave in [fault_left for fault_left in self.state.faults if fault_left["do"] == "exit"]:
                leave["count"] -= 1
                if leave["count"] == 0:
                    os._exit(9)

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> None:
        with self.state.lock:
            count = self.state.folder / "refused"
            count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
        self.send(status, json.dumps({"error": {"message": message, "code": code}}).encode(), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was interrupted
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


def answering(model: str) -> Any:
    """The client that answers for the server."""
    if model == SCRIPTED:
        from monolex.interp.llm.client import ScriptedClient

        return ScriptedClient(lambda _: "as always")
    from monolex.interp.llm.local import LocalClient
    from monolex.model.load import load

    return LocalClient(load(model))


def main(folder: Path, model: str = "demo", well: str = "") -> None:
    Handler.state = State(folder, answering(model), bool(well))
    port = folder / "port"
    server = ThreadingHTTPServer(("127.0.0.1", int(port.read_text()) if port.exists() else 0), Handler)
    server.daemon_threads = True
    port.write_text(str(server.server_address[1]))
    (folder / "ready").touch()
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
