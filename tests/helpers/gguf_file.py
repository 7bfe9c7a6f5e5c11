"""A GGUF file as llama.cpp's converter writes it of a tiny Llama and its tokenizer."""

import json
from pathlib import Path

import gguf
import numpy as np
from helpers.tiny_texts import make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(path: Path, model: PreTrainedModel, quantised: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Write ``model`` with the tiny tokenizer, which is returned; names that end in one of ``quantised`` as Q8_0."""
    shape, tokenizer = model.config, make_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(shape.rope_parameters["rope_theta"])
    writer.add_vocab_size(shape.vocab_size)
    _write_tokenizer(writer, tokenizer)
    tied = {"lm_head.weight"} if shape.tie_word_embeddings else set()
    for name, weights in ((name, w) for name, w in model.state_dict().items() if name not in tied):
        array = weights.float().numpy()
        for heads, part in ((shape.num_attention_heads, "q_proj"), (shape.num_key_value_heads, "k_proj")):
            if part in name:  # llama.cpp turns neighbouring dimensions, transformers halves of a head
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        kind = gguf.GGMLQuantizationType.Q8_0 if name.removesuffix(".weight").endswith(quantised) else None
        packed = array if kind is None or not quantised else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, np.ascontiguousarray(packed), raw_dtype=kind if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizer


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    stored = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_tokens) | {"</s>", "<|im_start|>", "<|im_end|>"}
    tokens = sorted(stored["vocab"], key=stored["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]])
    writer.add_bos_token_id(stored["vocab"]["<s>"])
    writer.add_eos_token_id(stored["vocab"]["</s>"])
