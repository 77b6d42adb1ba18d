"""The one table of names, and the one permutation.

Inside Ventoux a weight has Hugging Face's name without the `model.` prefix. The table says what raw files and GGUF
call it, and its shape in letters: V vocabulary, E width, F the MLP's width, Q rows of all queries, K of all keys.
"""

import numpy as np
from numpy.typing import NDArray

from ventoux.config import ModelConfig

# ours, raw, GGUF, shape
MODEL = (
    ("embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight", "VE"),
    ("norm.weight", "norm.weight", "output_norm.weight", "E"),
)
HEAD = ("lm_head.weight", "output.weight", "output.weight", "VE")  # absent when the embeddings are tied
LAYER = (
    ("input_layernorm.weight", "attention_norm.weight", "attn_norm.weight", "E"),
    ("self_attn.q_proj.weight", "attention.wq.weight", "attn_q.weight", "QE"),
    ("self_attn.k_proj.weight", "attention.wk.weight", "attn_k.weight", "KE"),
    ("self_attn.v_proj.weight", "attention.wv.weight", "attn_v.weight", "KE"),
    ("self_attn.o_proj.weight", "attention.wo.weight", "attn_output.weight", "EQ"),
    ("post_attention_layernorm.weight", "ffn_norm.weight", "ffn_norm.weight", "E"),
    ("mlp.gate_proj.weight", "feed_forward.w1.weight", "ffn_gate.weight", "FE"),
    ("mlp.up_proj.weight", "feed_forward.w3.weight", "ffn_up.weight", "FE"),
    ("mlp.down_proj.weight", "feed_forward.w2.weight", "ffn_down.weight", "EF"),
)
# buffers that old converters saved beside the weights; they follow from the config
DERIVED = ("rotary_emb.inv_freq", "rope.freqs")


def table(config: ModelConfig, kind: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor's name in files of a kind ("raw", "huggingface", "gguf") -> our name and its shape.

    table(config, "gguf")["blk.0.attn_q.weight"] == ("layers.0.self_attn.q_proj.weight", (4096, 4096))
    """
    sizes = {
        "V": config.vocab_size,
        "E": config.hidden_size,
        "F": config.intermediate_size,
        "Q": config.num_heads * config.head_dim,
        "K": config.num_kv_heads * config.head_dim,
    }
    rows = list(MODEL if config.tie_embeddings else (*MODEL, HEAD))
    for layer in range(config.num_layers):
        for ours, raw, gguf, shape in LAYER:
            rows.append((f"layers.{layer}.{ours}", f"layers.{layer}.{raw}", f"blk.{layer}.{gguf}", shape))
    names = {}
    for ours, raw, gguf, letters in rows:
        huggingface = ours if ours == HEAD[0] else f"model.{ours}"
        name = {"raw": raw, "gguf": gguf, "huggingface": huggingface}[kind]
        names[name] = ours, tuple(sizes[letter] for letter in letters)
    return names


def row_order(name: str, config: ModelConfig, kind: str) -> NDArray[np.int32] | None:
    """Where the rows of one of our tensors stand in files of this kind; None when they stand in order."""
    if kind == "huggingface":
        return None
    if name.endswith("self_attn.q_proj.weight"):
        return half_split_order(config.num_heads, config.head_dim)
    if name.endswith("self_attn.k_proj.weight"):
        return half_split_order(config.num_kv_heads, config.head_dim)
    return None


def half_split_order(heads: int, head_dim: int) -> NDArray[np.int32]:
    """Rows of an interleaved q or k in half-split order, int32 [heads * head_dim].

    Raw and GGUF files rotate the pairs (0, 1), (2, 3), ... of a head, Hugging Face (0, D/2), (1, D/2 + 1), ...
    2 heads of 4: interleaved rows 0 1 2 3 | 4 5 6 7 are wanted in the order 0 2 1 3 | 4 6 5 7: the first of each pair,
    then the second.
    """
    rows = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, head_dim // 2, 2)
    return rows.transpose(0, 2, 1).reshape(-1)
