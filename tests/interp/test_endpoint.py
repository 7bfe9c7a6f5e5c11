"""The stages `explain` and `score` against a server process that answers, fails and dies: nothing lost, none twice."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.interp_run import EXPLAIN, SITES, server_model, small_run
from helpers.llm_server import MODEL, Server
from safetensors.numpy import load_file, save_file

from monolex import cli
from monolex.artifact import Manifest, open_artifact, read_json, verify
from monolex.errors import UserError
from monolex.interp.config import ExplainConfig, ScoreConfig
from monolex.interp.explain import saved
from monolex.interp.explain.stage import explain
from monolex.interp.llm.answers import CUT
from monolex.interp.llm.endpoint import open_client
from monolex.interp.protocol import correlation
from monolex.interp.records import Request
from monolex.interp.score.stage import score
from monolex.interp.simulate import sanity
from monolex.interp.simulate.open import open_simulator
from monolex.interp.simulate.sanity_suite import SUITE
from monolex.show.path import show
from monolex.tables import from_table

pytestmark = pytest.mark.slow

KEY = "sk-secret-93b1c7e2"
VARIABLE = "MONOLEX_STAGE_KEY"
USELESS = {
    "no line that begins with DESCRIPTION:",
    "an empty answer",
    "the answer is no list of numbers",
    CUT.reason,
    "the answer has not one number for each item",
    "no number among the most probable labels",
}
"""Reasons of failures that the server's answers are to blame for, not its calls."""


LIMIT = {"completions": {"limit": 1}, "json": {"limit": 2}}
"""Chance needs two features, and a completion takes the server a while."""


class Whole(NamedTuple):
    """A run that was explained and scored without trouble."""

    run: Path
    replies: Path
    asked: list[str]
    """Every request that was answered, in order."""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with Server(folder, KEY, str(server_model(folder / "model")), "well") as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def server(process: Server) -> Server:
    """The server without faults and with an empty log."""
    process.script()
    (process.folder / "log.jsonl").unlink(missing_ok=True)
    return process


def llm(server: Server, **changes: Any) -> dict[str, Any]:
    settings = {"calls": 2, "timeout": 30.0, "retries": 1, "key_env": VARIABLE, "llm_device": "cpu"}
    return {"llm": MODEL, "base_url": server.base_url, **settings, **changes}


def explaining(server: Server, **changes: Any) -> ExplainConfig:
    """Two dictionaries: the subject's and the control model's."""
    settings = {"sites": SITES[:1], "dictionaries": ("tied-*",), "features": 6, "explainers": ("openai", "examples")}
    settings["reply_tokens"] = 60
    return replace(EXPLAIN, **settings, **llm(server, **changes))


