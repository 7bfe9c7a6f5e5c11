"""The exact simulator: against the model itself, a prompt cut at each label; spelling, batches, and what is refused."""

import numpy as np
import pytest
import torch
from helpers import tiny_texts
from helpers.scripted import bundled, job, tiny
from helpers.tiny import ARCHITECTURES, tiny_hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monolex.errors import UserError
from monolex.interp.config import ScoreConfig
from monolex.interp.llm.prompts import UNKNOWN, simulation_end, simulation_start, written
from monolex.interp.records import Failure, Job
from monolex.interp.simulate.exact import Exact, expected, label_logits, local
from monolex.interp.simulate.prompt_ids import PromptIds, Speller
from monolex.model.language_model import LanguageModel
from monolex.model.load import wrap

ODD = ("\t", "\n", "", "unknown", "10", "3", " \t", "é", "\ufffd", "👩‍👩‍👧", "<|endoftext|>", "\tunknown\n", "<start>")
JOBS = [
    job(*["", "a", "small", "river", "runs"]),
    job(*ODD, said="whatever is odd"),
    job("x", said="a description that is a good deal longer than the others are " * 4),
]


def splitting() -> PreTrainedTokenizerFast:
    """Bytes, with digits apart."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["unknown unknown 10 10 10"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def spaced() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space is put before every text, and a token before that."""
    backend = Tokenizer(models.BPE(unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    text = written([*simulation_start(), *simulation_end("rivers", ["a"])])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["?", "<s>"], show_progress=False)
    backend.train_from_iterator([" ".join(line.split("\t")) for line in text.split("\n")] + ["\t", "\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="?")


def directly(lm: LanguageModel, jobs: list[Job]) -> list[list[float]]:
    """The prompt cut at each label, the whole vocabulary's softmax, restricted and renormalised."""
    assert lm.tokenizer is not None
    speller = Speller(lm.tokenizer, "tiny")
    start, expected_values = speller.start(), []
    for wanted in jobs:
        prompt, values = speller.row(simulation_end(wanted.explanation.text, wanted.texts)), []
        for at in prompt.labels:
            with torch.no_grad():
                odds = (
                    lm.hf(torch.tensor([start.ids + prompt.ids[: at + 1]]), use_cache=False).logits[0, -1].softmax(-1)
                )
            kept = [float(odds[token]) for token in speller.numbers]
            values.append(sum(n * p for n, p in enumerate(kept)) / sum(kept))
        expected_values.append(values)
    return expected_values


def predictions(answers: list) -> list[np.ndarray]:
    assert not any(isinstance(answer, Failure) for answer in answers), answers
    return answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_expected_values_are_those_of_the_model(architecture: str):
    lm = tiny(bundled(), architecture)
    jobs = [job(*JOBS[0].texts[:3]), JOBS[2], job(*ODD[:2], said="odd")]
    simulator = Exact(lm)
    assert simulator.kind.startswith("exact 0-10 of tiny (")
    predicted = predictions(simulator.simulate(jobs))
    for got, wanted in zip(predicted, directly(lm, jobs), strict=True):
        assert got.dtype == np.float64 and np.abs(got - wanted).max() < 1e-10
    assert np.ptp(np.concatenate(predicted)) > 1e-3, "a model that says the same everywhere would test nothing"
    assert not any(module._forward_pre_hooks for module in lm.hf.modules())


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma3_text"])
def test_sharing_the_beginning_changes_nothing(architecture: str):
    lm = tiny(bundled(), architecture)
    assert lm.tokenizer is not None
    speller = Speller(lm.tokenizer, "tiny")
    start = speller.start()
    rows = []
    for known in JOBS:
        end = speller.row(simulation_end(known.explanation.text, known.texts))
        rows.append(PromptIds(start.ids + end.ids, [len(start.ids) + at for at in end.labels]))
    whole = [expected(logits) for logits in label_logits(lm, rows, speller.numbers)]
    for batch_tokens in (1, 200, 10**6):
        # jobs of one explanation need not stand together
        again = job(*JOBS[0].texts[:2], said=JOBS[0].explanation.text)
        shared = predictions(Exact(lm, batch_tokens).simulate([*JOBS, job(), again, JOBS[1]]))
        for got, wanted in zip(shared, [*whole, np.zeros(0), whole[0][:2], whole[1]], strict=True):
            assert got.shape == wanted.shape and np.abs(got - wanted).max(initial=0) < 1e-10


def test_soft_caps_and_dropout():
    lm = tiny(bundled(), "gemma3_text")
    plain = predictions(Exact(lm).simulate(JOBS[:1]))[0]
    lm.hf.config.get_text_config().final_logit_softcapping = 0.5
    capped = predictions(Exact(lm).simulate(JOBS[:1]))[0]
    assert np.abs(capped - directly(lm, JOBS[:1])[0]).max() < 1e-10 and np.abs(capped - plain).max() > 1e-2
    drops = wrap(tiny_hf("gpt_neox", vocab_size=4096, max_position_embeddings=2048, hidden_dropout=0.5), bundled())
    drops.hf.train()
    simulator = Exact(drops)
    once, again = (predictions(simulator.simulate(JOBS[:1]))[0] for _ in range(2))
    assert np.array_equal(once, again) and drops.hf.training


def test_other_precisions():
    hf = tiny_hf("gpt_neox", vocab_size=4096, max_position_embeddings=2048)
    single = predictions(Exact(wrap(hf, bundled())).simulate(JOBS))
    halved = predictions(Exact(wrap(hf.to(torch.bfloat16), bundled())).simulate(JOBS))
    for a, b in zip(single, halved, strict=True):
        assert 0 < np.abs(a - b).max() < 0.5


def test_a_prompt_is_spelled_line_by_line():
    tokenizer = bundled()
    speller = Speller(tokenizer, "tiny")
    start = speller.start()
    assert start.ids[0] == tokenizer.bos_token_id and tokenizer.decode(start.ids[1:]) == written(simulation_start())
    row = speller.row(simulation_end("rivers", ODD))
    assert tokenizer.decode(row.ids) == written(simulation_end("rivers", ODD))
    assert len(row.labels) == len(ODD) and tokenizer.bos_token_id not in row.ids
    spelled = tokenizer("\tunknown", add_special_tokens=False)["input_ids"]
    for at in row.labels:
        assert tokenizer.decode([row.ids[at]]).endswith("\t")
        assert row.ids[at : at + len(spelled)] == spelled
    for number, token in enumerate(speller.numbers):
        assert tokenizer.decode([token]) == str(number)
    said, lines = speller.said(" rivers"), speller.lines(ODD)
    assert said + lines.ids == row.ids[: row.labels[-1] + 1] and [len(said) + at for at in lines.labels] == row.labels
    assert tokenizer.decode(said) == written(simulation_end("rivers", ["x"])).partition("x\t")[0]


def test_digits_that_stand_apart_make_another_scale():
    lm = tiny(splitting())
    simulator = Exact(lm)
    assert simulator.kind.startswith("exact 0-9 of tiny (")
    (predicted,) = predictions(simulator.simulate(JOBS[:1]))
    assert np.abs(predicted - directly(lm, JOBS[:1])[0]).max() < 1e-10 and predicted.max() <= 9
    start = Speller(splitting(), "tiny").start()
    assert splitting().decode(start.ids) == written(simulation_start(9))


def test_a_space_that_a_tokenizer_puts_before_a_text_is_in_no_line():
    tokenizer = spaced()
    speller = Speller(tokenizer, "tiny")
    assert tokenizer.tokenize("0") != ["0"] and tokenizer.convert_ids_to_tokens(speller.numbers)[:3] == ["0", "1", "2"]
    row = speller.row(simulation_end("rivers", ["and", " the"]))
    assert "".join(tokenizer.convert_ids_to_tokens(row.ids)).endswith(
        f"<start>\nand\t{UNKNOWN}\n▁the\t{UNKNOWN}\n<end>\n"
    )
    assert speller.start().ids[0] == tokenizer.bos_token_id
    predictions(Exact(tiny(tokenizer)).simulate(JOBS[:1]))


def test_what_does_not_fit_is_a_failure_or_refused():
    tokenizer = bundled()
    speller = Speller(tokenizer, "tiny")
    length = len(speller.start().ids)
    room = len(speller.said("names of rivers") + speller.lines(["a"] * 5).ids)
    lm = tiny(tokenizer, positions=length + room)
    fits, beyond, short = Exact(lm).simulate([job(*"aaaaa"), job(*"aaaaaa"), job("a")])
    (wanted,) = directly(lm, [job(*"aaaaa")])
    assert not isinstance(fits, Failure) and np.abs(fits - wanted).max() < 1e-10
    assert beyond == Failure(
        f"prompt longer than the {length + room} positions of the model, of which the worked examples take {length}"
    )
    assert not isinstance(short, Failure) and len(short) == 1
    with pytest.raises(UserError, match=f"prompt has {length} tokens .* and the model {length} positions"):
        Exact(tiny(tokenizer, positions=length))
    with pytest.raises(UserError, match="simulator's prompt has .* the model 512 positions; choose"):
        local(ScoreConfig(simulator="exact", llm="demo", llm_device="cpu"))


def test_models_that_cannot_spell_numbers_are_refused():
    backend = Tokenizer(models.WordLevel({"?": 0, "1": 1, "10": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="does not give every digit a token of its own"):
        Exact(tiny(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")))
    with pytest.raises(UserError, match="has no tokenizer"):
        Exact(wrap(tiny_hf("gpt_neox")))
    assert Exact(tiny(tiny_texts.make_tokenizer(), positions=8192)).kind.startswith("exact 0-9 "), "no merge makes 10"


def test_logits_that_are_not_finite_are_failures():
    lm = tiny(bundled())
    simulator = Exact(lm)
    with torch.no_grad():
        lm.unembedding[Speller(bundled(), "tiny").numbers[3]] = torch.nan
    assert simulator.simulate(JOBS) == [Failure("the model's logits are not finite")] * 3


def test_the_kind_tells_precisions_and_weights_apart():
    tokenizer = tiny_texts.make_tokenizer()
    lm = tiny(tokenizer, positions=8192)
    kind = Exact(lm).kind
    assert kind.endswith(f"{lm.fingerprint[:8]})")
    with torch.no_grad():
        next(lm.hf.parameters()).mul_(2)
    assert Exact(wrap(lm.hf, tokenizer, "tiny")).kind != kind
    low = wrap(lm.hf.bfloat16(), tokenizer, "tiny")
    assert Exact(low).kind == f"exact 0-9 of tiny (bf16, {low.fingerprint[:8]})"
