"""Tiny models to convert: one of weights alone, one with Mistral's v1 vocabulary."""

import shutil
from pathlib import Path

import pytest
from tiny import save_hf, save_raw, tiny_model
from transformers import MistralForCausalLM
from vocabularies import FILES, MISTRAL


@pytest.fixture(scope="session")
def model() -> MistralForCausalLM:
    return tiny_model(3)


@pytest.fixture(scope="session")
def raw(model: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mistral-src's layout in float32, window 4, without a tokenizer."""
    return save_raw(model, tmp_path_factory.mktemp("source") / "raw", safetensors=True)


@pytest.fixture(scope="session")
def hf(model: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(model, tmp_path_factory.mktemp("source") / "hf")


@pytest.fixture(scope="session")
def talker() -> MistralForCausalLM:
    return tiny_model(5, vocab_size=32000, sliding_window=64)


@pytest.fixture(scope="session")
def talking(talker: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with Mistral 7B v0.1's tokenizer.model, and a window that short prompts do not reach."""
    folder = save_raw(talker, tmp_path_factory.mktemp("source") / "talking", safetensors=True)
    shutil.copy(MISTRAL / FILES["v1"], folder / "tokenizer.model")
    return folder