def scoring(server: Server, simulator: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig(**{"simulator": simulator, "limit": 1, "resamples": 20, **llm(server, **changes)})


@pytest.fixture(scope="module")
def whole(process: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, KEY)
        process.script()
        run = small_run(tmp_path_factory.mktemp("endpoint"))
        explain(run / "explain" / "paper", run, explaining(process))
        for simulator in ("completions", "json"):
            score(
                run / "score" / simulator,
                run / "explain" / "paper",
                scoring(process, simulator, **LIMIT[simulator]),
                run,
            )
    bodies = [line["body"] for line in process.log]
    assert len(set(bodies)) == len(bodies)
    return Whole(run, run / "replies.sqlite", bodies)


def replayed(whole: Whole, config: Any) -> Any:
    """The same from the replies of the run without trouble, with no server at all."""
    return replace(config, offline=True, replies=str(whole.replies), base_url="http://127.0.0.1:9/v1")


def files(folder: Path) -> dict[str, bytes]:
    """What an artefact holds."""
    return {name: (folder / name).read_bytes() for name in open_artifact(folder).files}


def good(server: Server) -> list[str]:
    """Every request that was answered with more than a fault."""
    return [line["body"] for line in server.log if line["fault"] not in ("malformed", "empty")]


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(saved.read_lines(folder / "scores.jsonl"))


def test_explanations_are_the_answers_and_failures_are_counted(whole):
    folder = whole.run / "explain" / "paper"
    verify(folder)
    facts = read_json(folder / "explain.json")
    rows = [row for row in saved.read_lines(folder / "explanations.jsonl") if row["explainer"] != "output"]
    assert len(rows) == 24 and len(facts["dictionaries"]) == 2
    for dictionary in facts["dictionaries"]:
        mine = [row for row in rows if row["model"] == dictionary["model"]]
        for explainer in ("openai", "examples"):
            failed = [row["failure"] for row in mine if row["explainer"] == explainer and row["failure"] is not None]
            assert dictionary["failures"][explainer] == Counter(failed)
            assert set(failed) <= USELESS
    said = [row["text"] for row in rows if row["failure"] is None]
    assert all(text.startswith("the word '") and "\n" not in text for text in said) and len(said) > 12
    assert all(row["text"] is None for row in rows if row["failure"] is not None) and len(said) < 24
    assert "unanswered" not in open_artifact(folder).data


@pytest.mark.parametrize("simulator", ["completions", "json"])
def test_scores_are_those_of_the_answers_and_failures_are_no_zeros(whole, simulator):
    folder = whole.run / "score" / simulator
    verify(folder)
    content, rows = read_json(folder / "score.json"), lines(folder)
    assert content["simulator"] == f"{simulator} 0-10 of {MODEL}"
    assert {row["simulator"] for row in rows} == {content["simulator"]} and len(rows) in (4, 8)
    predictions = load_file(folder / "predictions.safetensors")
    explanations = saved.Explanations(whole.run / "explain" / "paper")
    seen: Counter[str] = Counter()
    scored_gaps: Counter[str] = Counter()
    for row in rows:
        key = f"{row['model']}/{row['site']}/{row['name']}"
        number = [example.feature for example in explanations.examples(key)].index(row["feature"])
        guesses, example = predictions[f"{key}/{row['explainer']}"][number], explanations.examples(key)[number]
        missing, gaps = np.isnan(guesses).all(1), np.isnan(guesses)
        assert set(gaps.sum(1)) <= {0, 1, guesses.shape[1]}  # none, the last label, all
        scored_gaps[simulator] += int((gaps.sum(1) == 1).sum())
        assert row["tokens"]["missing"] == row["tokens"]["fragments"] >= (gaps.sum(1) == 1).sum()
        actual = np.concatenate([fragment.activations for fragment in (*example.top, *example.random)])
        cell = row["scores"]["top_and_random"]
        if missing.any():
            assert cell["value"] is None and cell["reason"] in row["failures"]
            assert sum(row["failures"].values()) >= missing.sum()
        else:
            known = ~gaps.ravel()
            assert cell["value"] == pytest.approx(correlation(actual[known], guesses.ravel()[known]).value, abs=1e-4)
        seen += Counter(row["failures"])
        for kind in ("detection", "fuzz"):
            judged = row[kind]["balanced_accuracy"]
            assert (judged["value"] is None) == (judged["reason"] != "")
    reasons = {reason.removeprefix("no explanation: ") for reason in seen}
    assert reasons and reasons <= USELESS
    assert any(row["scores"]["top_and_random"]["value"] is not None for row in rows)
    assert open_artifact(folder).data["failures"] == seen.total()
    counts = [tokens for entry in content["dictionaries"] for tokens in entry["tokens"].values()]
    for name in ("predicted", "missing", "fragments"):
        assert sum(tokens[name] for tokens in counts) == sum(row["tokens"][name] for row in rows)
    # completions alone may miss a label
    said = f"The simulator named no number at {sum(tokens['missing'] for tokens in counts)} of "
    assert (scored_gaps[simulator] > 0) == (simulator == "completions") == (said in show(folder))


def test_a_replay_without_a_server_gives_the_same_bytes(whole, server, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    explained = tmp_path / "explain" / "paper"
    explain(explained, whole.run, replayed(whole, explaining(server)))
    assert files(explained) == files(whole.run / "explain" / "paper")
    # the address is no part of the request: an endpoint that moved answers the same
    assert open_artifact(explained).content == open_artifact(whole.run / "explain" / "paper").content
    for simulator in ("completions", "json"):
        again = tmp_path / "score" / simulator
        config = replayed(whole, scoring(server, simulator, **LIMIT[simulator]))
        score(again, explained, config, tmp_path)
        assert files(again) == files(whole.run / "score" / simulator)
    assert server.log == []


@pytest.mark.parametrize("stage", ["explain", pytest.param("json", marks=pytest.mark.slow)])
def test_calls_that_went_unanswered_are_asked_again_and_no_others(whole, server, tmp_path, stage, capsys):
    out, settings = tmp_path / "out", {"replies": str(tmp_path / "replies.sqlite"), "retries": 0}

    def again(**changes: Any) -> dict[str, int]:
        if stage == "explain":
            explain(out, whole.run, explaining(server, **settings, **changes))
        else:
            config = scoring(server, stage, **settings, **changes)
            score(out, whole.run / "explain" / "paper", config, whole.run)
        return open_artifact(out).data.get("unanswered", {})

    text = "Feature 4" if stage == "explain" else "tokens:"  # neither of the calls that try what the endpoint can do
    scripted = [{"do": "status", "status": 503}, {"do": "status", "status": 429}, {"do": "malformed"}, {"do": "empty"}]
    server.script(*({"match": text, **fault} for fault in ({"do": "hang", "seconds": 60}, *scripted)))
    assert again(timeout=6.0) == {
        "malformed reply": 1,
        "no choices in the reply": 1,
        "refused for its rate": 1,
        "server error 503": 1,
        "timed out": 1,
    }
    assert "calls went unanswered: 1 malformed reply, 1 no choices" in show(out)
    verify(out)
    before = good(server)
    assert again() == {}
    after = good(server)
    # of the two dictionaries' requests some are equal, so that one that failed may have been answered later
    assert after[: len(before)] == before and len(before) < len(after) <= len(before) + 5
    assert len(after) == len(set(after)) and set(after) <= set(whole.asked)
    assert not (out / "partial").exists() and "unanswered" not in show(out)
    expected = whole.run / "explain" / "paper"
    if stage == "json":
        expected = tmp_path / "expected"
        score(expected, whole.run / "explain" / "paper", replayed(whole, scoring(server, stage)), tmp_path)
    assert files(out) == files(expected)
    written = (out / "manifest.json").stat().st_mtime_ns
    again()
    assert (out / "manifest.json").stat().st_mtime_ns == written and len(good(server)) == len(after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "answers"),
    [("explain", 17), pytest.param("completions", 36, marks=pytest.mark.slow), ("json", 42)],
)
def test_a_server_that_dies_half_way(whole, server, tmp_path, stage, answers, capsys):
    out, replies = tmp_path / "out", tmp_path / "replies.sqlite"
    config = explaining(server) if stage == "explain" else scoring(server, stage)
    command = [*arguments(stage, config), "--out", str(out), "--replies", str(replies)]
    command = [command[0], str(whole.run), *command[1:]]
    server.script({"do": "exit", "count": answers})
    assert cli.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("monolex: http://127.0.0.1") and "no longer answers" in said and "goes on where" in said
    assert KEY not in said
    assert server.wait() == 9
    assert len(good(server)) == answers and not (out / "manifest.json").exists()
    assert len(list((out / "partial").glob("*/*.json"))) == 1  # of two dictionaries
    assert cli.main(command) == 2  # with nobody there; nothing is lost
    assert "nobody answers" in capsys.readouterr().err.strip().splitlines()[-1]
    server.start()
    assert cli.main(command) == 0
    assert stage == "explain" or f"simulator {stage} 0-10" in capsys.readouterr().out
    answered = good(server)
    assert len(answered) == len(set(answered)) > answers and set(answered) <= set(whole.asked)
    verify(out)
    expected = tmp_path / "expected"
    if stage == "explain":
        explain(expected, whole.run, replayed(whole, config))
    else:
        score(expected, whole.run / "explain" / "paper", replayed(whole, config), whole.run)
    assert files(out) == files(expected)
    assert KEY.encode() not in everything(tmp_path) + everything(server.folder)


def arguments(stage: str, config: Any) -> list[str]:
    """A configuration as a command."""
    flags = {"llm": MODEL, "base_url": config.base_url, "calls": 2, "timeout": 30, "retries": 1, "key_env": VARIABLE}
    if stage == "explain":
        flags |= {"sites": SITES[0], "dictionaries": "tied-*", "features": 6, "fragment_tokens": 6, "silent": 4}
        flags |= {"explain_device": "cpu", "reply_tokens": 60}
        more = ["--explainers", "openai", "examples"]
    else:
        flags |= {"simulator": stage, "limit": 1, "resamples": 20}
        more = []
    return [
        "explain" if stage == "explain" else "score",
        *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))),
        *more,
    ]


