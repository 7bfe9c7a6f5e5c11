"""Endpoints that refuse parameters, and those that refuse everything; what a server's sentence may say."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from helpers.llm_server import KEY, MODEL, SCRIPTED, VARIABLE, Server

from monolex.errors import UserError
from monolex.interp.config import LlmConfig
from monolex.interp.llm.answers import CUT, ONLY_REASONING, answered
from monolex.interp.llm.dialect import OWN_TEMPERATURE, RENAMED, masked, other_way
from monolex.interp.llm.endpoint import REFUSED, open_client
from monolex.interp.records import Failure, Reply, Request


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What is said does not matter here."""
    with Server(tmp_path_factory.mktemp("server"), KEY, SCRIPTED) as server:
        yield server


def config(server: Server, **changes: Any) -> LlmConfig:
    settings = {"calls": 1, "timeout": 60.0, "retries": 0, "key_env": VARIABLE, **changes}
    return LlmConfig(llm=MODEL, base_url=server.base_url, **settings)


def chats(count: int, **params: Any) -> list[Request]:
    params = {"max_tokens": 2, "temperature": 0.0, **params}
    return [Request((("user", f"number {n} of them."),), params=tuple(sorted(params.items()))) for n in range(count)]


def test_what_a_model_refuses_is_left_out_of_all_later_calls(server, tmp_path, caplog):
    server.script({"do": "thinks", "times": 99})
    with open_client(config(server), tmp_path) as client:
        replies = client.ask(chats(4))
        assert all(isinstance(reply, Reply) for reply in replies)
        assert [reply.choice["sent"] for reply in replies if isinstance(reply, Reply)] == [
            [RENAMED, OWN_TEMPERATURE]
        ] * 4
        assert not client.meter.failures and client.meter.calls == client.meter.own_temperature == 4
    # two refusals by the first call alone, of which nothing is kept
    assert sum("takes no temperature" in line for line in caplog.messages) == 1
    assert all('"max_completion_tokens":2' in line["text"].replace(" ", "") for line in server.log)
    assert not any("temperature" in line["text"] for line in server.log) and server.refused == 2
    # kept by what was wanted: found without a server, and still counted
    offline = replace(config(server), offline=True, base_url="http://127.0.0.1:9/v1")
    with open_client(offline, tmp_path) as client:
        assert client.ask(chats(4)) == replies and client.meter.own_temperature == 4
    assert client.meter.to_json()["own_temperature"] == 4 and "4 at the model's own temperature" in str(client.meter)


def test_what_is_accepted_is_sent_as_it_is(server, tmp_path):
    with open_client(config(server), tmp_path) as client:
        (reply,) = client.ask(chats(1))
    assert isinstance(reply, Reply) and "sent" not in reply.choice and client.meter.own_temperature == 0
    assert '"max_tokens":2' in server.log[0]["text"].replace(" ", "")


def test_only_the_parameter_that_is_refused_is_changed(server, tmp_path):
    said = "invalid temperature: only 1 is allowed for this model"
    server.script({"do": "status", "status": 400, "message": said})
    with open_client(config(server), tmp_path) as client:
        (reply,) = client.ask(chats(1))
    assert isinstance(reply, Reply) and reply.choice["sent"] == [OWN_TEMPERATURE]
    assert '"max_tokens":2' in server.log[0]["text"].replace(" ", "")


def test_a_way_that_does_not_help_is_not_kept(server, tmp_path):
    said = "max_tokens is not supported with so long a prompt"
    server.script({"do": "status", "status": 400, "message": said, "times": 2})
    with open_client(config(server), tmp_path) as client:
        first, second = client.ask(chats(2))
    assert first == Failure("refused (400)") and isinstance(second, Reply) and "sent" not in second.choice


