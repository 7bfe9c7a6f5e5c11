"""The local model as an endpoint: its log-probabilities against plain forwards, its draws, and what it refuses."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.interp_run import server_model
from helpers.tiny import ARCHITECTURES, VOCAB, tiny, tiny_hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monolex.interp.config import LlmConfig, ScoreConfig
from monolex.interp.llm.client import collect
from monolex.interp.llm.endpoint import open_client
from monolex.interp.llm.local import LocalClient
from monolex.interp.llm.sampling import Draw, pick, pieces, run
from monolex.interp.records import Explanation, Failure, Job, Reply, Request
from monolex.interp.simulate.open import open_simulator
from monolex.model.language_model import LanguageModel
from monolex.model.load import load
from monolex.text.characters import alone

PROMPT = "def add(self, x):\n\treturn café ☃ + x\n"
TEMPLATE = """{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}\
{% endif %}[{{ message['role'] }}] {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""


@cache
def demo() -> LanguageModel:
    return load("demo")


def tokenizer() -> PreTrainedTokenizerFast:
    """A word a token: w0 … w100, of which w1 ends a text."""
    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1")


def request(prompt: str, sample: int = 0, **params: Any) -> Request:
    return Request(prompt=prompt, params=tuple(sorted(params.items())), sample=sample)


def chat(*messages: tuple[str, str], **params: Any) -> Request:
    return Request(messages, params=tuple(sorted(params.items())))


def ask(client: LocalClient, *requests: Request) -> list[Reply]:
    replies = client.ask(requests)
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply for reply in replies if isinstance(reply, Reply)]


