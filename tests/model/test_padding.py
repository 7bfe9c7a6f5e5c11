"""Padded batches give what every row gives alone, are told by the pad token, or are refused: never silently wrong."""

import pytest
import torch
from helpers.tiny import ARCHITECTURES, all_sites, close, full, model, read, tiny, tokens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from monolex.errors import UserError
from monolex.model.hooks import capture, logits, run_from
from monolex.model.language_model import LanguageModel
from monolex.model.load import load, wrap

LENGTHS = (9, 6, 1)
PAD = 3


def batch(left: bool = True, pad: int = PAD) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of different lengths, padded; their mask; the rows."""
    rows = [row[:length] for row, length in zip(tokens(len(LENGTHS), 9) % 90 + 10, LENGTHS, strict=True)]
    fill = [torch.full((9 - len(row),), pad) for row in rows]
    ids = torch.stack([torch.cat([f, r] if left else [r, f]) for f, r in zip(fill, rows, strict=True)])
    real = torch.stack(
        [torch.cat([f * 0, r * 0 + 1] if left else [r * 0 + 1, f * 0]) for f, r in zip(fill, rows, strict=True)]
    )
    return ids, real, rows


def named(pad: str | None, bos: str | None = "w1", eos: str | None = "w2", unk: str = "w0") -> PreTrainedTokenizerFast:
    words = WordLevel({f"w{index}": index for index in range(101)}, unk_token=unk)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_masked_row_gives_what_it_gives_alone(architecture: str, left: bool) -> None:
    lm, (ids, mask, rows) = model(architecture), batch(left)
    together = capture(lm, ids, all_sites(lm), mask=mask, logits=True)
    assert close(logits(lm, ids, mask=mask.bool()), full(together))
    resumed = run_from(lm, 1, together.activations["resid_pre.1"], ids, mask=mask)
    for number, row in enumerate(rows):
        alone = capture(lm, row[None], all_sites(lm), logits=True)
        where = mask[number].bool()
        assert close(full(together)[number, where], full(alone)[0], 1e-9)
        assert close(full(resumed)[number, where], full(alone)[0], 1e-9)
        for name, x in alone.activations.items():
            assert close(together.activations[name][number, where], x[0], 1e-9)


def test_padding_on_the_right_is_the_very_forward_without_a_mask() -> None:
    lm, (ids, mask, _) = model("llama"), batch(left=False)
    assert torch.equal(logits(lm, ids, mask=mask), logits(lm, ids))


def test_a_mask_with_a_hole_hides_it() -> None:
    lm, ids = model("gpt2"), tokens(1, 6)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1]])
    without = torch.cat([ids[:, :2], ids[:, 3:]], 1)
    assert close(logits(lm, ids, mask=mask)[:, 3:], logits(lm, without)[:, 2:])


# No mask: told by the pad token


def padded_model(tokenizer: PreTrainedTokenizerFast | None) -> LanguageModel:
    return wrap(model("gpt2").hf, tokenizer)


@pytest.mark.parametrize("left", [True, False])
def test_a_pad_token_of_its_own_is_hidden(left: bool) -> None:
    lm, (ids, mask, _) = padded_model(named("w3")), batch(left)
    assert torch.equal(logits(lm, ids), logits(lm, ids, mask=mask))
    assert not close(logits(lm, ids), logits(padded_model(named("w4")), ids), 1e-3) or not left


def test_padding_before_the_token_that_begins_texts_is_hidden() -> None:
    """Llama's tokenizers are padded with their end of text (or `unk`), which is not what begins a text."""
    for pad in ("w2", "w0"):
        lm = padded_model(named(pad))
        token = int(pad[1:])
        ids = torch.tensor([[token, token, 1, 20, 21], [1, 30, 31, 32, 33]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        assert torch.equal(logits(lm, ids), logits(lm, ids, mask=mask))
        with pytest.raises(UserError, match=f"row 1 .* begins with 1 times token {token}, .* give mask="):
            logits(lm, torch.tensor([[1, 30, 31], [token, 20, 21]]))


def test_a_single_separator_begins_a_text_and_several_are_refused() -> None:
    lm = padded_model(named("w1"))
    ids = torch.tensor([[1, 30, 31, 1]])
    assert torch.equal(logits(lm, ids), logits(lm, ids, mask=torch.ones_like(ids)))
    for wrong in ([[1, 1, 30, 31]], [[30, 31, 32, 33], [1, 1, 1, 1]]):
        with pytest.raises(UserError, match="times token 1, which may pad it or belong to it: give mask="):
            capture(lm, torch.tensor(wrong), ["resid_post.0"])
    assert read(lm, "resid_post.0", torch.tensor([[1]])).shape == (1, 1, 32)


def test_without_a_pad_token_the_end_of_text_is_taken_for_one() -> None:
    lm = padded_model(named(None, bos=None, eos="w2"))
    with pytest.raises(UserError, match="begins with 3 times token 2"):
        logits(lm, torch.tensor([[2, 2, 2, 30]]))


def test_without_a_tokenizer_the_models_configuration_says_what_pads() -> None:
    lm = tiny("llama", double=True, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
    ids, mask, _ = batch()
    assert torch.equal(logits(lm, ids), logits(lm, ids, mask=mask))


def test_the_demo_padded_by_hand_is_refused_and_right_with_a_mask() -> None:
    lm = load("demo")
    assert lm.tokenizer is not None
    ids = lm.tokenizer("def add(self", return_tensors="pt")["input_ids"]
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1)
    with pytest.raises(UserError, match="row 0 of the tokens begins with 6 times token 0"):
        read(lm, "resid_post.3", padded)
    mask = torch.arange(padded.shape[1])[None] >= 6
    x = capture(lm, padded, ["resid_post.3"], mask=mask).activations["resid_post.3"][:, 6:]
    assert torch.allclose(x, read(lm, "resid_post.3", ids), atol=1e-3)


# What is refused


@pytest.mark.usefixtures("unchecked_arrays")
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 8), "give 1 for tokens and 0 for padding"),
        (torch.ones(3, 9), "mask is torch.float32"),
        (torch.full((3, 9), 2), "give 1 for tokens and 0 for padding"),
        (torch.tensor([[1] * 9, [0] * 9, [1] * 9]), "mask hides all of row 1"),
    ],
)
def test_masks_that_make_no_sense(mask: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        logits(model("gpt2"), batch()[0], mask=mask)


def test_a_row_of_padding_alone_is_refused() -> None:
    lm = padded_model(named("w3"))
    with pytest.raises(UserError, match=r"row 1 of the tokens is padding alone \(token 3\)"):
        logits(lm, torch.tensor([[3, 20], [3, 3]]))


def test_a_model_that_cannot_hide_padding_takes_none_on_the_left() -> None:
    """Positions counted from the first column, whatever the mask says, as models of one's own may have them."""
    lm = tiny("gpt2")
    wpe = lm.hf.transformer.wpe
    wpe.register_forward_pre_hook(lambda _, args: (torch.arange(args[0].shape[-1])[None],))
    lm = wrap(lm.hf)
    ids, mask, _ = batch()
    with pytest.raises(
        UserError, match=r"cannot be given padding before a text \(attn_out.0 of a text is then another"
    ):
        logits(lm, ids, mask=mask)
    assert logits(lm, batch(left=False)[0], mask=batch(left=False)[1]).shape == (3, 9, 101)
