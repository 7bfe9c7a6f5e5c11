"""Behaviour on prompt sets, against full forwards of one prompt at a time, and of models whose answers are known."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.tiny import VOCAB, close, model, tiny, tiny_hf
from helpers.word_tokenizers import year_words
from transformers import PreTrainedTokenizerFast

from monolex.causal.prompts import wordings
from monolex.causal.prompts.behaviour import (
    Behaviour,
    behaviour,
    by_wording,
    demo_table,
    end_log_probabilities,
    log_probability,
)
from monolex.causal.prompts.pairs import Pair, PromptPairs, stack
from monolex.causal.prompts.tasks import greater_than, ioi, pronoun
from monolex.config import ModelConfig
from monolex.model.language_model import LanguageModel
from monolex.model.load import load, wrap
from monolex.tables import to_table

ANSWERS = ((), (5,), (7, 9, 11), (9,), (1, 2))


def random_pairs(count: int, seed: int = 0) -> PromptPairs:
    """Pairs of 3 to 9 tokens; the donors' right answers are none, others, and some of the base's."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = 3 + number % 7
        base, donor = (torch.randint(VOCAB, (length,), generator=draw).tolist() for _ in range(2))
        right = ((9, 30), (40,), (9,))[number % 3]
        order = ("ABBA", "BABA")[number % 2]
        own = ANSWERS[number % len(ANSWERS)]
        found.append(Pair(("base", "donor"), (base, donor), right, (3, 4), own, {}, number % 4, order))
    return stack("random", "", found)


