"""Descriptions that are written say what was read: for every model, in every spelling."""

import json
from dataclasses import replace

import gguf as ggml
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig

from ventoux import config
from ventoux.config import ModelConfig
from ventoux.errors import ConfigError

floats = st.floats(1e-8, 1e-2) | st.sampled_from([1e-5, 1e-6, 9.999999747378752e-06])
thetas = st.floats(1.0, 1e9) | st.sampled_from([1e4, 1e6])


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    kv_heads, layers = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    window = st.none() | st.integers(1, 1 << 20)
    one = draw(window)
    vocab = draw(st.integers(8, 200_000))
    ids = st.integers(0, vocab - 1)
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=draw(st.integers(1, 1 << 14)),
        intermediate_size=draw(st.integers(1, 1 << 16)),
        num_layers=layers,
        num_heads=kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 128)),
        rms_norm_eps=draw(floats),
        rope_theta=draw(thetas),
        context_length=draw(st.integers(1, 1 << 20) | st.just(32768)),
        windows=draw(st.lists(window, min_size=layers, max_size=layers).map(tuple) | st.just((one,) * layers)),
        tie_embeddings=draw(st.booleans()),
        bos_id=draw(st.none() | ids),
        eos_ids=tuple(draw(st.lists(ids, unique=True, max_size=3))),
    )


@given(model=models())
def test_params_say_what_they_said(model: ModelConfig) -> None:
    written = json.loads(json.dumps(config.to_params(model)))
    assert config.from_params(written, source="x") == replace(model, bos_id=None, eos_ids=())


@given(model=models())
def test_config_json_says_what_it_said(model: ModelConfig) -> None:
    if len(set(model.windows) - {None}) > 1:
        with pytest.raises(ConfigError, match="one width of a sliding window"):
            config.to_huggingface(model, dtype="float32")
        return
    written = json.loads(json.dumps(config.to_huggingface(model, dtype="float32")))
    assert config.from_huggingface(written, source="x") == model
    generation = config.to_generation(model)
    assert (generation is None) == (model.bos_id is None and not model.eos_ids)
    bare = written | {"bos_token_id": None, "eos_token_id": None}
    assert config.from_huggingface(bare, source="x", generation=generation) == model


@given(model=models())
def test_gguf_metadata_say_what_they_said_in_float32(model: ModelConfig) -> None:
    if len(set(model.windows)) > 1:
        with pytest.raises(ConfigError, match="one sliding window for all layers"):
            config.to_gguf(model)
        return
    described = {"general.architecture": "llama"} | config.to_gguf(model)
    stored = {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in described.items()}
    found = config.from_gguf(stored, source="x", vocab_size=model.vocab_size, tie_embeddings=model.tie_embeddings)
    assert (np.float32(found.rms_norm_eps), np.float32(found.rope_theta)) == (
        np.float32(model.rms_norm_eps),
        np.float32(model.rope_theta),
    )
    assert replace(found, rms_norm_eps=model.rms_norm_eps, rope_theta=model.rope_theta) == model


@pytest.mark.parametrize("number", [1e-5, 1e-6, 1e4, 1e6, 5e5, 0.1])
def test_decimals_survive_float32(number: float) -> None:
    model = config.from_params(
        {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8, "norm_eps": 1e-5, "vocab_size": 9}, source="x"
    )
    described = {"general.architecture": "llama"} | config.to_gguf(replace(model, rope_theta=number))
    described["llama.rope.freq_base"] = float(np.float32(number))
    assert config.from_gguf(described, source="x", vocab_size=9).rope_theta == number


def test_transformers_understands_our_config_json() -> None:
    params = {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "hidden_dim": 96,
        "norm_eps": 1e-5,
        "vocab_size": 96,
    }
    for more in ({}, {"sliding_window": 4, "rope_theta": 500.0}):
        model = config.from_params(params | more, source="x")
        theirs = MistralConfig.from_dict(config.to_huggingface(model, dtype="bfloat16"))
        assert theirs.sliding_window == model.window
        assert theirs.rope_parameters["rope_theta"] == model.rope_theta
        assert (theirs.head_dim, theirs.rms_norm_eps, theirs.num_key_value_heads) == (16, 1e-5, 2)
        assert config.from_huggingface(theirs.to_dict(), source="x") == model


def test_the_keys_of_gguf_are_ggmls() -> None:
    known = {
        getattr(group, name).replace("{arch}", "llama")
        for group in (ggml.Keys.LLM, ggml.Keys.Attention, ggml.Keys.Rope, ggml.Keys.Tokenizer)
        for name in vars(group)
        if isinstance(getattr(group, name), str)
    }
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "norm_eps": 1e-5, "vocab_size": 96}
    model = replace(config.from_params(params | {"sliding_window": 4}, source="x"), bos_id=1, eos_ids=(2, 3, 4))
    assert config.to_gguf(model).keys() <= known
