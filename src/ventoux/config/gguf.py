"""The metadata of a GGUF file of architecture llama, which is what Mistral's are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ventoux.config.keys import Keys, checked, head_dim
from ventoux.config.model import ModelConfig
from ventoux.errors import ConfigError, shown

# About the file, its maker or its vocabulary: nothing here changes what the model computes.
HARMLESS_PREFIXES = ("general.", "tokenizer.", "quantize.imatrix.", "split.")
HARMLESS = frozenset(
    {
        "llama.tensor_data_layout",
        "llama.rope.scaling.finetuned",
        "llama.rope.scaling.original_context_length",  # counts only with a scaling type, which is refused
    }
)
ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def from_gguf(
    metadata: Mapping[str, Any], *, source: str, vocab_size: int, tie_embeddings: bool = False
) -> ModelConfig:
    """The model that a GGUF file's metadata describe; `source` names the file in errors.

    vocab_size is the rows of the file's embedding, tie_embeddings whether the file has no `output.weight`. The window
    is llama.attention.sliding_window where the file has it, which those of architecture llama rarely do: None then,
    and the user's to give. Raises ConfigError.
    """
    _refuse_other_files(metadata, source)
    keys = Keys({k: v for k, v in metadata.items() if k in ENDS or not k.startswith(HARMLESS_PREFIXES)}, source)
    keys.left["tokenizer.ggml.bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    num_layers = keys.size("llama.block_count", "layers")
    num_heads = keys.size("llama.attention.head_count", "width")
    hidden_size = keys.size("llama.embedding_length", "width")
    size = head_dim(keys, "llama.attention.key_length", hidden_size=hidden_size, num_heads=num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (other := keys.size(key, "width", default=size)) != size:
            keys.fail(key, f"expected the size of a head, {size}, found {other}")
    if (stated := keys.size("llama.vocab_size", "vocabulary", default=vocab_size)) != vocab_size:
        keys.fail("llama.vocab_size", f"it says {stated}, but the embedding has {vocab_size} rows")
    window = None
    if "llama.attention.sliding_window" in keys.left:
        window = keys.size("llama.attention.sliding_window", "positions")
    bos_ids = keys.token_ids("tokenizer.ggml.bos_token_id")
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=keys.size("llama.feed_forward_length", "width"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.size("llama.attention.head_count_kv", "width", default=num_heads),
        head_dim=size,
        rms_norm_eps=keys.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("llama.rope.freq_base", default=1e4),  # llama.cpp's default
        context_length=keys.size("llama.context_length", "positions"),
        windows=(window,) * num_layers,
        tie_embeddings=tie_embeddings,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=tuple(dict.fromkeys(i for key in ENDS for i in keys.token_ids(key))),
    )
    keys.must_be("llama.expert_count", 0)
    keys.must_be("llama.expert_used_count", 0)
    keys.must_be("llama.attention.causal", True)
    keys.must_be("llama.rope.scaling.type", "none")
    for key in ("factor", "attn_factor"):
        keys.must_be(f"llama.rope.scaling.{key}", 1.0)
    keys.must_be("llama.rope.scale_linear", 1.0)
    keys.finish(HARMLESS)
    exact = replace(config, rms_norm_eps=_decimal(config.rms_norm_eps), rope_theta=_decimal(config.rope_theta))
    return checked(exact, source)


def to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The metadata that describe a model, as `from_gguf` reads them, which gives the model back.

    Whole numbers are meant as uint32, others as float32. llama.cpp knows no window in files of architecture llama and
    ignores the key; we read it. Three ids that end a text have keys, more have none. Raises ConfigError when the layers
    do not have one window.
    """
    if len(set(config.windows)) > 1:
        found = ", ".join(str(window) for window in config.windows[:8])
        raise ConfigError(f"a GGUF file has one sliding window for all layers, but they have {found}")
    described: dict[str, Any] = {
        "llama.block_count": config.num_layers,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.vocab_size": config.vocab_size,
    }
    if config.windows[0] is not None:
        described["llama.attention.sliding_window"] = config.windows[0]
    if config.bos_id is not None:
        described["tokenizer.ggml.bos_token_id"] = config.bos_id
    return described | dict(zip(ENDS, config.eos_ids, strict=False))


def _decimal(number: float) -> float:
    """What a float32 was before it became one: 9.999999747378752e-06 is the float32 of 1e-05."""
    short = float(str(np.float32(number)))
    return short if np.float32(number) == number else number


def _refuse_other_files(metadata: Mapping[str, Any], source: str) -> None:
    """Files that are no language model of this family, by the names of their kinds."""
    file = Keys(metadata, source)
    if (architecture := file.take("general.architecture")) != "llama":
        file.fail("general.architecture", f"expected 'llama' (Mistral's too), found {shown(architecture)}")
    file.must_be("general.type", "model")
    if file.take("split.count") not in (None, 0, 1):
        file.fail("split.count", "the model is split over several files; merge them with llama-gguf-split --merge")
