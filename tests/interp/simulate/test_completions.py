"""The simulator over a completions endpoint: two kinds of replies, odd tokens, malformed replies, the probe."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scripted import Scripted, bundled, job, tiny

from monolex.errors import UserError
from monolex.interp.llm.prompts import simulation_end
from monolex.interp.records import Failure, Job, Reply, Request
from monolex.interp.simulate.completions import ECHO, PROMPT_LOGPROBS, Completions, connect
from monolex.interp.simulate.exact import Exact
from monolex.interp.simulate.prompt_ids import Speller

ODD = job("\t", "\n", "", "unknown", "7", "10", "a b", "é", "unk", said="an unknown thing")
Cut = Callable[[str], list[str]]


def cut(text: str) -> list[str]:
    """Tokens of a made-up tokenizer."""
    return re.findall(r"unknown|\d+|[^\W\d]+|.|\n", text)


def by_digit(text: str) -> list[str]:
    return re.findall(r"unknown|\d|[^\W\d]+|.|\n", text)


def odds(tokens: list[str], at: int) -> dict[str, float]:
    """A distribution over 2 and 6 that depends on how many tokens came before, beside what must not count."""
    share = (at % 7 + 1) / 10
    known = {"unknown": 0.5, "2": 0.3 * share, "6": 0.3 * (1 - share), " 9": 0.1, "11": 0.05, "9\n": 0.05}
    return {text: math.log(p) for text, p in known.items()}


def value(at: int) -> float:
    share = (at % 7 + 1) / 10
    return 2 * share + 6 * (1 - share)


def echo(prompt: str, cut: Cut = cut) -> Reply:
    """The completions API, with one more token that was written."""
    tokens = [*cut(prompt), "\n"]
    top = [None, *(odds(tokens, at) for at in range(1, len(tokens)))]
    logprobs = {"tokens": tokens, "top_logprobs": top, "token_logprobs": [-1.0] * len(tokens), "text_offset": []}
    return Reply(prompt + "\n", {"text": prompt + "\n", "logprobs": logprobs})


def vllm(prompt: str, cut: Cut = cut) -> Reply:
    """vLLM's own parameter: the token that stands there first, by id."""
    entries: list[Any] = [None]
    tokens = ["<s>", *cut(prompt)]
    for at in range(1, len(tokens)):
        candidates = [(tokens[at], -3.0), *((t, p) for t, p in odds(tokens, at).items() if t != tokens[at])]
        entries.append(
            {str(n): {"decoded_token": t, "logprob": p, "rank": n + 1} for n, (t, p) in enumerate(candidates)}
        )
    return Reply("\n", {"text": "\n", "logprobs": None, "prompt_logprobs": entries})


def endpoint(kind: str, cut: Cut = cut) -> Scripted:
    def answer(request: Request) -> Reply | Failure:
        if kind == "echo" and request.params == ECHO:
            return echo(request.prompt, cut)
        if kind == "vllm" and request.params == PROMPT_LOGPROBS:
            return vllm(request.prompt, cut)
        return Failure("400")

    return Scripted(answer)


def expected(prompt: str, count: int, first: int, cut: Cut = cut) -> list[float]:
    """By hand: tokens `unknown` right behind a tab."""
    tokens = cut(prompt)
    places = [at for at in range(1, len(tokens)) if tokens[at - 1] == "\t" and tokens[at] == "unknown"]
    return [value(at + first) for at in places[-count:]]


def altered(change: Callable[[dict[str, Any]], None], wanted: Job = ODD) -> np.ndarray | Failure:
    """What comes of a reply that is not as it should be."""

    def answer(request: Request) -> Reply:
        reply = echo(request.prompt)
        change(reply.choice["logprobs"])
        return reply

    (predicted,) = Completions(Scripted(answer), ECHO, 10).simulate([wanted])
    return predicted


