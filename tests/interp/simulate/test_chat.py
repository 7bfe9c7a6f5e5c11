"""What chat endpoints answer: lists, verdicts with their odds, explanations; whatever does not fit is a failure."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.scripted import Scripted, examples, fragment, job

from monolex.interp.config import ExplainConfig
from monolex.interp.explain.by_llm import explain_examples, explain_openai
from monolex.interp.llm import prompts
from monolex.interp.llm.answers import CUT, EMPTY, NO_LIST, ONLY_REASONING, WRONG_COUNT, answered
from monolex.interp.records import Explanation, Failure, Reply
from monolex.interp.simulate.chat import ChatJudge, JsonSimulator, Question, Verdict, judge, parse

SAID = Explanation("test", "rivers")
CONFIG = ExplainConfig(explainers=("openai",), llm="m", temperature=0.3)
OTHER = Failure("the answer holds something else than whole numbers from 0 to 10")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[0, 10]", [0, 10]),
        ("```json\n[0,\n 3]\n```", [0, 3]),
        ("As a list [of two]: [1, 2]", [1, 2]),
        ("[1, 2]\n\nNote: fragment [3] was borderline.", [1, 2]),
        ("[1, 2]\nThat is [5, 6, 7] and [11, 0], see [a, b].", [1, 2]),
        ("[1, 2]\nNo, on reflection it is:\n```\n[3, 4]\n```\nI hope that helps.", [3, 4]),
        ("[0.0, 10.0]", [0, 10]),
        ("[0.5, 7.25]", [0.5, 7.25]),
        ("[0, 3,]", [0, 3]),
        ("[\n  0,\n  3,\n]", [0, 3]),
        ("""["0", '10']""", [0, 10]),
        ('{"activations": [0, 3]}', [0, 3]),
        ("[0, 1, 2]", WRONG_COUNT),
        ("[]", WRONG_COUNT),
        ("[0, 11]", OTHER),
        ("[-1, 0]", OTHER),
        ("[0.5, 1]", OTHER),  # may be on a scale from 0 to 1
        ("[true, 1]", NO_LIST),
        ("[null, 1]", NO_LIST),
        ("[0,, 1]", NO_LIST),
        ("[,]", NO_LIST),
        ("['0\", 1]", NO_LIST),
        ("[1e0, 1]", NO_LIST),
        ("[0, 1", NO_LIST),
        ("[0, 1 or 2]", NO_LIST),
        ("", NO_LIST),
        ("0, 1", NO_LIST),
        ('{"a": 1}', NO_LIST),
    ],
)
def test_lists(text: str, wanted: list[float] | Failure):
    assert parse(text, 2, 10) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[1]\n\nFragment [0] of the document was borderline.", [1]),
        ("`[1]`\n\nFragment [0] of the document was borderline.", [1]),
        ("The answer is [1].", [1]),
        ("Not [0] but [1].", [1]),
        ("[0]\n[1]", [1]),
    ],
)
def test_a_bracket_in_a_note_is_no_list_of_a_single_number(text: str, wanted: list[float]):
    assert parse(text, 1, 1) == wanted


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
    assert predicted[1:] == [WRONG_COUNT, Failure("timed out")]
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
    (verdicts,) = judge(ChatJudge(Scripted(lambda _: reply)), [Question(SAID, ("x",) * count)])
    return verdicts


def test_judging_asks_once_a_question():
    client = Scripted(lambda _: "[1, 0]")
    detect, fuzz = Question(SAID, ("a", "b")), Question(SAID, ("«a»", "b«c»"), marks=True)
    assert judge(ChatJudge(client), [detect, fuzz]) == [[Verdict(True, None), Verdict(False, None)]] * 2
    assert client.asked[0].messages == prompts.judge_chat("rivers", ("a", "b"), marks=False)
    assert client.asked[1].messages == prompts.judge_chat("rivers", ("«a»", "b«c»"), marks=True)
    params = dict(client.asked[0].params)
    assert params["logprobs"] is True and params["top_logprobs"] == 5 and params["temperature"] == 0
    judge(ChatJudge(client, logprobs=False, reply_tokens=777), [detect])
    params = dict(client.asked[-1].params)
    assert "logprobs" not in params and params["max_tokens"] == 777
    assert judge(ChatJudge(client), []) == []


def test_the_odds_of_a_verdict():
    tokens = [("[", {}), ("1", {"1": 0.6, "0": 0.2, "2": 0.1}), (",", {}), (" 0", {" 0": 0.9, " 1": 0.03, "1": 0.05})]
    verdicts = ask(Reply("[1, 0]", content(*tokens, ("]", {}))))
    assert not isinstance(verdicts, Failure) and [verdict.yes for verdict in verdicts] == [True, False]
    assert np.allclose([verdict.probability for verdict in verdicts], [0.75, 0.03 / 0.93])
    # words before the list hold digits too; a token of two verdicts says nothing; one that is alone is certain
    tokens = [("1 of 2: ", {"x": 0.5}), ("[", {}), ("0,1", {"0,1": 1.0}), (",1", {",1": 0.7}), ("]", {})]
    verdicts = ask(Reply("1 of 2: [0,1,1]", content(*tokens)), 3)
    # what was thought before stands among the tokens too
    before = [("<think>", {}), ("[1,1,1]", {}), ("</think>", {})]
    thought = "".join(token for token, _ in before)
    assert ask(Reply(f"{thought}1 of 2: [0,1,1]", content(*before, *tokens)), 3) == verdicts
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
    assert ask(Reply("[1]", {})) == WRONG_COUNT
    assert ask(Reply("[1, 0]", {"finish_reason": "length"})) == CUT
    assert ask(Reply("<think>[1, 0]", {})) == ONLY_REASONING
    assert ask(Reply("[0.5, 0]", {})) == Failure("the answer holds something else than whole numbers from 0 to 1")
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
    assert client.asked[0].params == (("max_tokens", 200), ("temperature", 0.3))


@pytest.mark.parametrize("explain", [explain_openai, explain_examples])
def test_empty_answers_and_failures_are_counted(explain: Any):
    answers = iter([f"{prompts.ANSWER} \n " if explain is explain_examples else " \n ", Failure("timed out")])
    explained = explain(FEATURES, Scripted(lambda _: next(answers)), CONFIG)
    assert explained == [EMPTY, NOTHING, NOTHING, Failure("timed out")]


@pytest.mark.parametrize("explain", [explain_openai, explain_examples])
def test_half_a_reply_and_what_was_thought_are_no_explanations(explain: Any):
    said = f"{prompts.ANSWER} rivers"
    answers = iter([Reply(said, {"finish_reason": "length"}), f"<think>{prompts.ANSWER} lakes</think>\n{said}"])
    client = Scripted(lambda _: next(answers))
    cut, _, _, explained = explain(FEATURES, client, replace(CONFIG, reply_tokens=3000))
    assert cut == CUT
    assert explained == Explanation(
        explain.__name__.removeprefix("explain_"), said if explain is explain_openai else "rivers"
    )
    assert dict(client.asked[0].params)["max_tokens"] == 3000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rivers", "rivers"),
        ("<think>hm</think>rivers", "rivers"),
        ("\n<think>\nhm\n</think>\n\nrivers", "rivers"),
        ("<THINKING>hm</THINKING> rivers", "rivers"),
        ("[THINK]hm[/THINK]rivers", "rivers"),
        ("<think>a</think><think>b</think>rivers", "rivers"),
        ("Hm, let me see.\n</think>\nrivers", "rivers"),  # the template opened it
        ("<think>I may not write </think> yet\n</think>\nrivers", "rivers"),
        ("Sure!\n<think>lakes\n</think>\nrivers", "rivers"),
        ("the tags <think> and </think> of chats", "the tags <think> and </think> of chats"),
        ("<think>hm", ONLY_REASONING),
        ("<think>hm</think>\n", ONLY_REASONING),
        ("hm\n</think>", ONLY_REASONING),
        (" \n", EMPTY),
    ],
)
def test_what_a_model_thought_is_cut_off(text: str, wanted: str | Failure):
    answer = answered(Reply(text, {"message": {"content": text}}))
    assert (answer if isinstance(answer, Failure) else answer.strip()) == wanted


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_no_answer(field: str):
    assert answered(Reply("", {"message": {"content": None, field: "rivers"}})) == ONLY_REASONING
    assert answered(Reply("", {"message": {"content": None, field: None}})) == EMPTY
    assert answered(Reply("", {"message": {"content": None, field: "rivers"}, "finish_reason": "length"})) == CUT


def test_answers_with_examples_stand_behind_a_marker():
    answers = iter([f"I think that\n**{prompts.ANSWER}** rivers\n", "rivers"])
    client = Scripted(lambda _: next(answers))
    explained = explain_examples(FEATURES, client, CONFIG)
    assert explained[0] == Explanation("examples", "rivers")
    assert explained[3] == Failure("no line that begins with DESCRIPTION:")
    assert client.asked[0].messages == prompts.examples_chat(FEATURES[0])