def alone(lm: LanguageModel, pairs: PromptPairs, row: int, side: str) -> list[float]:
    """Log-probabilities behind one prompt without padding, of a plain forward."""
    ids = getattr(pairs, side)[row : row + 1, : int(pairs.lengths[row])]
    with torch.no_grad():
        return lm.hf(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(0).tolist()


def odds(log_p: Sequence[float], answers: Sequence[int]) -> float:
    return math.log(sum(math.exp(log_p[answer]) for answer in answers))


def naive(lm: LanguageModel, pairs: PromptPairs) -> dict[str, list[float]]:
    """The five numbers of every pair, one by one; `donor` has only the pairs that count."""
    found: dict[str, list[float]] = {name: [] for name in ("difference", "probability", "donor", "kl")}
    for row in range(len(pairs)):
        base, donor = alone(lm, pairs, row, "base"), alone(lm, pairs, row, "donor")
        right, wrong, other = set(pairs.right[row]), set(pairs.wrong[row]), set(pairs.donor_right[row])
        found["difference"].append(odds(base, [*right]) - odds(base, [*wrong]))
        found["probability"].append(sum(math.exp(base[answer]) for answer in right))
        found["kl"].append(sum(math.exp(p) * (p - q) for p, q in zip(base, donor, strict=True)))
        if other - right and right - other:
            found["donor"].append(odds(donor, [*other - right]) - odds(donor, [*right - other]))
        elif other - right:
            found["donor"].append(found["difference"][-1] - odds(donor, [*right]) + odds(donor, [*wrong]))
    return found


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama"])
def test_padding_and_the_shortcut_to_the_end_change_nothing(architecture: str):
    lm, pairs = model(architecture), random_pairs(20)
    for side in ("base", "donor"):
        together = end_log_probabilities(lm, getattr(pairs, side), pairs.end)
        expected = torch.tensor([alone(lm, pairs, row, side) for row in range(20)], dtype=torch.float64)
        assert together.dtype == torch.float64 and close(together, expected)


@pytest.mark.parametrize("batch", [3, 64])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_the_numbers_are_those_of_prompts_run_one_by_one(architecture: str, batch: int):
    lm, pairs = model(architecture), random_pairs(20)
    found, expected = behaviour(lm, pairs, batch=batch), naive(lm, pairs)
    assert 0 < len(expected["donor"]) < 20, "the case of a donor without a right answer is among them"
    for estimate, name in (
        (found.logit_difference, "difference"),
        (found.probability, "probability"),
        (found.kl, "kl"),
    ):
        assert estimate.value == pytest.approx(np.mean(expected[name]), rel=1e-10)
    for estimate, name in ((found.accuracy, "difference"), (found.donor_accuracy, "donor")):
        hits = [value > 0 for value in expected[name]]
        assert estimate.value == pytest.approx(np.mean(hits), rel=1e-12) and estimate.n == len(hits)
        assert estimate.low is not None and estimate.high is not None and estimate.low <= np.mean(hits) <= estimate.high
    assert found.n == 20 and {found.accuracy.over, found.kl.over} == {"prompts"}


def test_rows_are_the_parts_of_the_whole():
    lm, pairs = model("gpt_neox"), random_pairs(24)
    made, difference = by_wording(lm, pairs, batch=5), np.array(naive(lm, pairs)["difference"])
    assert [(row.by, row.value) for row in made] == [
        *(("wording", str(number)) for number in range(4)),
        ("order", "ABBA"),
        ("order", "BABA"),
    ]
    for row in made:
        own = np.array([str(part) == row.value for part in (pairs.wording if row.by == "wording" else pairs.order)])
        assert row.accuracy.value == pytest.approx((difference[own] > 0).mean())
        assert row.logit_difference.value == pytest.approx(difference[own].mean()) and row.accuracy.n == own.sum()
    plain = stack("own", "", [Pair(("a", "b"), ([1, 2], [1, 3]), (4,), (5,), (), {})] * 2)
    assert [row.by for row in by_wording(lm, plain)] == ["wording"]


def test_half_precision_is_widened_and_modes_are_left_alone():
    lm = wrap(tiny_hf("gpt_neox").to(torch.bfloat16).train())  # pyright: ignore[reportArgumentType]
    pairs = random_pairs(4)
    found = end_log_probabilities(lm, pairs.base, pairs.end)
    assert found.dtype == torch.float32 and close(found.exp().sum(1), torch.ones(4), 1e-5)
    assert lm.hf.training and not found.requires_grad


def test_log_probability_of_several_answers():
    log_p = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert log_probability(log_p, [(0, 2), (1,)]).exp().tolist() == pytest.approx([0.8, 0.25])
    assert log_probability(log_p, [(), (1,)]).exp().tolist() == pytest.approx([0.0, 0.25])
    assert log_probability(log_p, [(), ()]).tolist() == [-torch.inf] * 2


def constant(logits: torch.Tensor) -> LanguageModel:
    """A model that says the same after every prompt, with exactly these logits."""
    hf = tiny_hf("gpt_neox", vocab_size=len(logits)).double()
    with torch.no_grad():
        norm, head = hf.get_submodule("gpt_neox.final_layer_norm"), hf.get_output_embeddings()
        assert isinstance(norm, torch.nn.LayerNorm) and isinstance(head, torch.nn.Linear)
        norm.weight.zero_()
        norm.bias.zero_()[0] = 1
        head.weight.zero_()[:, 0] = logits
    return wrap(hf)


def pairs_of(count: int, right: int, wrong: int, donor_right: tuple[int, ...] = ()) -> PromptPairs:
    one = Pair(("base", "donor"), ([1, 2, 3], [1, 4, 3]), (right,), (wrong,), donor_right, {})
    return stack("own", "", [one] * count)


def verdict(lm: LanguageModel, pairs: PromptPairs) -> tuple[bool, str]:
    found = behaviour(lm, pairs)
    return found.able, found.verdict


def test_a_model_is_able_where_both_prompts_are_answered_rightly():
    logits = torch.zeros(20, dtype=torch.float64)
    logits[[5, 6, 7]] = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    lm = constant(logits)
    whole = behaviour(lm, pairs_of(50, 6, 7, (5,)))
    assert (whole.logit_difference.value, whole.kl.value) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert whole.able and whole.verdict == "the model does this task on 100 % of prompts"
    able, sentence = verdict(lm, pairs_of(50, 6, 7, (7,)))
    assert not able and sentence == (
        "this model cannot do the task of the donor prompts: accuracy 0.00 [0.00, 0.07]; read nothing into the curves"
    )
    able, sentence = verdict(lm, pairs_of(50, 7, 6))
    assert not able and sentence.startswith("this model cannot do the task: accuracy 0.00 [0.00, 0.07]; read nothing")
    able, sentence = verdict(lm, pairs_of(4, 6, 7, (5,)))
    assert not able and sentence.startswith(
        "whether this model can do the task cannot be said from so few prompts: acc"
    )
    nothing = behaviour(lm, pairs_of(50, 6, 7))
    assert nothing.able and nothing.donor_accuracy.value is None and "no donor has" in nothing.donor_accuracy.reason
    assert behaviour(lm, pairs_of(50, 6, 7, (6,))).donor_accuracy.value is None, "nothing of its own"


@pytest.mark.parametrize(("count", "able"), [(2, False), (5, False), (6, True), (50, True)])
def test_a_handful_of_right_answers_is_no_proof(count: int, able: bool):
    """Guessing is right n times of n with probability 2^-n; the exact interval is the one that this rules out."""
    logits = torch.zeros(20, dtype=torch.float64)
    logits[6] = 1.0
    found = behaviour(constant(logits), pairs_of(count, 6, 7))
    assert found.able == able == (0.5**count < 0.025)
    assert found.accuracy.value == found.accuracy.high == 1
    assert found.accuracy.low is not None and found.accuracy.low**count == pytest.approx(0.025)


def test_one_prompt_says_nothing():
    able, sentence = verdict(model("gpt_neox"), pairs_of(1, 6, 7))
    assert (
        not able and sentence == "whether this model can do the task cannot be said: one of prompts only: no interval"
    )


def test_a_model_that_always_says_the_latest_year_does_not_compare():
    tokenizer = year_words(r"\d\d")
    pairs = greater_than(tokenizer, pairs=40)
    logits = torch.zeros(len(tokenizer), dtype=torch.float64)
    logits[tokenizer.convert_tokens_to_ids("99")] = 20.0
    found = behaviour(constant(logits), pairs)
    assert found.accuracy.value == 1 and found.donor_accuracy.value == 0 and not found.able


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load(ModelConfig(device="cpu"))


def test_the_bundled_model_does_what_it_practised_and_no_more(demo: LanguageModel):
    table = {(row.wordings, row.names): row for row in demo_table(demo, pairs=96)}
    assert list(table) == [(a, b) for a in ("practised", "held-out", "standard") for b in ("practised", "held-out")]
    practised = table["practised", "practised"].behaviour
    assert practised.able and practised.accuracy.low is not None and practised.accuracy.low > 0.9
    assert "does this task" in practised.verdict and practised.donor_accuracy.value == 1
    for key, row in table.items():
        assert row.left_out == () and row.behaviour.n == 96
        if "held-out" in key:
            assert not row.behaviour.able, key
        plain = json.loads(json.dumps(to_table(row), allow_nan=False))
        assert plain["behaviour"]["accuracy"] == row.behaviour.accuracy._asdict() and plain["left_out"] == []
        assert plain["behaviour"]["verdict"] == row.behaviour.verdict and plain["wordings"] == key[0]
    held = table["held-out", "practised"].behaviour
    assert held.accuracy.value is not None and held.accuracy.value < 0.5 and "cannot do the task" in held.verdict


@pytest.mark.parametrize("corruption", ["io_swap", "s2_io", "p_abc"])
def test_the_bundled_model_answers_the_donors_too(demo: LanguageModel, corruption: str):
    assert demo.tokenizer is not None
    practised = {"wordings": wordings.WORDINGS_PRACTISED, "names": wordings.NAMES_PRACTISED}
    found = behaviour(demo, ioi(demo.tokenizer, corruption=corruption, **practised))
    assert found.able and found.kl.low is not None and found.kl.low > 0.5
    assert (found.donor_accuracy.value is None) == (corruption == "p_abc")


def test_the_bundled_model_on_the_other_tasks(demo: LanguageModel):
    assert demo.tokenizer is not None
    assert behaviour(demo, pronoun(demo.tokenizer, pairs=96)).able
    years = behaviour(demo, greater_than(demo.tokenizer, pairs=96))
    assert not years.able and "cannot do the task" in years.verdict


def test_a_table_cell_without_enough_names_says_why():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=year_words(r"\d\d").backend_tokenizer, bos_token="<s>")
    lm = tiny("gpt_neox", vocab_size=len(tokenizer))
    table = demo_table(LanguageModel(lm.hf, tokenizer, "tiny", lm.structure), pairs=4)
    for row in table:
        assert isinstance(row.behaviour, Behaviour) and not row.behaviour.able and row.behaviour.n == 0
        assert "names: 0 of" in row.behaviour.verdict and row.behaviour.accuracy.value is None
        assert set(row.left_out) in (set(wordings.NAMES_PRACTISED), set(wordings.NAMES_HELD_OUT))