def test_a_budget_stops_and_a_larger_one_goes_on(whole, server, tmp_path):
    out, replies = tmp_path / "out", str(tmp_path / "replies.sqlite")

    def run(**changes: Any) -> None:
        explain(out, whole.run, explaining(server, replies=replies, **changes))

    with pytest.raises(UserError, match="budget_tokens = 5000 is spent: .* larger budget goes on"):
        run(budget_tokens=5000)
    first = len(good(server))
    assert 5 < first < 24 and not (out / "manifest.json").exists()
    # what there is, without the rest: counted, and asked for as soon as there is somebody to ask
    run(offline=True)
    assert open_artifact(out).data["unanswered"] == {"not recorded": 24 - first}
    run(budget_tokens=10**6)
    assert len(good(server)) == len(set(good(server))) == 24
    assert files(out) == files(whole.run / "explain" / "paper")


def test_judging_alone_simulates_nothing(whole, server, tmp_path):
    config = scoring(server, "json", scorers=("detection",), replies=str(tmp_path / "replies.sqlite"))
    score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)
    rows = lines(tmp_path / "out")
    for row in rows:
        assert row["scores"]["top_and_random"] == {"value": None, "low": None, "high": None, "reason": "not asked for"}
        assert row["fuzz"] == {}
    calls = 3 * sum(row["text"] is not None for row in rows)  # fourteen fragments, by fives
    assert calls and len(server.log) == 1 + calls  # and one to find out what the endpoint can do
    assert all('"top_logprobs"' in line["text"] for line in server.log)


