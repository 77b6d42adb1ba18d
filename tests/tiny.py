"""Tiny random Mistrals, written in all the layouts that real ones come in.

The weights are scaled so that the logits are worth comparing: spread over a few units, different at every position.
Everything here is made with the formats' own libraries (transformers, torch, safetensors, gguf), so that a reader
that agrees with these files agrees with the world.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import MistralConfig, MistralForCausalLM

RAW_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "model.": "",
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}
# tensors that mistral's and llama's model-parallel files split by their columns; the others are split by rows
SPLIT_BY_COLUMNS = ("tok_embeddings", "attention.wo", "feed_forward.w2")


def tiny_config(**overrides: Any) -> MistralConfig:
    """Two layers, 64 wide, 4 heads over 2, window 4, unless told otherwise. Sizes are multiples of a block (32)."""
    settings: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return MistralConfig(**settings | overrides)


def tiny_model(seed: int = 0, **overrides: Any) -> MistralForCausalLM:
    """A model in fp32 with eager attention, which masks by the window exactly; the oracle of logits."""
    config = tiny_config(**overrides)
    config._attn_implementation = "eager"
    model = MistralForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)  # attention that looks at something
    return model


def logits(model: MistralForCausalLM, ids: list[int]) -> np.ndarray:
    """[len(ids), vocab] float32, without a cache."""
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return found


def save_hf(
    model: MistralForCausalLM, folder: Path, *, shards: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """config.json and model.safetensors, or several of them with an index."""
    model.to(dtype).save_pretrained(folder, max_shard_size="4KB" if shards else "1GB")
    model.float()
    return folder


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """q or k rows from Hugging Face's halves to the pairs of raw and GGUF files (llama.cpp's permute)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def renamed(model: MistralForCausalLM, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The model's weights with q and k interleaved, under other names; tied logits are left out."""
    config = model.config
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name:
            weight = interleaved(weight, config.num_attention_heads)
        elif "k_proj" in name:
            weight = interleaved(weight, config.num_key_value_heads)
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = weight
    return weights


def raw_params(config: MistralConfig) -> dict[str, Any]:
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    if config.sliding_window is not None:
        params["sliding_window"] = config.sliding_window
    if config.tie_word_embeddings:
        params["tied_embeddings"] = True
    return params


def save_raw(
    model: MistralForCausalLM,
    folder: Path,
    *,
    safetensors: bool = False,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """params.json and consolidated.NN.pth (or .safetensors), split over `shards` files as model parallelism does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(raw_params(model.config)))
    weights = {name: weight.to(dtype) for name, weight in renamed(model, RAW_NAMES).items()}
    for shard in range(shards):
        part = {name: _part(name, weight, shard, shards) for name, weight in weights.items()}
        if safetensors:
            name = "consolidated.safetensors" if shards == 1 else f"consolidated.{shard:02d}.safetensors"
            save_file(part, folder / name)
        else:
            torch.save(part, folder / f"consolidated.{shard:02d}.pth")
    return folder


def _part(name: str, weight: torch.Tensor, shard: int, shards: int) -> torch.Tensor:
    if weight.dim() == 1:
        return weight
    by_columns = any(piece in name for piece in SPLIT_BY_COLUMNS)
    return weight.chunk(shards, dim=1 if by_columns else 0)[shard].clone()


def save_gguf(model: MistralForCausalLM, path: Path, *, format: str = "F32", seed: int = 0) -> Path:
    """A GGUF file of architecture llama, its matrices in `format`; K-quants are random blocks, not the weights."""
    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rng = np.random.default_rng(seed)
    for name, weight in renamed(model, GGUF_NAMES).items():
        if weight.dim() == 1:
            writer.add_tensor(name, weight.numpy())
            continue
        kind = gguf.GGMLQuantizationType[format]
        packed = (
            random_blocks(rng, *weight.shape, format=format)
            if format.endswith("_K")
            else gguf.quants.quantize(weight.numpy(), kind)
        )
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(rng: np.random.Generator, rows: int, columns: int, *, format: str) -> np.ndarray:
    """Random packed weights uint8 [rows, bytes of a row] of any block format, with finite and small scales.

    Every byte is random but the fp16 scales, which are set so that the weights are about as large as a model's.
    """
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    assert columns % block == 0, f"{columns} columns are not a multiple of {format}'s block of {block}"
    blocks = rng.integers(0, 256, (rows * columns // block, nbytes), np.uint8)
    largest = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q4_K": 63 * 15, "Q5_K": 63 * 31}
    top = largest.get(format, 128 * 32)  # Q6_K
    scale = rng.uniform(0.5, 1.0, (len(blocks), 1)) * 2 / top / columns**0.5

    def put(column: int, value: np.ndarray) -> None:
        blocks[:, column : column + 2] = value.astype("<f2").view(np.uint8)

    if format == "Q6_K":
        put(208, scale)  # 128 ql, 64 qh, 16 scales, then d
    else:
        put(0, scale)
    if format in ("Q4_1", "Q5_1"):
        put(2, -scale * top / 2)  # the minimum, so that weights are centred
    elif format in ("Q4_K", "Q5_K"):
        put(2, scale * (15 if format == "Q4_K" else 31) / 2)
    return blocks.reshape(rows, columns // block * nbytes)
