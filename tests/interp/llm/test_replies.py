"""The store of replies: killed and simultaneous processes, damaged files, and what makes two requests equal."""

import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from monolex.errors import UserError
from monolex.interp.llm.client import ScriptedClient, key_of
from monolex.interp.llm.meter import BudgetSpent, Meter
from monolex.interp.llm.recorded import Absent, Recorded
from monolex.interp.llm.replies import Replies
from monolex.interp.records import Failure, Reply, Request

MANY = 40
WRITER = f"""
import os, signal, sys
from monolex.interp.llm.client import ScriptedClient
from monolex.interp.llm.recorded import Recorded
from monolex.interp.llm.replies import Replies
from monolex.interp.records import Request
path, die = sys.argv[1], int(sys.argv[2])
seen = []
def say(request):
    seen.append(request)
    if len(seen) == die:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(os.getpid())
print("ready", flush=True)
sys.stdin.readline()
client = Recorded(ScriptedClient(say), Replies(path))
for reply in client.ask([Request(prompt=str(number)) for number in range({MANY})]):
    print(reply.text)
"""


def start(path: Path, die: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(path), str(die)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> list[str]:
    return process.communicate("\n", timeout=60)[0].split()


def test_a_killed_process_has_kept_all_that_was_answered(tmp_path):
    process = start(tmp_path / "r.sqlite", die=18)
    assert go(process) == [] and process.returncode == -9
    store = Replies(tmp_path / "r.sqlite")
    client = Recorded(ScriptedClient(lambda _: "later"), store)
    replies = client.ask([Request(prompt=str(number)) for number in range(MANY)])
    assert Counter(reply.text for reply in replies) == {str(process.pid): 17, "later": MANY - 17}
    client.close()


@pytest.mark.slow
def test_two_processes_share_a_file_and_agree(tmp_path):
    several = [start(tmp_path / "r.sqlite") for _ in range(2)]
    for process in several:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    first, second = (process.communicate(timeout=60)[0].split() for process in several)
    assert first == second and len(first) == MANY and {process.returncode for process in several} == {0}
    store = Replies(tmp_path / "r.sqlite")
    assert len(store) == MANY
    store.close()


def test_failures_are_counted_and_not_kept(tmp_path):
    says: list[str | Failure] = [Failure("busy"), "fine"]
    with Recorded(ScriptedClient(lambda _: says.pop(0)), Replies(tmp_path / "r.sqlite")) as client:
        request = Request(prompt="one")
        assert client.ask([request, request]) == [Failure("busy")] * 2 and len(client.store) == 0
        assert [answer.text for answer in client.ask([request]) + client.ask([request])] == ["fine", "fine"]
        assert client.meter.to_json()["failures"] == {"busy": 1}
        assert (client.meter.calls, client.meter.recorded) == (2, 2)


def test_a_reply_comes_back_as_it_was(tmp_path):
    whole = Reply("text ☃", {"text": "text ☃", "logprobs": {"top_logprobs": [None, {"\t": -0.1, "☃": -2.5e-300}]}})
    with Recorded(ScriptedClient(lambda _: whole), Replies(tmp_path / "r.sqlite")) as client:
        assert client.ask([Request(prompt="a")]) == [whole] == client.ask([Request(prompt="a")])
    with Recorded(Absent("scripted", "scripted:scripted"), Replies(tmp_path / "r.sqlite", existing=True)) as client:
        assert client.ask([Request(prompt="a")]) == [whole]


def test_all_of_a_request_tells_it_apart_and_nothing_else():
    base = Request((("user", "a"),), "", (("max_tokens", 1), ("stop", ("x",))))
    others = [
        base._replace(messages=(("system", "a"),)),
        base._replace(messages=(("user", "a"), ("user", "a"))),
        Request(prompt="a", params=base.params),
        base._replace(params=(("max_tokens", 2), ("stop", ("x",)))),
        base._replace(sample=1),
    ]
    keys = [key_of("m", request) for request in (base, *others)] + [key_of("n", base)]
    assert len(set(keys)) == len(keys)
    assert key_of("m", base._replace(params=(("stop", ["x"]), ("max_tokens", 1)))) == keys[0]


def test_a_budget_is_of_this_run(tmp_path):
    def client(tokens: int) -> Recorded:
        return Recorded(ScriptedClient(lambda _: "a b"), Replies(path), Meter(budget_tokens=tokens))

    path, wanted = tmp_path / "r.sqlite", [Request(prompt=f"x y {number}") for number in range(4)]
    for run, kept in ((1, 2), (2, 4)):  # five tokens a call: the second call goes past six
        with client(6) as asking:
            if run == 1:
                with pytest.raises(BudgetSpent, match="budget_tokens = 6 is spent: 6 tokens read and 4 written"):
                    asking.ask(wanted)
            else:
                assert len(asking.ask(wanted)) == 4
            assert len(asking.store) == kept


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_that_is_no_store_is_refused(tmp_path, existing):
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 50)
    with pytest.raises(UserError, match="no file of replies, or damaged"):
        Replies(path, existing=existing)
    path.unlink()
    database = sqlite3.connect(path)
    database.executescript("CREATE TABLE meta (key, value); INSERT INTO meta VALUES ('schema', '1')")
    database.close()
    with pytest.raises(UserError, match="something other than replies"):
        Replies(path, existing=existing)
    path.unlink()
    Replies(path).close()
    database = sqlite3.connect(path)
    database.executescript("UPDATE meta SET value = '99' WHERE key = 'schema'")
    database.close()
    with pytest.raises(UserError, match="schema 99, this version reads 1"):
        Replies(path, existing=existing)


def test_a_damaged_reply_is_refused(tmp_path):
    path, wanted = tmp_path / "r.sqlite", [Request(prompt=f"{number} " * 200) for number in range(50)]
    with Recorded(ScriptedClient(lambda request: request.prompt), Replies(path)) as client:
        client.ask(wanted)
    database = sqlite3.connect(path)
    database.executescript("UPDATE reply SET reply = x'00'")
    database.close()
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"), Recorded(ScriptedClient(lambda _: ""), Replies(path)) as client:
            client.ask(wanted)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])  # and then half of the file


def test_a_folder_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="replies"):
        Replies(tmp_path / "file" / "r.sqlite")
    with pytest.raises(UserError, match="cannot be used"):
        Replies(tmp_path)


def test_half_a_surrogate_pair_is_a_failure_and_not_kept(tmp_path):
    said = {"a": "\ud83d", "b": "\U0001f600", "c": "plain"}
    client = Recorded(ScriptedClient(lambda request: said[request.prompt]), Replies(tmp_path / "r.sqlite"))
    replies = client.ask([Request(prompt=prompt) for prompt in said])
    assert replies[0] == Failure("text that cannot be encoded")
    assert [reply.text for reply in replies[1:] if isinstance(reply, Reply)] == ["\U0001f600", "plain"]
    assert len(client.store) == 2 and client.meter.calls == 3 and client.meter.written == 3
    assert client.meter.failures == Counter(["text that cannot be encoded"])
    client.close()
