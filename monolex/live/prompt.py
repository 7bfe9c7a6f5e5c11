"""A prompt as exact token ids, with the texts of its tokens."""

from dataclasses import dataclass

from monolex.model.language_model import LanguageModel
from monolex.text.characters import joined
from monolex.text.encode import special_ids
from monolex.text.separator import separator


@dataclass(frozen=True)
class LivePrompt:
    """Tokens that a model is given."""

    ids: tuple[int, ...]
    """Token ids, the separator included; never empty."""
    texts: tuple[str, ...]
    r"""Of every token alone; a part of a character is its bytes, ``\xe5``, as :mod:`monolex.text.characters` has it."""
    special: tuple[bool, ...]
    """Which tokens are special ones, the separator among them."""
    generated: tuple[bool, ...]
    """Which tokens the model has generated itself."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it, a sentence each."""

    @property
    def length(self) -> int:
        """Tokens before the model's last answer: without those at the end that it has generated; at least one."""
        return next(at for at in range(len(self.ids), 0, -1) if at == 1 or not self.generated[at - 1])

    @property
    def text(self) -> str:
        """What all tokens are together."""
        return joined(self.texts)


def special_tokens(lm: LanguageModel) -> set[int]:
    """Special tokens of a model's tokenizer, the separator among them; none without a tokenizer."""
    if lm.tokenizer is None:
        return set()
    lead = separator(lm.tokenizer)
    return special_ids(lm.tokenizer) | ({lead} if lead is not None else set())
