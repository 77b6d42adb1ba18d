"""config.json: transformers 4 and 5 spellings, and what is refused."""

import json
from typing import Any

import pytest
from tiny import tiny_config
from transformers import LlamaConfig

from ventoux import config
from ventoux.errors import ConfigError

# the shapes of the real files, in version 4's spelling
V01 = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
V03 = V01 | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768, "attention_dropout": 0.0}


def read(values: dict[str, Any], **more: Any) -> config.ModelConfig:
    return config.from_huggingface(values, source="somewhere/config.json", **more)


def test_version_4_spelling() -> None:
    model = read(V01)
    assert (model.vocab_size, model.hidden_size, model.intermediate_size) == (32000, 4096, 14336)
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == (32, 32, 8, 128)
    assert (model.rms_norm_eps, model.rope_theta, model.windows) == (1e-5, 1e4, (4096,) * 32)
    assert (model.bos_id, model.eos_ids, model.tie_embeddings) == (1, (2,), False)


def test_facts_15_the_context_is_not_clamped_to_the_window() -> None:
    assert read(V01).context_length == 32768


def test_facts_15_a_null_window_is_no_window() -> None:
    model = read(V03)
    assert model.window is None
    assert model.context_length == 32768
    assert model.rope_theta == 1e6


@pytest.mark.parametrize("window", [None, 4, 512])
def test_version_5_spelling_is_what_transformers_writes(window: int | None) -> None:
    theirs = tiny_config(sliding_window=window, tie_word_embeddings=True, num_key_value_heads=1)
    ours = read(json.loads(theirs.to_json_string()))
    assert ours.windows == (window, window)
    assert ours.tie_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == theirs.head_dim
    assert ours == read(json.loads(theirs.to_json_string(use_diff=False)))


def test_a_llama_has_no_window_and_its_own_defaults() -> None:
    theirs = LlamaConfig(num_hidden_layers=3, hidden_size=96, num_attention_heads=6)
    values = json.loads(theirs.to_json_string())
    for key in ("num_key_value_heads", "head_dim", "rope_parameters"):
        del values[key]
    ours = read(values)
    assert (ours.num_kv_heads, ours.head_dim, ours.rope_theta) == (6, 16, 1e4)
    assert ours.windows == (None, None, None)


def test_layer_types_give_each_layer_its_window() -> None:
    types = ["full_attention", *["sliding_attention"] * 3] * 8
    assert read(V01 | {"layer_types": types}).windows == (None, 4096, 4096, 4096) * 8
    assert read(V01 | {"layer_types": types}).window is None


def test_generation_config_says_where_an_answer_ends() -> None:
    model = read(V01, generation={"bos_token_id": 5, "eos_token_id": [2, 7, 2], "temperature": 0.3})
    assert (model.bos_id, model.eos_ids) == (5, (2, 7))
    assert read(V01, generation={}).eos_ids == (2,)
    assert read(V01 | {"eos_token_id": [4, 2]}).eos_ids == (4, 2)


def test_a_head_size_need_not_divide_the_width() -> None:
    assert read(V01 | {"hidden_size": 5120, "head_dim": 128}).head_dim == 128


REFUSED: list[tuple[str, Any]] = [
    ("auto_map", {"AutoModel": "evil.Model"}),
    ("something_new", 1),
    ("model_type", "mixtral"),
    ("architectures", ["MistralForSequenceClassification"]),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("quantization_config", {"quant_method": "gptq"}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "yarn"}),
    ("rope_scaling", [1]),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
    ("rope_parameters", {"rope_theta": 1e6}),  # rope_theta says 1e4
    ("rope_theta", float("nan")),
    ("rope_theta", -1.0),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", float("inf")),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", True),
    ("rms_norm_eps", 2.0),
    ("rms_norm_eps", None),
    ("hidden_size", True),
    ("hidden_size", 4096.0),
    ("hidden_size", "4096"),
    ("hidden_size", -4096),
    ("hidden_size", 10**30),
    ("hidden_size", 4100),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 0),
    ("num_attention_heads", None),
    ("num_key_value_heads", 5),
    ("num_key_value_heads", None),
    ("num_key_value_heads", 64),
    ("head_dim", 127),
    ("sliding_window", 0),
    ("sliding_window", -1),
    ("sliding_window", False),
    ("sliding_window", [4096]),
    ("layer_types", ["full_attention"]),
    ("layer_types", ["linear_attention"] * 32),
    ("layer_types", [["full_attention"]] * 32),
    ("tie_word_embeddings", 1),
    ("tie_word_embeddings", "yes"),
    ("eos_token_id", [1, "2"]),
    ("eos_token_id", -1),
    ("bos_token_id", True),
    ("vocab_size", 2),  # eos 2 would lie outside
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_would_be_another_model_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^somewhere/config\.json: ") as raised:
        read(V01 | {key: value})
    assert "\n" not in str(raised.value)
    # a contradiction is told of the keys together
    told = {
        "num_key_value_heads": "heads",
        "vocab_size": "vocabulary",
        "rope_parameters": "rope",
        "hidden_size": "width",
    }
    assert any(word in str(raised.value) for word in (key, told.get(key, key), "epsilon"))


def test_a_mistral_must_say_its_window() -> None:
    with pytest.raises(ConfigError, match="sliding_window"):
        read({key: value for key, value in V01.items() if key != "sliding_window"})
    with pytest.raises(ConfigError, match="sliding layers"):
        read(V03 | {"layer_types": ["sliding_attention"] * 32})
    with pytest.raises(ConfigError, match="model_type mistral"):
        read(V01 | {"model_type": "llama"})


def test_a_window_can_be_given() -> None:
    assert read(V03).with_window(7).windows == (7,) * 32
    assert read(V01).with_window(None).window is None
    with pytest.raises(ConfigError, match="from 1 to 1073741824, found 0"):
        read(V01).with_window(0)
