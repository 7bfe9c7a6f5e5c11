"""The endpoint client and the store of replies, against a server process that answers, fails and dies by a script."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.llm_server import KEY, MODEL, SCRIPTED, VARIABLE, Server

from monolex.errors import UserError
from monolex.interp.config import LlmConfig
from monolex.interp.llm.endpoint import EndpointClient, open_client
from monolex.interp.llm.local import LocalClient
from monolex.interp.llm.meter import BudgetSpent
from monolex.interp.llm.replies import Replies
from monolex.interp.records import Failure, Reply, Request
from monolex.model.load import load


def config(server: Server, **changes: Any) -> LlmConfig:
    settings = {"calls": 2, "timeout": 20.0, "retries": 1, "key_env": VARIABLE, **changes}
    return LlmConfig(llm=MODEL, base_url=server.base_url, **settings)


def chat(text: str, sample: int = 0, **params: Any) -> Request:
    params = {"max_tokens": 3, "temperature": 0.0, **params}
    return Request((("user", f"{text}."),), params=tuple(sorted(params.items())), sample=sample)


def chats(count: int) -> list[Request]:
    return [chat(f"number {number} of them") for number in range(count)]


def texts(answers: list[Reply | Failure]) -> list[str]:
    assert all(isinstance(answer, Reply) for answer in answers), answers
    return [answer.text for answer in answers if isinstance(answer, Reply)]


def folder_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_chat_and_a_completion_come_back_as_the_local_model_gives_them(server, tmp_path):
    several = [
        chat("hello"),
        chat("hello", logprobs=True, top_logprobs=3),
        Request(prompt="def f(", params=(("echo", True), ("logprobs", 4), ("max_tokens", 2), ("temperature", 0.0))),
    ]
    with open_client(config(server), tmp_path) as client:
        replies = client.ask(several)
    local = LocalClient(load("demo"))
    # one by one, as the server does: a batch rounds differently
    assert replies == [answer for request in several for answer in local.ask([request])]
    assert len(replies[1].choice["logprobs"]["content"][0]["top_logprobs"]) == 3
    assert replies[2].choice["logprobs"]["tokens"][:3] == ["def", " f", "("]


def test_what_passes_is_tried_again(server, tmp_path):
    server.script(
        # a single further try succeeds only if it waits as long as Retry-After says: the package's own wait is shorter
        {"do": "closed", "match": "number 1 ", "seconds": 1.5},
        {"do": "hang", "match": "number 2 ", "seconds": 60},
        {"do": "status", "match": "number 3 ", "status": 500},
    )
    with open_client(config(server, calls=4, timeout=4.0), tmp_path) as client:
        texts(client.ask(chats(6)))
        assert (client.meter.calls, client.meter.failures) == (6, Counter())
    assert sorted(Counter(line["body"] for line in server.log).values()) == [1] * 6


def test_what_does_not_pass_is_a_counted_failure_and_is_tried_by_the_next_run(server, tmp_path):
    server.script(
        {"do": "status", "match": "number 0 ", "status": 503, "times": 9},
        {"do": "malformed", "match": "number 1 "},
        {"do": "empty", "match": "number 2 "},
        {"do": "status", "match": "number 3 ", "status": 400},
        {"do": "hang", "match": "number 4 ", "seconds": 60, "times": 9},
    )
    reasons = ["server error 503", "malformed reply", "no choices in the reply", "refused (400)", "timed out"]
    settings = config(server, calls=1, retries=0, timeout=3.0)
    with open_client(settings, tmp_path) as client:
        replies = client.ask(chats(6))
        # what the request itself is to blame for would fail again
        assert replies[:5] == [Failure(reason, reason != "refused (400)") for reason in reasons]
        assert isinstance(replies[5], Reply)
        assert client.meter.failures == Counter(reasons) and client.meter.calls == 6
        assert len(client.store) == 1
    server.script()
    with open_client(settings, tmp_path) as client:
        again = client.ask(chats(6))
        assert again[5] == replies[5] and len(texts(again)) == 6
        assert (client.meter.calls, client.meter.recorded) == (5, 1)


@pytest.fixture
def own_server(tmp_path, monkeypatch) -> Iterator[Server]:
    """For one test alone: it may die, and nobody else's request is under way."""
    monkeypatch.setenv(VARIABLE, KEY)
    with Server(tmp_path / "server", KEY, SCRIPTED) as server:
        yield server


def test_a_server_that_dies_half_way_costs_nothing(own_server, tmp_path):
    server, wanted = own_server, chats(12)
    server.script({"do": "exit", "count": 5})
    with open_client(config(server), tmp_path) as client:
        with pytest.raises(UserError, match="no longer answers .* goes on where it stopped") as caught:
            client.ask(wanted)
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        assert server.wait() == 9
        assert len(client.store) == len(server.log) == 5
        assert client.meter.failures["no connection"] == 2  # the third in a row ended the stage
    server.start()
    with open_client(config(server), tmp_path) as client:
        texts(client.ask(wanted))
        assert (client.meter.recorded, client.meter.calls) == (5, 7)
    assert len(server.log) == len({line["body"] for line in server.log}) == 12