@pytest.mark.parametrize("kind", ["echo", "vllm"])
def test_expected_values_of_the_numbers_among_the_most_probable(kind: str):
    client = endpoint(kind)
    simulator = connect(client)
    assert simulator.kind == "completions 0-10 of scripted"
    jobs = [ODD, job(" a", " river"), job()]
    client.asked.clear()
    predicted = simulator.simulate(jobs)
    assert len(client.asked) == 3 and len({request.params for request in client.asked}) == 1
    for of_job, got, request in zip(jobs, predicted, client.asked, strict=True):
        assert not isinstance(got, Failure) and len(got) == len(of_job.texts)
        wanted = expected(request.prompt, len(of_job.texts), int(kind == "vllm")) if of_job.texts else []
        assert np.allclose(got, wanted, rtol=0, atol=1e-12)


def test_the_scale_follows_the_tokens():
    client = endpoint("echo", by_digit)
    simulator = connect(client)
    assert simulator.kind == "completions 0-9 of scripted"
    (predicted,) = simulator.simulate([ODD])
    assert not isinstance(predicted, Failure)
    assert np.allclose(predicted, expected(client.asked[-1].prompt, len(ODD.texts), 0, by_digit), rtol=0, atol=1e-12)
    assert "0 to 9" in client.asked[-1].prompt and "\t10\n" not in client.asked[-1].prompt


def test_subject_tokens_may_be_split_merged_or_pieces_of_a_character():
    def pieces(text: str) -> list[str]:
        pieces = []
        for token in re.findall(r"\t\t|unk(?=nown)|\n\n|unknown|.|\n", text):
            pieces += ["bytes:\\xc3", "bytes:\\xa9"] if token == "é" else [token]
        return pieces

    client = endpoint("echo", pieces)
    (predicted,) = Completions(client, ECHO, 10).simulate([ODD])
    tokens = pieces(client.asked[-1].prompt)
    places = [at for at, token in enumerate(tokens) if token == "unk" and tokens[at - 1].endswith("\t")]
    assert not isinstance(predicted, Failure) and np.allclose(
        predicted, [value(at) for at in places[-len(ODD.texts) :]]
    )


def last(logprobs: dict[str, Any], count: int, entry: Any) -> None:
    """Other odds at the last ``count`` labels."""
    for at in labels(logprobs)[-count:]:
        logprobs["top_logprobs"][at] = entry


def merge(logprobs: dict[str, Any], count: int) -> None:
    """The last ``count`` labels in one token with the tab before them."""
    for at in reversed(labels(logprobs)[-count:]):
        for values in logprobs.values():
            if values:
                values[at - 1 : at + 1] = ["\tunknown"] if values is logprobs["tokens"] else [values[at]]


def labels(logprobs: dict[str, Any]) -> list[int]:
    tokens = logprobs["tokens"]
    return [at for at, token in enumerate(tokens) if token == "unknown" and tokens[at - 1] == "\t"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda logprobs, count: last(logprobs, count, {"unknown": -0.1, " 3": -2.0, "03": -3.0}),
        lambda logprobs, count: last(logprobs, count, {"3": None, "4": math.nan}),
        lambda logprobs, count: last(logprobs, count, None),
        merge,
    ],
)
def test_a_label_without_a_number_is_a_missing_token(spoil: Any, count: int):
    """Up to a quarter of a fragment's nine tokens: the others are predicted as ever."""
    whole, gaps = altered(lambda _: None), altered(lambda logprobs: spoil(logprobs, count))
    assert isinstance(whole, np.ndarray) and isinstance(gaps, np.ndarray)
    assert np.isnan(gaps).tolist() == [False] * (9 - count) + [True] * count
    assert (gaps[: 9 - count] == whole[: 9 - count]).all()