def test_an_endpoint_that_refuses_log_probabilities_of_chats(whole, server, tmp_path):
    server.script({"do": "status", "status": 400, "match": '"top_logprobs"', "times": 999})
    config = scoring(server, "json", scorers=("detection",), replies=str(tmp_path / "replies.sqlite"))
    score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)
    assert not any("refused" in reason for row in lines(tmp_path / "out") for reason in row["failures"])
    assert any(row["detection"]["auc"]["value"] is not None for row in lines(tmp_path / "out"))
    config = replace(config, offline=True, base_url="http://127.0.0.1:9/v1")
    score(tmp_path / "again", whole.run / "explain" / "paper", config, whole.run)
    assert (tmp_path / "again" / "scores.jsonl").read_bytes() == (tmp_path / "out" / "scores.jsonl").read_bytes()


THOUGHT = {"do": "says", "message": {"content": None, "reasoning_content": "it may be rivers"}, "times": 999}
CUT_OFF = {"do": "says", "message": {"content": "it may be ri"}, "finish": "length", "times": 999}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"do": "malformed", "times": 999}, r"all of 12 explanations failed \(12 malformed reply\)"),
        ({"do": "status", "status": 400, "times": 999}, r"\(12 refused \(400\)\), so that nothing is done; mend that"),
        (THOUGHT, r"\(12 reasoning without an answer\), so that nothing is done; give .* by reply_tokens"),
        (CUT_OFF, r"\(12 cut at the token limit \(reply_tokens\)\)"),
    ],
)
def test_nothing_is_explained_where_every_call_fails(whole, server, tmp_path, fault, said):
    settings = {"replies": str(tmp_path / "replies.sqlite"), "retries": 0}
    config = replace(explaining(server, **settings), explainers=("token", "openai"))
    with open_client(config, whole.run) as client:
        client.ask([Request((("user", "hello"),), params=(("max_tokens", 1),))])  # known to answer something
    server.script(fault)
    for _ in range(2):  # nor is it done the second time
        with pytest.raises(UserError, match=said):
            explain(tmp_path / "out", whole.run, config)
        assert not (tmp_path / "out" / "manifest.json").exists()
    # what was refused or went unanswered is asked again; what was answered stays answered
    server.script()
    explain(tmp_path / "out", whole.run, replace(config, reply_tokens=61) if fault["do"] == "says" else config)
    assert "unanswered" not in open_artifact(tmp_path / "out").data


