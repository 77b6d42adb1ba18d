"""One tiny model in every layout, written once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save_gguf, save_hf, save_raw, tiny_model
from transformers import MistralForCausalLM


@pytest.fixture(scope="session")
def model() -> MistralForCausalLM:
    return tiny_model(3, num_hidden_layers=2)


@pytest.fixture(scope="session")
def layouts(model: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the layout is called -> where it stands."""
    root = tmp_path_factory.mktemp("layouts")
    writers: dict[str, Callable[[Path], Path]] = {
        "hf": lambda path: save_hf(model, path),
        "hf-shards": lambda path: save_hf(model, path, shards=True),
        "raw": lambda path: save_raw(model, path),
        "raw-2": lambda path: save_raw(model, path, shards=2),
        "raw-safetensors": lambda path: save_raw(model, path, safetensors=True),
        "raw-safetensors-2": lambda path: save_raw(model, path, safetensors=True, shards=2),
        "gguf": lambda path: save_gguf(model, path.with_suffix(".gguf")),
    }
    return {name: write(root / name) for name, write in writers.items()}