def test_replies_that_do_not_fit_are_failures():
    wordy = {"unknown": -0.1, " 3": -2.0, "03": -3.0}
    assert altered(lambda logprobs: last(logprobs, 3, wordy)) == Failure("no number among the most probable labels")
    assert altered(lambda logprobs: last(logprobs, 3, None)) == Failure("no log-probabilities at a label")
    assert altered(lambda logprobs: merge(logprobs, 3)) == Failure(
        "a token of the reply spans a tab and the label behind it"
    )
    for cut_off in (slice(200, None), slice(0, -30)):
        short = altered(lambda logprobs, cut_off=cut_off: logprobs.update({k: v[cut_off] for k, v in logprobs.items()}))
        assert short == Failure("the reply does not spell the prompt")
    assert altered(lambda logprobs: logprobs.update(tokens=logprobs["tokens"][:-1])) == Failure(
        "log-probabilities of another form"
    )
    assert altered(lambda logprobs: logprobs.pop("top_logprobs")) == Failure("log-probabilities of another form")
    none = Completions(Scripted(lambda _: Reply("", {"logprobs": None})), ECHO, 10)
    assert none.simulate([ODD]) == [Failure("no log-probabilities in the reply")]
    other = Completions(Scripted(lambda _: Reply("", {"prompt_logprobs": [None, {"1": -1.0}]})), ECHO, 10)
    assert other.simulate([ODD]) == [Failure("log-probabilities of another form")]
    refused = Completions(Scripted(lambda _: Failure("timed out")), ECHO, 10)
    assert refused.simulate([ODD, ODD]) == [Failure("timed out")] * 2


def test_a_subject_token_that_looks_like_a_label_does_not_shift_the_others():
    client = endpoint("echo")
    (predicted,) = Completions(client, ECHO, 10).simulate([job("a\tunknown", "b")])
    tokens = cut(client.asked[0].prompt)
    places = [at for at in range(len(tokens)) if tokens[at] == "unknown" and tokens[at - 1] == "\t"][-3:]
    assert not isinstance(predicted, Failure) and np.allclose(predicted, [value(places[1]), value(places[2])])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: Failure("echo with logprobs is refused"), "echo with logprobs is refused"),
        (lambda _: Reply("x", {"logprobs": None}), "no log-probabilities in the reply"),
        (lambda _: echo("b"), "the reply does not spell the prompt"),
        (
            lambda request: Reply("", {"logprobs": {"tokens": cut(request.prompt), "top_logprobs": [None] * 44}}),
            "no log-probabilities of the prompt's tokens",
        ),
    ],
)
def test_endpoints_that_cannot_are_refused_with_the_fix(answer: Callable[[Request], Reply | Failure], reason: str):
    client = Scripted(answer)
    with pytest.raises(UserError, match=f"llm = 'scripted': .*{reason}.*serve the model with vLLM") as caught:
        connect(client)
    assert "\n" not in str(caught.value) and len(client.asked) == 2


def test_endpoints_whose_digits_are_no_tokens_are_refused():
    with pytest.raises(UserError, match="does not give every digit a token of its own"):
        connect(endpoint("echo", lambda text: re.findall(r"\t\d+|unknown|.|\n", text)))


def test_the_same_model_behind_an_endpoint_predicts_what_it_predicts_here():
    tokenizer = bundled()
    lm, speller = tiny(tokenizer), Speller(tokenizer, "tiny")
    rhine = job(" the", " river", " Rhine", "\t", "10")
    spelled = speller.start().ids + speller.row(simulation_end(rhine.explanation.text, rhine.texts)).ids

    def answer(request: Request) -> Reply:
        ids = spelled if "Rhine" in request.prompt else tokenizer(request.prompt)["input_ids"]
        with torch.no_grad():
            logprobs = lm.hf(torch.tensor([ids])).logits[0].log_softmax(-1).tolist()
        top = [None, *({str(n): row[token] for n, token in enumerate(speller.numbers)} for row in logprobs[:-1])]
        return Reply("", {"logprobs": {"tokens": [str(tokenizer.decode([i])) for i in ids], "top_logprobs": top}})

    (far,), (near,) = connect(Scripted(answer)).simulate([rhine]), Exact(lm).simulate([rhine])
    assert not isinstance(far, Failure) and not isinstance(near, Failure)
    assert np.abs(far - near).max() < 1e-10 and np.ptp(near) > 1e-3
