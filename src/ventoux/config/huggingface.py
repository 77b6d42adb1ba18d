"""transformers' config.json, in the spellings of versions 4 and 5."""

from collections.abc import Mapping
from typing import Any

from ventoux.config.keys import Keys, checked, head_dim
from ventoux.config.model import ModelConfig
from ventoux.errors import ConfigError, shown

# What transformers writes beside the model's shape: training, generation, classification, provenance.
HARMLESS = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_flash_attn_2_enabled",
        "_from_model_config",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    )
)


def from_huggingface(
    config: Mapping[str, Any],
    *,
    source: str,
    vocab_size: int | None = None,
    generation: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The model that a config.json of type mistral or llama describes; `source` names the file in errors.

    vocab_size stands in where the file has none. generation is generation_config.json, whose bos and eos ids go
    before config.json's, as they do in transformers. Raises ConfigError.
    """
    keys = Keys(config, source)
    model_type = keys.take("model_type")
    if model_type not in ("mistral", "llama"):
        keys.fail("model_type", f"expected 'mistral' or 'llama', found {shown(model_type)}")
    num_layers = keys.size("num_hidden_layers", "layers")
    num_heads = keys.size("num_attention_heads", "width")
    hidden_size = keys.size("hidden_size", "width")
    ends = Keys(generation or {}, f"{source}, generation_config.json")
    bos_ids, eos_ids = keys.token_ids("bos_token_id"), keys.token_ids("eos_token_id")
    bos_ids, eos_ids = ends.token_ids("bos_token_id") or bos_ids, ends.token_ids("eos_token_id") or eos_ids
    model = ModelConfig(
        vocab_size=keys.size("vocab_size", "vocabulary", default=vocab_size),
        hidden_size=hidden_size,
        intermediate_size=keys.size("intermediate_size", "width"),
        num_layers=num_layers,
        num_heads=num_heads,
        # transformers' defaults differ: a mistral without the key would have 8
        num_kv_heads=keys.size("num_key_value_heads", "width", default=num_heads if model_type == "llama" else None),
        head_dim=head_dim(keys, "head_dim", hidden_size=hidden_size, num_heads=num_heads),
        rms_norm_eps=keys.number("rms_norm_eps"),
        rope_theta=_theta(keys),
        context_length=keys.size("max_position_embeddings", "positions"),
        windows=_windows(keys, model_type, num_layers),
        tie_embeddings=keys.flag("tie_word_embeddings"),
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=eos_ids,
    )
    _refuse_other_models(keys)
    keys.finish(HARMLESS)
    return checked(model, source)


def _theta(keys: Keys) -> float:
    """rope_theta (version 4) or rope_parameters.rope_theta (version 5); 1e4 when neither is there, as transformers."""
    found = []
    if "rope_theta" in keys.left:
        found.append(keys.number("rope_theta"))
    for name in ("rope_parameters", "rope_scaling"):
        value = keys.take(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            keys.fail(name, f"expected an object or null, found a {type(value).__name__}")
        rope = Keys(value, f"{keys.source}: {name}")
        rope.must_be("rope_type", "default")
        rope.must_be("type", "default")
        rope.must_be("factor", 1, 1.0)
        if "rope_theta" in rope.left:
            found.append(rope.number("rope_theta"))
        rope.finish(())
    if len(set(found)) > 1:
        keys.fail("rope_theta", f"the file contradicts itself: {' and '.join(str(theta) for theta in found)}")
    return found[0] if found else 1e4


def _windows(keys: Keys, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """sliding_window for every layer, or for those that layer_types calls sliding."""
    if model_type == "mistral" and "sliding_window" not in keys.left:
        keys.fail("sliding_window", "it is missing; say null for no window, or the number of keys")
    window = keys.size("sliding_window", "positions") if keys.left.get("sliding_window") is not None else None
    keys.take("sliding_window")
    if model_type == "llama" and window is not None:
        keys.fail("sliding_window", "a model of type llama has none; if this is a Mistral, say model_type mistral")
    types = keys.take("layer_types")
    if types is None:
        return (window,) * num_layers
    if not isinstance(types, list) or len(types) != num_layers:
        keys.fail("layer_types", f"expected a list of {num_layers} names, one a layer")
    windows: list[int | None] = []
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            keys.fail("layer_types", f"expected full_attention or sliding_attention, found {shown(kind)}")
        if kind == "sliding_attention" and window is None:
            keys.fail("layer_types", "it names sliding layers, but sliding_window is null")
        windows.append(window if kind == "sliding_attention" else None)
    return tuple(windows)


def _refuse_other_models(keys: Keys) -> None:
    """Keys whose other values would make it a model that Ventoux does not compute."""
    keys.must_be("hidden_act", "silu")
    if keys.take("quantization_config") is not None:
        keys.fail("quantization_config", "checkpoints quantized by transformers are not read; use a GGUF file")
    keys.must_be("attention_bias", False)
    keys.must_be("mlp_bias", False)
    keys.must_be("rope_interleaved", False)
    for key in ("is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"):
        keys.must_be(key, False)
    keys.must_be("pruned_heads", {})
    architectures = keys.left.get("architectures") or ["MistralForCausalLM"]
    if architectures not in (["MistralForCausalLM"], ["LlamaForCausalLM"]):
        keys.fail("architectures", "expected MistralForCausalLM or LlamaForCausalLM: only language models are run")


def to_huggingface(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json of a model, of type mistral; `from_huggingface` gives the model back.

    dtype is what its weights are stored in: "float32", "float16" or "bfloat16". Raises ConfigError when the layers have
    several widths of windows, which config.json cannot say.
    """
    widths = {window for window in config.windows if window is not None}
    if len(widths) > 1:
        raise ConfigError(f"config.json holds one width of a sliding window, but the layers have {sorted(widths)}")
    described: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": next(iter(widths), None),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": _one_or_all(config.eos_ids),
        "torch_dtype": dtype,  # version 5 calls it dtype, and reads this too; version 4 reads only this
    }
    if widths and None in config.windows:
        kinds = {True: "full_attention", False: "sliding_attention"}
        described["layer_types"] = [kinds[window is None] for window in config.windows]
    return described


def to_generation(config: ModelConfig) -> dict[str, Any] | None:
    """The generation_config.json of a model, None when it has nothing to say."""
    if config.bos_id is None and not config.eos_ids:
        return None
    return {"bos_token_id": config.bos_id, "eos_token_id": _one_or_all(config.eos_ids)}


def _one_or_all(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)
