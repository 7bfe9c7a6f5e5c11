"""What chat endpoints answer: lists, verdicts with their odds, explanations; whatever does not fit is a failure."""

import math
from typing import Any

import numpy as np
import pytest
from helpers.scripted import Scripted, examples, fragment, job

from monolex.interp.config import ExplainConfig
from monolex.interp.explain.by_llm import explain_examples, explain_openai
from monolex.interp.llm import prompts
from monolex.interp.records import Explanation, Failure, Reply
from monolex.interp.simulate.chat import JsonSimulator, Question, Verdict, judge, parse

SAID = Explanation("test", "rivers")
CONFIG = ExplainConfig(explainers=("openai",), llm="m", temperature=0.3)
NO_LIST, OTHER, COUNT = (
    Failure("the answer is no JSON list"),
    Failure("the answer holds something else than whole numbers from 0 to 10"),
    Failure("the answer has not one number for each item"),
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[0, 10]", [0, 10]),
        ("```json\n[0,\n 3]\n```", [0, 3]),
        ("As a list [of two]: [1, 2]", [1, 2]),
        ("[0, 1, 2]", COUNT),
        ("[]", COUNT),
        ("[0, 11]", OTHER),
        ("[-1, 0]", OTHER),
        ("[0.5, 1]", OTHER),
        ("[true, 1]", OTHER),
        ('["0", "1"]', OTHER),
        ("[null, 1]", OTHER),
        ("[0, 1", NO_LIST),
        ("[0, 1 or 2]", NO_LIST),
        ("", NO_LIST),
        ("0, 1", NO_LIST),
        ('{"a": 1}', NO_LIST),
    ],
)
def test_lists(text: str, wanted: list[int] | Failure):
    assert parse(text, 2, 10) == wanted


def test_the_json_simulator():
    answers = iter(["[0, 10, 3]", "[0, 10]", Failure("timed out")])
    client = Scripted(lambda _: next(answers))
    simulator = JsonSimulator(client)
    predicted = simulator.simulate([job("a", "b", "c")] * 3)
    assert simulator.kind == "json 0-10 of scripted"
    assert (
        isinstance(predicted[0], np.ndarray)
        and predicted[0].dtype == np.float64
        and predicted[0].tolist() == [0, 10, 3]
    )
    assert predicted[1:] == [COUNT, Failure("timed out")]
    assert client.asked[0].messages == prompts.list_chat("names of rivers", ["a", "b", "c"])
    params = dict(client.asked[0].params)
    assert params["temperature"] == 0 and params["max_tokens"] >= 3 * 3 and sorted(params) == list(params)


def content(*tokens: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """A chat's log-probabilities."""
    entries = []
    for token, odds in tokens:
        top = [{"token": other, "logprob": math.log(p)} for other, p in odds.items()]
        entries.append({"token": token, "logprob": -0.1, "top_logprobs": top})
    return {"logprobs": {"content": entries}}


def ask(reply: Reply | Failure, count: int = 2) -> list[Verdict] | Failure:
    (verdicts,) = judge(Scripted(lambda _: reply), [Question(SAID, ("x",) * count)])
    return verdicts


def test_judging_asks_once_a_question():
    client = Scripted(lambda _: "[1, 0]")
    detect, fuzz = Question(SAID, ("a", "b")), Question(SAID, ("«a»", "b«c»"), marks=True)
    assert judge(client, [detect, fuzz]) == [[Verdict(True, None), Verdict(False, None)]] * 2
    assert client.asked[0].messages == prompts.judge_chat("rivers", ("a", "b"), marks=False)
    assert client.asked[1].messages == prompts.judge_chat("rivers", ("«a»", "b«c»"), marks=True)
    params = dict(client.asked[0].params)
    assert params["logprobs"] is True and params["top_logprobs"] == 5 and params["temperature"] == 0
    judge(client, [detect], logprobs=False)
    assert "logprobs" not in dict(client.asked[-1].params)
    assert judge(client, []) == []


def test_the_odds_of_a_verdict():
    tokens = [("[", {}), ("1", {"1": 0.6, "0": 0.2, "2": 0.1}), (",", {}), (" 0", {" 0": 0.9, " 1": 0.03, "1": 0.05})]
    verdicts = ask(Reply("[1, 0]", content(*tokens, ("]", {}))))
    assert not isinstance(verdicts, Failure) and [verdict.yes for verdict in verdicts] == [True, False]
    assert np.allclose([verdict.probability for verdict in verdicts], [0.75, 0.03 / 0.93])
    # words before the list hold digits too; a token of two verdicts says nothing; one that is alone is certain
    tokens = [("1 of 2: ", {"x": 0.5}), ("[", {}), ("0,1", {"0,1": 1.0}), (",1", {",1": 0.7}), ("]", {})]
    verdicts = ask(Reply("1 of 2: [0,1,1]", content(*tokens)), 3)
    assert verdicts == [Verdict(False, None), Verdict(True, None), Verdict(True, 1.0)]


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"logprobs": None},
        {"logprobs": {"content": None}},
        {"logprobs": {"content": [{"token": "[1, 0]"}]}},
        content(("[", {}), ("1", {"1": 0.9}), (", 0]]", {})),
    ],
)
def test_verdicts_without_odds(choice: dict[str, Any]):
    assert ask(Reply("[1, 0]", choice)) == [Verdict(True, None), Verdict(False, None)]


def test_verdicts_that_do_not_fit_are_failures():
    assert ask(Reply("[1]", {})) == COUNT
    assert ask(Reply("[1, 2]", {})) == Failure("the answer holds something else than whole numbers from 0 to 1")
    assert ask(Reply("yes", {})) == NO_LIST
    assert ask(Failure("timed out")) == Failure("timed out")


FEATURES = [
    examples([fragment((" the", 0.0), (" Rhine", 3.0))], [fragment(("x", 0.0))]),
    examples([]),
    examples([fragment((" a", -1.0))]),
    examples([fragment((" Elbe", 2.0))]),
]
NOTHING = Failure("no fragment on which the feature is active")


def test_explanations_are_one_line():
    answers = iter([" names of\n\n rivers. ", f"{prompts.OPENING.capitalize()} German rivers."])
    client = Scripted(lambda _: next(answers))
    explained = explain_openai(FEATURES, client, CONFIG)
    assert explained == [
        Explanation("openai", "names of rivers."),
        NOTHING,
        NOTHING,
        Explanation("openai", "German rivers."),
    ]
    assert [request.messages for request in client.asked] == [
        prompts.explanation_chat(FEATURES[number].explain) for number in (0, 3)
    ]
    assert client.asked[0].params == (("max_tokens", 60), ("temperature", 0.3))


@pytest.mark.parametrize("explain", [explain_openai, explain_examples])
def test_empty_answers_and_failures_are_counted(explain: Any):
    answers = iter([f"{prompts.ANSWER} \n " if explain is explain_examples else " \n ", Failure("timed out")])
    explained = explain(FEATURES, Scripted(lambda _: next(answers)), CONFIG)
    assert explained == [Failure("an empty answer"), NOTHING, NOTHING, Failure("timed out")]


def test_answers_with_examples_stand_behind_a_marker():
    answers = iter([f"I think that\n**{prompts.ANSWER}** rivers\n", "rivers"])
    client = Scripted(lambda _: next(answers))
    explained = explain_examples(FEATURES, client, CONFIG)
    assert explained[0] == Explanation("examples", "rivers")
    assert explained[3] == Failure("no line that begins with DESCRIPTION:")
    assert client.asked[0].messages == prompts.examples_chat(FEATURES[0])
