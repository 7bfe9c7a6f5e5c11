"""Pairs of prompts as tensors: what a causal experiment runs, and which answers it compares.

The base prompt is the one that is run, the donor the one whose activations are put into it. Both are encoded as the
corpus encodes a document: behind the separator, and with no special token out of the text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from monolex.artifact import digest
from monolex.text.encode import encode_texts
from monolex.text.separator import separator

END = "END"
"""Role of the last token of a prompt, where the answer is predicted."""


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Prompts of one task in pairs of equal length.

    Pairs of different lengths stand in one tensor, padded on the right. That is exact and no approximation: in a
    causal model nothing real attends to what comes after it, and the answer is read at each row's own :attr:`end`.
    Whoever averages or edits over positions keeps to :attr:`real`.
    """

    task: str
    """`ioi`, `greater-than`, `pronoun`, or the name of the file."""
    corruption: str
    """How a donor differs from its base, e.g. `io_swap`; empty for pairs from a file."""
    base: Int[Tensor, "pairs tokens"]
    """Token ids, the separator first if the tokenizer has one, 0 after the end."""
    donor: Int[Tensor, "pairs tokens"]
    """The same of the donors; each as long as its base."""
    lengths: Int[Tensor, "pairs"]
    """Real tokens of each row."""
    right: tuple[tuple[int, ...], ...]
    """Of each pair the token ids that are right after the base prompt."""
    wrong: tuple[tuple[int, ...], ...]
    """Of each pair the token ids that they are compared with (IOI: the subject)."""
    donor_right: tuple[tuple[int, ...], ...]
    """Of each pair the token ids that are right after the donor prompt; empty where nothing is."""
    roles: Mapping[str, Int[Tensor, "pairs"]]
    """Position of a role's token in base and donor, e.g. `IO`, `S1`, `S2`, `END`."""
    wording: tuple[int, ...]
    """Number of each pair's wording."""
    order: tuple[str, ...]
    """IOI: `ABBA` where the indirect object is named first, `BABA` where the subject is; empty otherwise."""
    texts: tuple[tuple[str, str], ...]
    """Base and donor as text."""
    left_out: tuple[str, ...]
    """Names (IOI, pronoun) or centuries (greater-than) that this tokenizer does not spell as needed."""

    def __len__(self) -> int:
        return len(self.base)

    @property
    def content(self) -> str:
        """Hash of all tokens, answers and positions."""
        tensors = (self.base, self.donor, self.lengths, *self.roles.values())
        answers = (self.right, self.wrong, self.donor_right, list(self.roles), self.wording, self.order, self.texts)
        return digest([[tensor.tolist() for tensor in tensors], answers])

    @property
    def end(self) -> Int[Tensor, "pairs"]:
        """Position of each row's last real token, which predicts the answer."""
        return self.lengths - 1

    @property
    def real(self) -> Bool[Tensor, "pairs tokens"]:
        """Which positions are no padding."""
        return torch.arange(self.base.shape[1]) < self.lengths[:, None]

    @property
    def changed(self) -> Bool[Tensor, "pairs tokens"]:
        """Where the donor's token is another than the base's."""
        return self.base != self.donor

    def select(self, index: Sequence[int] | Int[Tensor, "chosen"] | Bool[Tensor, "pairs"]) -> "PromptPairs":
        """The pairs of ``index`` in its order, or those where a mask is true; as wide as before."""
        index = torch.as_tensor(index)
        chosen = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("base", "donor", "lengths"):
            parts[name] = parts[name][chosen]
        for name in ("right", "wrong", "donor_right", "wording", "order", "texts"):
            parts[name] = tuple(parts[name][number] for number in chosen.tolist())
        parts["roles"] = {role: positions[chosen] for role, positions in self.roles.items()}
        return PromptPairs(**parts)

    def batches(self, size: int) -> Iterator["PromptPairs"]:
        """The pairs in their order, ``size`` at a time."""
        for numbers in torch.arange(len(self)).split(size):
            yield self.select(numbers)


class Pair(NamedTuple):
    """One pair before it is put beside others."""

    texts: tuple[str, str]
    """Base and donor."""
    tokens: tuple[list[int], list[int]]
    """Their ids, equally many."""
    right: tuple[int, ...]
    """As in :class:`PromptPairs`."""
    wrong: tuple[int, ...]
    """As in :class:`PromptPairs`."""
    donor_right: tuple[int, ...]
    """As in :class:`PromptPairs`."""
    roles: Mapping[str, int]
    """Positions, without `END`."""
    wording: int = 0
    """Its number."""
    order: str = ""
    """As in :class:`PromptPairs`."""


def stack(task: str, corruption: str, pairs: Sequence[Pair], left_out: Sequence[str] = ()) -> PromptPairs:
    """``pairs``, all with the same roles, as tensors."""
    assert all(len(base) == len(donor) for _, (base, donor), *_ in pairs), "base and donor differ in length"
    width = max(len(pair.tokens[0]) for pair in pairs)
    base, donor = (
        torch.tensor([pair.tokens[side] + [0] * (width - len(pair.tokens[side])) for pair in pairs]) for side in (0, 1)
    )
    lengths = torch.tensor([len(pair.tokens[0]) for pair in pairs])
    roles = {role: torch.tensor([pair.roles[role] for pair in pairs]) for role in pairs[0].roles}
    return PromptPairs(
        task=task,
        corruption=corruption,
        base=base,
        donor=donor,
        lengths=lengths,
        right=tuple(pair.right for pair in pairs),
        wrong=tuple(pair.wrong for pair in pairs),
        donor_right=tuple(pair.donor_right for pair in pairs),
        roles={**roles, END: lengths - 1},
        wording=tuple(pair.wording for pair in pairs),
        order=tuple(pair.order for pair in pairs),
        texts=tuple(pair.texts for pair in pairs),
        left_out=tuple(left_out),
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as the start of a document: behind the separator, if the tokenizer has one."""
    first = separator(tokenizer)
    ids = encode_texts(list(texts), max(map(len, texts), default=0), tokenizer)
    return [[*([] if first is None else [first]), *document] for document in ids]


def continuations(tokenizer: PreTrainedTokenizerBase, text: str, answers: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids that each answer adds to those of ``text``; none where the two do not stand apart."""
    start, *whole = encode(tokenizer, [text, *(text + answer for answer in answers)])
    return [tuple(ids[len(start) :]) if ids[: len(start)] == start else () for ids in whole]


def single_token(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> dict[str, int]:
    """Those of ``words`` that are one token after a space, with its id."""
    # behind a word, because some tokenizers drop or add a space where a text begins
    spelled = zip(words, continuations(tokenizer, "a", [f" {word}" for word in words]), strict=True)
    return {word: ids[0] for word, ids in spelled if len(ids) == 1 and str(tokenizer.decode(list(ids))).strip() == word}
