"""params.json and GGUF metadata."""

from typing import Any

import pytest

from ventoux import config
from ventoux.errors import ConfigError

# params.json of v0.1, key by key
PARAMS = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
# what llama.cpp's converter writes for a Mistral
METADATA = {
    "general.architecture": "llama",
    "general.name": "mistral",
    "general.file_type": 2,
    "llama.context_length": 32768,
    "llama.embedding_length": 4096,
    "llama.block_count": 32,
    "llama.feed_forward_length": 14336,
    "llama.rope.dimension_count": 128,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 9,
    "tokenizer.ggml.something": [1],
    "quantize.imatrix.file": "x.dat",
}


def raw(values: dict[str, Any], **more: Any) -> config.ModelConfig:
    return config.from_params(values, source="params.json", **more)


def gguf(values: dict[str, Any], **more: Any) -> config.ModelConfig:
    return config.from_gguf(values, source="m.gguf", **{"vocab_size": 32000} | more)


def test_three_descriptions_of_one_model_agree() -> None:
    ours = raw(PARAMS)
    assert (ours.vocab_size, ours.hidden_size, ours.intermediate_size) == (32000, 4096, 14336)
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads, ours.head_dim) == (32, 32, 8, 128)
    assert (ours.bos_id, ours.eos_ids) == (None, ())  # the tokenizer knows them
    packed = gguf(METADATA).with_window(4096)
    for field in ("hidden_size", "intermediate_size", "num_kv_heads", "head_dim", "rope_theta", "windows"):
        assert getattr(packed, field) == getattr(ours, field)
    assert packed.rms_norm_eps == pytest.approx(ours.rms_norm_eps, rel=1e-6)
    assert (packed.bos_id, packed.eos_ids) == (1, (2, 9))


def test_raw_theta_follows_the_window_when_the_file_is_silent() -> None:
    without = {key: value for key, value in PARAMS.items() if key != "sliding_window"}
    assert raw(PARAMS).rope_theta == 1e4
    assert raw(without).rope_theta == 1e6
    assert raw(without | {"sliding_window": None}).rope_theta == 1e6
    assert raw(PARAMS | {"rope_theta": 5e5}).rope_theta == 5e5


def test_facts_15_raw_context_is_not_the_window() -> None:
    assert raw(PARAMS).context_length == 32768
    assert raw(PARAMS | {"max_seq_len": 65536}).context_length == 65536


def test_raw_windows_repeat_their_pattern() -> None:
    assert raw(PARAMS | {"sliding_window": [None, 8], "n_layers": 6}).windows == (None, 8) * 3
    by_underscore = {k: v for k, v in PARAMS.items() if k != "sliding_window"} | {"_sliding_window": 16}
    assert raw(by_underscore).windows == (16,) * 32


def test_raw_vocabulary_from_the_embedding_when_the_file_is_silent() -> None:
    without = {key: value for key, value in PARAMS.items() if key != "vocab_size"}
    assert raw(without, vocab_size=320).vocab_size == 320
    with pytest.raises(ConfigError, match=r"params\.json: vocab_size"):
        raw(without)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moe", {"num_experts": 8}),
        ("use_biases", True),
        ("rope_scaling", 2),
        ("vision_encoder", {}),
        ("yarn", {"factor": 2}),
        ("n_layers", None),
        ("n_layers", 1 << 40),
        ("dim", 0),
        ("norm_eps", "1e-5"),
        ("n_kv_heads", 7),
        ("sliding_window", "4096"),
        ("sliding_window", []),
        ("sliding_window", [4] * 5),
        ("sliding_window", -4),
        ("_sliding_window", 8),
        ("head_dim", None),
    ],
)
def test_raw_contradictions_name_file_and_key(key: str, value: Any) -> None:
    values = PARAMS | {key: value} | ({"dim": 4100} if key == "head_dim" else {})
    with pytest.raises(ConfigError, match=rf"params\.json.*({key.lstrip('_')}|key/value heads)"):
        raw(values)


def test_gguf_has_no_window_unless_it_says_so() -> None:
    assert gguf(METADATA).window is None
    assert gguf(METADATA | {"llama.attention.sliding_window": 4096}).window == 4096


def test_gguf_head_size_may_be_explicit() -> None:
    wide = METADATA | {"llama.embedding_length": 5120, "llama.attention.key_length": 128}
    assert gguf(wide | {"llama.attention.value_length": 128}).head_dim == 128
    with pytest.raises(ConfigError, match="value_length"):
        gguf(wide | {"llama.attention.value_length": 64})
    with pytest.raises(ConfigError, match="dimension_count"):
        gguf(METADATA | {"llama.rope.dimension_count": 64})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "mistral3"),
        ("general.architecture", None),
        ("general.type", "adapter"),
        ("split.count", 3),
        ("llama.expert_count", 8),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.attention.head_count", [32] * 32),
        ("llama.attention.head_count_kv", 3),
        ("llama.vocab_size", 32001),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("llama.logit_scale", 2.0),
        ("something.else", 1),
        ("tokenizer.ggml.eos_token_id", 50000),
    ],
)
def test_gguf_of_another_kind_names_file_and_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"m\.gguf.*({key}|key/value heads|50000)"):
        gguf(METADATA | {key: value})


def test_gguf_of_a_whole_split_or_without_scaling_is_fine() -> None:
    assert (
        gguf(METADATA | {"split.count": 0, "llama.rope.scaling.type": "none", "llama.expert_count": 0}).num_layers == 32
    )
    assert gguf(METADATA, tie_embeddings=True).tie_embeddings