def test_offline_answers_from_the_file_alone(server, tmp_path):
    wanted = [chat("draw", sample, temperature=1.0) for sample in range(3)]
    with open_client(config(server), tmp_path) as client:
        live = client.ask(wanted)
    calls = len(server.log)
    elsewhere = replace(config(server), offline=True, base_url="http://127.0.0.1:9/v1")
    with open_client(elsewhere, tmp_path) as client:
        assert client.ask([*wanted, chat("never asked")]) == [*live, Failure("not recorded", again=True)]
        assert client.meter.to_json()["failures"] == {"not recorded": 1} and client.meter.calls == 0
    assert len(server.log) == calls
    with pytest.raises(UserError, match="offline.*does not exist"):
        open_client(replace(elsewhere, replies=str(tmp_path / "other.sqlite")), tmp_path)


def test_equal_requests_are_one_call_and_two_samples_are_two(server, tmp_path):
    with open_client(config(server), tmp_path) as client:
        replies = client.ask([chat("same"), chat("same"), chat("same", 1), chat("other")])
        assert replies[0] == replies[1] and len(server.log) == 3
        assert (client.meter.calls, client.meter.recorded) == (3, 1)
        client.ask([chat("same", 1)])
        assert len(server.log) == 3


def test_no_more_calls_are_under_way_than_were_asked_for(own_server, tmp_path):
    own_server.script({"do": "gather", "count": 3, "times": 3})
    with open_client(config(own_server, calls=3), tmp_path) as client:
        texts(client.ask(chats(9)))
    assert own_server.most == 3


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(server, tmp_path):
    wanted = chats(10)
    with open_client(config(server, budget_tokens=50), tmp_path) as client:
        with pytest.raises(BudgetSpent, match="budget_tokens = 50 is spent: .*larger budget goes on"):
            client.ask(wanted)
        meter, kept = client.meter, len(client.store)
        assert kept == meter.calls == len(server.log) and not meter.failures
        # none was started after the limit, so that at most the two under way went past it
        each = (meter.read + meter.written) / kept
        assert 50 <= meter.read + meter.written < 50 + 2 * each + 2
        with pytest.raises(BudgetSpent):
            client.ask(wanted)
        assert len(server.log) == kept
        prompts = "".join(line["text"] for line in server.log)
        texts(client.ask([request for request in wanted if request.messages[0][1] in prompts]))
    with open_client(config(server, budget_tokens=10_000), tmp_path) as client:
        texts(client.ask(wanted))
        assert client.meter.recorded == kept and len(server.log) == 10


def test_dollars_are_tokens_times_their_prices(server, tmp_path):
    settings = config(server, price_in=2e6, price_out=3e6, budget_usd=1.0)
    with open_client(settings, tmp_path) as client:
        client.ask([chat("priced")])
        assert client.meter.written == 3 and client.meter.dollars == 2 * client.meter.read + 3 * 3
        with pytest.raises(BudgetSpent, match=r"budget_usd = 1.0 is spent: .* dollars\)"):
            client.ask([chat("too dear")])
    assert len(server.log) == 1


def test_a_budget_needs_an_endpoint_that_counts(server, tmp_path):
    server.script({"do": "silent", "times": 2})
    with open_client(config(server, budget_tokens=50), tmp_path) as client:
        with pytest.raises(UserError, match="a budget cannot be kept"):
            client.ask([chat("uncounted")])
        assert len(client.store) == 1
    with open_client(config(server), tmp_path) as client:
        texts(client.ask([chat("another")]))
        assert (client.meter.calls, client.meter.read) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"status": 403}, f"llm = .*{VARIABLE} may not use it"),
        ({"status": 402}, "no credit left"),
        ({"status": 429, "code": "insufficient_quota"}, "no credit left"),
        ({"status": 401}, f"valid one into the environment variable {VARIABLE}"),
    ],
)
def test_what_concerns_all_requests_stops_the_stage(server, tmp_path, caplog, fault, sentence):
    server.script({"do": "status", "match": "number 2 ", **fault, "times": 9})
    with open_client(config(server, calls=1, retries=0), tmp_path) as client:
        with pytest.raises(UserError, match=sentence) as caught:
            client.ask(chats(9))
        assert len(client.store) == 2
        assert KEY not in str(caught.value) + repr(client) + repr(client.backend) + caplog.text
    assert KEY.encode() not in folder_bytes(tmp_path) + folder_bytes(server.folder)


def test_a_wrong_key_or_name_or_address_is_named(server, tmp_path, monkeypatch):
    with (
        open_client(replace(config(server), llm="gpt-unknown"), tmp_path) as client,
        pytest.raises(UserError, match="llm = 'gpt-unknown': .* no such model"),
    ):
        client.ask(chats(2))
    monkeypatch.setenv(VARIABLE, "sk-wrong-key")
    with open_client(config(server), tmp_path) as client, pytest.raises(UserError, match=VARIABLE) as caught:
        client.ask(chats(2))
    assert "sk-wrong" not in str(caught.value)
    nobody = replace(config(server, retries=0), base_url="http://127.0.0.1:9/v1")
    with open_client(nobody, tmp_path) as client, pytest.raises(UserError, match="nobody answers there"):
        client.ask(chats(1))