@pytest.mark.parametrize(
    ("params", "param", "said", "way"),
    [
        ({"max_tokens": 1}, "max_tokens", "Unsupported parameter", RENAMED),
        ({"max_tokens": 1}, "", "max_tokens: Extra inputs are not permitted", RENAMED),
        ({"max_tokens": 1}, "max_tokens", "must be at most 4096", None),
        ({"max_completion_tokens": 1}, "", "max_tokens is not supported", None),
        ({"temperature": 0.0}, "temperature", "no", OWN_TEMPERATURE),
        ({"max_tokens": 1}, "temperature", "no", None),
        ({"max_tokens": 1, "temperature": 0.0}, "", "prompt too long, which is not supported", None),
    ],
)
def test_which_refusals_have_another_way(params, param, said, way):
    assert other_way(params, param, said) == way


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_refuses_every_call_stops_with_its_sentence(server, tmp_path, status):
    said = f"The chat template of this model knows no system; key {KEY}."
    server.script({"do": "status", "status": status, "message": said, "times": 99})
    with (
        open_client(config(server), tmp_path) as client,
        pytest.raises(
            UserError, match=rf"refuses every call: status \({status}\); the server says: The chat tem"
        ) as caught,
    ):
        client.ask(chats(3 * REFUSED))
    assert server.refused == REFUSED and str(caught.value).endswith("key ***")


def test_many_refusals_stop_nothing_where_another_call_is_accepted(server, tmp_path):
    fault = {"do": "status", "status": 400, "message": "too long", "match": "number 1"}
    server.script({**fault, "times": 99})
    wanted = [chats(1)[0], *chats(20)[10:20]]
    with open_client(config(server), tmp_path) as client:
        replies = client.ask(wanted)
    assert isinstance(replies[0], Reply) and replies[1:] == [Failure("refused (400)")] * 10
    # nor where it was accepted before: a run that goes on begins with what was refused
    with open_client(config(server), tmp_path) as client:
        assert client.ask(wanted) == replies


def test_the_servers_sentence_stands_behind_ours(server, tmp_path):
    server.script({"do": "status", "status": 404, "message": "The model `demo-neox` was\nretired."})
    with (
        open_client(config(server), tmp_path) as client,
        pytest.raises(UserError, match="knows no such model") as caught,
    ):
        client.ask(chats(1))
    assert str(caught.value).endswith("the server says: The model `demo-neox` was retired.")


def test_no_part_of_a_key_is_repeated():
    assert (
        masked("Incorrect API key: sk-secre**********aa09. See /api-keys.", KEY)
        == "Incorrect API key: *** See /api-keys."
    )
    assert masked(f"wrong {KEY} ends 41f7aa", KEY) == "wrong *** ends ***"
    assert masked("x" * 500, KEY) == "x" * 300


@pytest.mark.parametrize(
    ("message", "finish", "wanted"),
    [
        ({"content": "rivers"}, "stop", "rivers"),
        ({"content": "riv"}, "length", CUT),
        ({"content": None, "reasoning_content": "rivers, or lakes"}, "stop", ONLY_REASONING),
        ({"content": None, "reasoning_content": "rivers, or"}, "length", CUT),
        (
            {"content": [{"type": "thinking", "thinking": "lakes?"}, {"type": "text", "text": "rivers"}]},
            "stop",
            "rivers",
        ),
        ({"content": "<think>lakes?"}, "stop", ONLY_REASONING),
    ],
)
def test_what_is_no_answer_is_kept_as_a_reply_and_counted_as_a_failure(server, tmp_path, message, finish, wanted):
    server.script({"do": "says", "message": {"role": "assistant", **message}, "finish": finish})
    with open_client(config(server), tmp_path) as client:
        (reply,) = client.ask(chats(1))
        assert isinstance(reply, Reply) and len(client.store) == 1 and client.meter.written == 2
    assert answered(reply) == wanted


def test_openais_refusal_of_a_model_that_thought_up_to_the_limit(server, tmp_path):
    said = "Could not finish the message because max_tokens or model output limit was reached."
    server.script({"do": "status", "status": 400, "message": said})
    with open_client(config(server), tmp_path) as client:
        assert client.ask(chats(1)) == [CUT]
