"""A model folder as a user would have one: tiny weights and the tiny tokenizer, saved side by side."""

from pathlib import Path

from helpers.tiny import tiny_hf
from helpers.tiny_texts import make_tokenizer


def tiny_folder(folder: Path, architecture: str = "gpt_neox") -> Path:
    """Save a 3-layer model of width 32 with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    tiny_hf(architecture, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