def test_nothing_is_scored_or_ranked_where_every_call_fails(whole, server, tmp_path, capsys, monkeypatch):
    server.script({"do": "status", "status": 400, "message": "no system role", "match": "tokens:", "times": 9999})
    config = scoring(server, "json", scorers=("correlation",), retries=0, replies=str(tmp_path / "replies.sqlite"))
    with pytest.raises(UserError, match="refuses every call: status .400.; the server says: no system role"):
        score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)
    # where the model answered something else before, each is a failure; all of them together are nothing
    server.script({"do": "malformed", "times": 9999})
    with pytest.raises(UserError, match=r"json 0-10 of .*: all of \d+ predictions failed \(.*\d+ malformed reply.*\)"):
        score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(sanity, "run", partial(sanity.run, suite=SUITE[:1]))
    flags = ["--simulator", "json", "--scorers", "correlation", "--llm", MODEL, "--base-url", server.base_url]
    assert cli.main(["score", "--sanity", *flags, "--key-env", VARIABLE, "--retries", "0"]) == 2
    captured = capsys.readouterr()
    assert "all calls failed (" in captured.err and "malformed reply), so that nothing is done" in captured.err
    assert "ranks first" not in captured.out


@pytest.mark.parametrize("simulator", ["completions", "json"])
def test_nothing_is_concluded_from_a_first_try_that_failed(whole, server, tmp_path, simulator):
    server.script({"do": "status", "status": 503})
    config = scoring(server, simulator, retries=0, replies=str(tmp_path / "replies.sqlite"))
    with pytest.raises(UserError, match="could not be tried: server error 503; run the same command again"):
        score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_key_is_nowhere(whole, process):
    assert KEY.encode() not in everything(whole.run) + everything(process.folder)
    assert VARIABLE.encode() not in everything(whole.run)


def test_the_manifest_counts_what_was_asked_and_its_content_does_not(whole, tmp_path):
    first = open_artifact(whole.run / "explain" / "paper")
    assert first.data["meter"]["calls"] == 24 and first.data["meter"]["recorded"] == 0
    config = from_table(ExplainConfig, {**first.config, "explain_device": "cpu"}, "there")
    explain(tmp_path / "again", whole.run, replayed(whole, config))
    again = open_artifact(tmp_path / "again")
    assert again.data["meter"] == {**again.data["meter"], "calls": 0, "recorded": 24, "dollars": 0.0}
    assert (again.request, again.content) == (first.request, first.content)


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: array * 1.5 for name, array in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_other_weights_of_a_local_simulator_are_another_request_to_score(whole, tmp_path, monkeypatch):
    folder = server_model(tmp_path / "model")
    local = {"llm": str(folder), "llm_device": "cpu", "scorers": ("correlation",), "shuffles": 0, "limit": 1}
    config = ScoreConfig(**local, simulator="exact", resamples=5)

    def again() -> Manifest:
        return score(tmp_path / "out", whole.run / "explain" / "paper", config, whole.run)

    first = again()
    with monkeypatch.context() as patch:
        patch.setattr("monolex.interp.score.stage._dictionary", None)
        assert again() == first
    kinds = [replace(config, simulator=simulator) for simulator in ("exact", "json", "completions")]

    def weights() -> list[str]:
        opened = []
        for kind in kinds:
            with open_simulator(kind, tmp_path) as simulator:
                opened.append(simulator.weights)
        return opened

    before = weights()
    change_weights(folder)
    later = again()
    assert later.request != first.request and later.parents["llm"] != first.parents["llm"]
    assert all(old and old != new for old, new in zip(before, weights(), strict=True))


def test_other_weights_in_the_folder_of_a_local_model_are_another_request(whole, tmp_path):
    settings = {"sites": SITES[:1], "dictionaries": ("tied-*",), "features": 2, "controls": False}
    model = str(server_model(tmp_path / "model", brief=True))
    local = {"explainers": ("openai",), "llm": model, "llm_device": "cpu"}
    config = replace(EXPLAIN, **settings, **local, replies=str(tmp_path / "replies.sqlite"))
    first = explain(tmp_path / "out", whole.run, config)
    assert first.data["meter"]["calls"] > 0 and first.parents["llm"].startswith("local:fp32:")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert explain(tmp_path / "out", whole.run, config) == first
    assert explain(tmp_path / "out", whole.run, replace(config, offline=True)) == first
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    change_weights(tmp_path / "model")
    later = explain(tmp_path / "out", whole.run, config)
    assert later.request != first.request and later.data["meter"]["recorded"] == 0