def direct(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of a plain forward of one prompt, in float64."""
    with torch.no_grad():
        return lm.hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_echoed_log_probabilities_are_those_of_a_plain_forward():
    lm = demo()
    assert lm.tokenizer is not None
    params = {"echo": True, "logprobs": 5, "max_tokens": 0}
    # one alone, which is that forward, and in a batch with longer ones, which rounds differently
    (alone,) = ask(LocalClient(lm), request(PROMPT, **params))
    batch = ask(LocalClient(lm), *(request(text + PROMPT, **params) for text in ("", "a b c", PROMPT * 4)))
    for reply, within in ((alone, 0.0), (batch[0], 1e-4), (batch[2], 1e-4)):
        laid = reply.choice["logprobs"]
        ids = lm.tokenizer(reply.text)["input_ids"]
        expected = direct(lm, ids)
        assert laid["token_logprobs"][0] is None and laid["top_logprobs"][0] is None
        assert len(laid["tokens"]) == len(ids) == len(laid["top_logprobs"])
        for at in range(1, len(ids)):
            logprob = float(expected[at - 1, ids[at]])
            assert abs(laid["token_logprobs"][at] - logprob) <= within
            likeliest = expected[at - 1].topk(5).values.tolist()
            largest = sorted(laid["top_logprobs"][at].values(), reverse=True)
            assert len(largest) == 5 + (logprob < likeliest[-1])
            assert all(abs(a - b) <= within for a, b in zip(largest, likeliest, strict=False))
    assert alone.text == batch[0].text == PROMPT


def test_tokens_and_offsets_are_those_of_the_text():
    (reply,) = ask(LocalClient(demo()), request(PROMPT, echo=True, logprobs=1, max_tokens=6, temperature=0.0))
    laid = reply.choice["logprobs"]
    assert "".join(laid["tokens"]) == reply.text and reply.text.startswith(PROMPT)
    for offset, token in zip(laid["text_offset"], laid["tokens"], strict=True):
        assert reply.text[offset : offset + len(token)] == token
    assert "☃" in laid["tokens"] and "" in laid["tokens"]  # a character of several tokens


def test_pieces_keep_the_leading_spaces_that_sentencepiece_drops():
    backend = Tokenizer(models.WordLevel({"\u2581a": 0, "b": 1, "\u2581": 2, "<0xE2>": 3}, unk_token="b"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    lm = replace(demo(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend))
    assert pieces(lm, [0, 1, 0, 2, 1]) == ["a", "b", " a", " ", "b"]
    assert pieces(lm, [0, 3]) == ["a", "\ufffd"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_writes_what_each_prompt_would_alone(architecture):
    lm = replace(tiny(architecture, double=True), tokenizer=tokenizer())

    def draws() -> list[Draw]:
        drawn = []
        for number, length in enumerate((9, 3, 1, 6)):
            ids = [(7 * number + 5 * at) % VOCAB for at in range(length)]
            generator = torch.Generator().manual_seed(number)
            drawn.append(Draw(ids, 3 + 2 * number, float(number % 2), 1.0, (), 3, True, generator))
        return drawn

    together, alone = draws(), draws()
    run(lm, together)
    for draw in alone:
        run(lm, [draw])
    for draw, other in zip(together, alone, strict=True):
        assert (draw.written, draw.finish, draw.cost) == (other.written, other.finish, other.cost)
        assert 1 <= draw.cost <= draw.new and len(draw.prompt) == len(draw.ids) - 1
        # both against one plain forward of prompt and answer
        expected = direct(lm, [*draw.ids, *draw.written])
        for at, ranked in enumerate([*draw.prompt, *draw.ranked]):
            assert abs(ranked.logprob - float(expected[at, ranked.token])) < 1e-9
            assert ranked.top[0][1] == max(logprob for _, logprob in ranked.top)
    greedy = together[0]
    after = direct(lm, [*greedy.ids, *greedy.written])[len(greedy.ids) - 1 :]
    assert greedy.written == after.argmax(-1).tolist()[: len(greedy.written)]


def test_draws_have_the_model_s_distribution():
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    wanted = {
        (1.0, 1.0): p,
        (2.0, 1.0): p.sqrt() / p.sqrt().sum(),
        (1.0, 0.6): torch.tensor([0.5, 0.2, 0, 0, 0]) / 0.7,
        (1.0, 0.0): torch.tensor([1.0, 0, 0, 0, 0]),
        (0.0, 1.0): torch.tensor([1.0, 0, 0, 0, 0]),
    }
    many = 4000
    for (temperature, top_p), expected in wanted.items():
        stream = torch.Generator().manual_seed(1)
        counts = torch.tensor([pick(p.log(), temperature, top_p, stream) for _ in range(many)]).bincount(minlength=5)
        for count, share in zip(counts.tolist(), expected.tolist(), strict=True):
            assert abs(count - many * share) <= 4 * math.sqrt(many * share * (1 - share))


def test_the_request_and_its_sample_decide_what_is_drawn():
    client = LocalClient(demo())
    several = [request("Once upon a time", sample, max_tokens=12) for sample in range(4)]
    first = ask(client, *several)
    assert len({reply.text for reply in first}) == 4
    assert ask(client, *reversed(several)) == first[::-1]
    assert ask(client, several[2], request("other " * 40, max_tokens=1))[0].text == first[2].text
    (other,) = ask(client, request("Once upon a time", max_tokens=12, seed=5))
    assert other.text != first[0].text
    greedy = [request("Once upon a time", sample, max_tokens=12, temperature=0.0) for sample in range(2)]
    assert len({reply.text for reply in ask(client, *greedy)}) == 1


def test_a_text_ends_before_a_stop_or_at_the_limit():
    client = LocalClient(demo())
    (whole,) = ask(client, request("Once upon a time", max_tokens=12, temperature=0.0))
    word = whole.text.split()[2]
    for stop in (word, [word, "never written"]):
        (cut,) = ask(client, request("Once upon a time", max_tokens=12, temperature=0.0, stop=stop, logprobs=1))
        assert cut.text == whole.text[: whole.text.index(word)] and cut.choice["finish_reason"] == "stop"
        assert len(cut.choice["logprobs"]["tokens"]) == len(cut.choice["logprobs"]["token_logprobs"]) < 12
    assert whole.choice["finish_reason"] == "length"
    (default,) = ask(client, request("Once upon a time", logprobs=0))
    assert len(default.choice["logprobs"]["tokens"]) <= 16


def test_an_end_token_ends_a_text_and_is_not_written():
    hf = tiny_hf("gpt2")
    with torch.no_grad():
        hf.get_output_embeddings().weight.zero_()
    lm = replace(tiny("gpt2"), hf=hf, tokenizer=tokenizer())
    answers = []
    hf.generation_config.eos_token_id = [0, 3]  # equal logits: greedy takes the first token
    LocalClient(lm).answer([request("w5 w6", temperature=0.0, max_tokens=4)], answers.append, lambda: True)
    assert answers[0].reply.text == "" and answers[0].reply.choice["finish_reason"] == "stop"
    assert answers[0].usage == (2, 1)


def test_a_chat_uses_the_template_or_names_the_roles():
    plain, templated = demo(), replace(demo(), tokenizer=load("demo").tokenizer)
    messages = (("system", "Be short."), ("user", "Say one word."))
    (said,) = ask(LocalClient(plain), chat(*messages, max_tokens=5, temperature=0.0))
    (by_hand,) = ask(
        LocalClient(plain),
        request("System: Be short.\n\nUser: Say one word.\n\nAssistant:", max_tokens=5, temperature=0.0),
    )
    assert said.text == by_hand.text.strip() and said.choice["message"] == {
        "role": "assistant",
        "content": said.text,
    }
    assert templated.tokenizer is not None
    templated.tokenizer.chat_template = TEMPLATE  # which refuses a system message
    (said,) = ask(LocalClient(templated), chat(*messages, max_tokens=5, temperature=0.0))
    (by_hand,) = ask(
        LocalClient(plain),
        request("[user] Be short.\n\nSay one word.\n[assistant] ", max_tokens=5, temperature=0.0),
    )
    assert said.text == by_hand.text
    assert LocalClient(plain).identity != LocalClient(templated).identity


def test_a_chat_s_log_probabilities_are_laid_out_as_openai_does():
    hello = chat(("user", "hello"), max_tokens=3, temperature=0.0, logprobs=True, top_logprobs=2)
    (reply,) = ask(LocalClient(demo()), hello)
    entries = reply.choice["logprobs"]["content"]
    assert len(entries) == 3
    for entry in entries:
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}
        assert len(entry["top_logprobs"]) == 2 and alone(bytes(entry["bytes"])) == entry["token"]
    assert "".join(entry["token"] for entry in entries).strip() == reply.text


def test_what_cannot_be_answered_is_a_failure_beside_the_rest():
    client = LocalClient(demo())
    assert demo().tokenizer is not None
    full = " the" * demo().max_context
    replies = client.ask(
        [
            request("fine", max_tokens=1),
            request(full + " the", max_tokens=0, echo=True),
            request(full, max_tokens=1),
            request("", max_tokens=1),
            request("x", response_format={"type": "json_object"}),
            request(full, max_tokens=0, echo=True),
            request(full[4:], max_tokens=9),
        ]
    )
    long = Failure("longer than the model's context")
    assert replies[1:5] == [long, long, Failure("empty prompt"), Failure("no local model takes response_format")]
    assert all(isinstance(replies[number], Reply) for number in (0, 5, 6))


def test_a_local_model_is_recorded_by_its_weights_and_replayed_without_them(tmp_path):
    settings = LlmConfig(llm="demo", llm_device="cpu")
    wanted = [request("Once", sample, max_tokens=4) for sample in range(2)]
    with open_client(settings, tmp_path) as client:
        replies = client.ask(wanted)
        assert client.meter.calls == 2 and client.meter.written == 8
    with open_client(replace(settings, offline=True), tmp_path) as client:
        assert client.ask(wanted) == replies and client.backend.identity.startswith("local:fp32:")
    with open_client(replace(settings, offline=True, llm_dtype="bf16"), tmp_path) as client:
        assert client.ask(wanted) == [Failure("not recorded", again=True)] * 2
    assert collect(LocalClient(demo()), wanted) == replies


def test_no_batch_holds_more_tokens_than_it_may(monkeypatch):
    sizes = []

    def watched(lm: LanguageModel, draws: list[Draw]) -> None:
        sizes.append((len(draws), len(draws) * (max(len(d.ids) for d in draws) + max(d.new for d in draws))))
        run(lm, draws)

    monkeypatch.setattr("monolex.interp.llm.local.run", watched)
    client = LocalClient(demo(), batch_tokens=60)
    ask(client, *(request("the " * (1 + number), max_tokens=1 + number % 5) for number in range(20)))
    ask(client, request("the " * 90, max_tokens=1))
    assert all(tokens <= 60 for count, tokens in sizes if count > 1) and max(count for count, _ in sizes) > 3
    assert sum(count for count, _ in sizes) == 21


def test_a_local_model_serves_the_simulators_of_endpoints(tmp_path):
    model = str(server_model(tmp_path / "model"))
    cut = tuple(alone(bytes([byte])) for byte in "京".encode())
    jobs = [Job(Explanation("token", "the word file"), texts) for texts in (("a", " file", "."), ("a", *cut, "."))]
    exact = ScoreConfig(simulator="exact", llm=model, llm_device="cpu")
    with open_simulator(exact, tmp_path) as opened:
        assert opened.weights and opened.client is None
        weights, (wanted, whole) = opened.weights, opened.simulator.simulate(jobs)
    assert not isinstance(whole, Failure) and len(whole) == 5 and len(set(whole[1:4].tolist())) == 1
    kinds = set()
    for simulator in ("completions", "json"):
        with open_simulator(replace(exact, simulator=simulator), tmp_path) as opened:
            assert opened.client is not None and opened.weights == opened.client.backend.identity != weights
            predicted, whole = opened.simulator.simulate(jobs)
            kinds.add(opened.simulator.kind)
        if simulator == "completions":
            assert (
                not isinstance(predicted, Failure)
                and not isinstance(wanted, Failure)
                and len(predicted) == len(wanted) == 3
            )
            assert all(0 <= value <= 10 for value in predicted)
            assert not isinstance(whole, Failure) and len(whole) == 5 and len(set(whole[1:4].tolist())) == 1
        else:  # it never learned to answer
            assert isinstance(predicted, Failure)
        with open_simulator(replace(exact, simulator=simulator, offline=True), tmp_path) as opened:
            assert opened.simulator.kind in kinds
            again, _ = opened.simulator.simulate(jobs)
        assert repr(again) == repr(predicted)
    with open_simulator(replace(exact, simulator="json", llm_dtype="bf16"), tmp_path) as opened:
        assert opened.simulator.kind not in kinds and " (bf16, " in opened.simulator.kind
