"""Tokenizers whose tokens are whole words."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monolex.causal.prompts import wordings


def by_words(cut: str, vocabulary: str, separator: bool = True) -> PreTrainedTokenizerFast:
    """Words apart, and cut as the regular expression says."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(cut), "isolated")]  # pyright: ignore
    )
    words = ["<s>", "?", *sorted({word for word, _ in splitter.pre_tokenize_str(vocabulary)})]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if separator else None)


def year_words(cut: str, separator: bool = True) -> PreTrainedTokenizerFast:
    """Every word of the "Greater-than" task, and years cut as the regular expression says."""
    sentences = " ".join(wordings.LASTED).replace("{n}", " ").replace("{y}", " ")
    years = " ".join(f"{year} {year // 100} {year % 100:02}" for year in range(1100, 1900))
    return by_words(cut, f"a {sentences} {' '.join(wordings.EVENTS)} {years}", separator)
