"""A tokenizer like Llama 2's: `▁` for spaces, a space before every text, and bytes for what has no piece."""

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

WORDS = ("▁the", "▁was", "▁cat", "ing")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """`<unk>`, `<s>`, `</s>`, 256 bytes, printable ASCII, runs of spaces, and what merges to :data:`WORDS`."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [chr(c) for c in range(0x21, 0x7F)] + ["▁", "▁▁", "▁▁▁▁", "é"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "s")]
    names.append("▁s")
    for word in WORDS:
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            names.append(word[: end + 1])
    names = list(dict.fromkeys(names))
    vocabulary = {name: number for number, name in enumerate(names)}
    model = models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # pyright: ignore
    backend.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