def test_the_key_is_masked_where_a_server_quotes_it(server, tmp_path, caplog):
    server.script({"do": "status", "status": 400})
    with caplog.at_level(logging.DEBUG, logger="monolex"), open_client(config(server), tmp_path) as client:
        assert client.ask([chat("refused")]) == [Failure("refused (400)")]
    assert "this was scripted for the key ***" in caplog.text and KEY not in caplog.text


def test_a_key_is_needed_elsewhere_and_not_on_this_machine(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for address in ("http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1"):
        EndpointClient(LlmConfig(llm="m", base_url=address, key_env=VARIABLE)).close()
    with pytest.raises(UserError, match=f"{VARIABLE} is empty"):
        EndpointClient(LlmConfig(llm="m", base_url="https://example.invalid/v1", key_env=VARIABLE))
    monkeypatch.setenv(VARIABLE, "sk two")
    with pytest.raises(UserError, match="blanks") as caught:
        EndpointClient(LlmConfig(llm="m", base_url="https://example.invalid/v1", key_env=VARIABLE))
    assert "sk two" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://", "such as"),
        ("http://host:port/v1", "such as"),
        ("ftp://host/v1", "such as"),
        ("host/v1", "such as"),
        ("http://me:s3cret@127.0.0.1/v1", "name or password"),
        ("http://me:s3cret@host:port/v1", "name or password"),
        ("http://s3cret@127.0.0.1/v1", "name or password"),
        ("me:s3cret@host/v1", "name or password"),
        ("https://host/v1?api_key=s3cret", "a query"),
        ("https://host/v1#s3cret", "a query"),
        ("https://[host/v1?api_key=s3cret", "a query"),
    ],
)
def test_an_address_with_a_secret_or_none_at_all_is_refused_before_anything_is_written(address, said):
    with pytest.raises(UserError, match=f"base_url .*{said}") as caught:
        LlmConfig(llm="m", base_url=address)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_stage_says_what_it_asked_and_what_was_kept_already(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="monolex"):
        settings = config(server, price_in=1.0)
        server.script({"do": "malformed", "match": "number 0 "})
        for _ in range(2):
            with open_client(settings, tmp_path) as client:
                client.ask(chats(3))
    first, second = [line for line in caplog.messages if " calls (" in line]
    assert " in 3 calls (0.00" in first and "failures: 1 malformed reply" in first and "from the store" not in first
    assert " in 1 calls (0.00" in second and "2 answered from the store" in second and "failures" not in second
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="monolex"), open_client(settings, tmp_path) as client:
        client.ask(chats(3))
    assert "0 written in 0 calls" in caplog.text and "3 answered from the store" in caplog.text


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'monolex\[interp\]'"):
        EndpointClient(LlmConfig(llm="m", base_url="http://127.0.0.1:1/v1"))


def test_it_works_inside_a_running_event_loop(server):
    async def cell() -> list[Reply | Failure]:
        client = EndpointClient(config(server))
        try:
            return client.ask(chats(3))
        finally:
            client.close()

    assert len(texts(asyncio.run(cell()))) == 3


INTERRUPTED = """
import sys
from contextlib import nullcontext
from pathlib import Path
from monolex.interp.llm.endpoint import open_client
from monolex.interp.config import LlmConfig
from monolex.interp.records import Request
url, key_env, model, run, close = sys.argv[1:]
requests = [Request((("user", f"number {n} of them."),), params=(("max_tokens", 1),)) for n in range(6)]
settings = LlmConfig(llm=model, base_url=url, key_env=key_env, calls=2, timeout=120.0)
client = open_client(settings, Path(run))
with client if close == "close" else nullcontext():
    client.ask(requests[:3])
    print("kept", len(client.store), flush=True)
    client.ask(requests)
"""


@pytest.mark.slow
@pytest.mark.parametrize("close", ["close", "leave"])
def test_ctrl_c_waits_for_no_call(server, tmp_path, close):
    server.script({"do": "hang", "match": "number 4 ", "seconds": 120, "times": 9})
    command = [sys.executable, "-c", INTERRUPTED, server.base_url, VARIABLE, MODEL, str(tmp_path), close]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "kept 3\n"
    store = Replies(tmp_path / "replies.sqlite", existing=True)
    while len(store) < 5:  # until the others are answered; one hangs
        assert process.poll() is None
    errors = ""
    for _ in range(3):  # Python drops an interrupt that comes while it frees an object; a person presses again
        os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=20)
            break
    assert process.returncode != 0 and errors.strip().endswith("KeyboardInterrupt")
    assert len(store) == 5
    store.close()
