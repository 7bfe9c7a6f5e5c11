"""What demo models practise and what is kept from them, and how their behaviour is measured."""

import random
import string
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from monolex.causal.prompts import wordings
from monolex.causal.prompts.tasks import fill
from monolex.demo import behaviour
from monolex.demo.recipe_data import HELD_OUT_MODULES

TEXT = "One day the newspaper had not arrived, so nobody knew what they were to talk of. "


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast]:
    """A random model over whole words, so that a name is the same token everywhere."""
    splitter = pre_tokenizers.Whitespace()
    material = " ".join(
        (*wordings.WORDINGS_PRACTISED, *wordings.WORDINGS_HELD_OUT, *wordings.PLACES, *wordings.OBJECTS, TEXT)
    )
    material += " ".join(("", *wordings.VERBS, *wordings.NAMES_PRACTISED, *wordings.NAMES_HELD_OUT))
    words = ["<s>", "?", *sorted({word for word, _ in splitter.pre_tokenize_str(material)} - {"?"})]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
        return GPTNeoXForCausalLM(config).train(), tokenizer


def test_held_out_parts_share_nothing_with_practised_ones():
    assert len(wordings.NAMES_PRACTISED) == 30 and len(wordings.NAMES_HELD_OUT) == 10
    assert len(wordings.WORDINGS_PRACTISED) == 8 and len(wordings.WORDINGS_HELD_OUT) == 6
    assert not set(wordings.NAMES_PRACTISED) & set(wordings.NAMES_HELD_OUT)
    assert not set(wordings.WORDINGS_PRACTISED) & set(wordings.WORDINGS_HELD_OUT)
    assert set(HELD_OUT_MODULES) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("wording", wordings.WORDINGS_PRACTISED + wordings.WORDINGS_HELD_OUT)
def test_every_wording_names_each_role_once_and_ends_with_the_answer(wording: str):
    fields = [name for _, name, _, _ in string.Formatter().parse(wording) if name]
    assert sorted(fields) == sorted("abpsvoi")
    assert fields[-1] == "i" and wording.endswith(" to {i}.")
    assert max(fields.index("a"), fields.index("b")) < fields.index("s")


def test_no_held_out_opening_is_a_practised_one():
    def openings(wordings: tuple[str, ...]) -> set[str]:
        return {" ".join(wording.split()[:2]) for wording in wordings}

    assert not openings(wordings.WORDINGS_PRACTISED) & openings(wordings.WORDINGS_HELD_OUT)


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_names_the_subject_twice_and_the_indirect_object_once(seed: int):
    for wording in wordings.WORDINGS_PRACTISED + wordings.WORDINGS_HELD_OUT:
        prompt = fill(wording, wordings.NAMES_HELD_OUT, random.Random(seed))
        words = prompt.text.replace(",", " ").replace(".", " ").replace(":", " ").split()
        assert words.count(prompt.subject) == 2 and words.count(prompt.indirect) == 1
        assert prompt.text.endswith(" to") and "{" not in prompt.text


def test_both_orders_of_roles_occur():
    rng = random.Random(0)
    prompts = [fill(wordings.WORDINGS_PRACTISED[0], ("Ann", "Bob"), rng) for _ in range(40)]
    first = [prompt.text.split()[1] == prompt.subject for prompt in prompts]
    assert 5 < sum(first) < 35


def test_last_logits_do_not_depend_on_the_other_texts(model_and_tokenizer: tuple):
    model, tokenizer = model_and_tokenizer
    texts = ["John", "John and Mary went to the store, John gave a book to", "The"]
    together = behaviour.last_logits(model, tokenizer, texts)
    for text, row in zip(texts, together, strict=True):
        ids = torch.tensor([[0, *tokenizer.encode(text, add_special_tokens=False)]])
        torch.testing.assert_close(row, model(input_ids=ids).logits[0, -1].detach(), rtol=1e-5, atol=1e-5)
    assert model.training


def test_document_loss_is_the_mean_over_tokens_of_all_windows(model_and_tokenizer: tuple):
    model, tokenizer = model_and_tokenizer
    texts = ["A short one.", TEXT * 2]
    found = behaviour.document_loss(model, tokenizer, texts, 10)
    total, count = 0.0, 0
    for ids in behaviour.encode(tokenizer, texts):
        for start in range(0, len(ids), 10):
            window = torch.tensor([ids[start : start + 10]])
            if window.shape[1] > 1:
                total += model(input_ids=window, labels=window).loss.detach().item() * (window.shape[1] - 1)
                count += window.shape[1] - 1
    assert found.value == pytest.approx(total / count, rel=1e-5)
    assert (found.n, found.over) == (2, "documents")
    assert behaviour.document_loss(model, tokenizer, [], 10).reason == "no data"


def test_ioi_table_counts_a_model_that_copies_what_was_named_once(
    model_and_tokenizer: tuple, monkeypatch: pytest.MonkeyPatch
):
    """A fake whose logit of a token falls with its count in the prompt answers every prompt rightly, by exactly 1."""
    monkeypatch.setattr(behaviour, "PER_WORDING", 10)
    _, tokenizer = model_and_tokenizer

    class Copier(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            counts = torch.nn.functional.one_hot(input_ids, len(tokenizer)).cumsum(1)
            return type("Output", (), {"logits": -counts.float()})

    rows = behaviour.ioi_table(Copier(), tokenizer, seed=0)  # pyright: ignore[reportArgumentType]
    assert [(row.accuracy.value, row.logit_difference.value) for row in rows] == [(1.0, 1.0)] * 4
    assert [row.accuracy.n for row in rows] == [10 * 8, 10 * 8, 10 * 6, 10 * 6]
    assert {row.accuracy.over for row in rows} == {"prompts"}


def test_ioi_table_is_a_function_of_the_seed(model_and_tokenizer: tuple, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(behaviour, "PER_WORDING", 4)
    model, tokenizer = model_and_tokenizer
    assert behaviour.ioi_table(model, tokenizer, 1) == behaviour.ioi_table(model, tokenizer, 1)
    assert behaviour.ioi_table(model, tokenizer, 1) != behaviour.ioi_table(model, tokenizer, 2)
