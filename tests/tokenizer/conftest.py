"""Every kind of vocabulary that Ventoux reads, and the corpus that they are tried on."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from vocabularies import FILES, KINDS, MISTRAL, byte_fallback_json, byte_level_json, sentencepiece_metadata

from ventoux import gguf, tokenizer
from ventoux.checkpoint import pull
from ventoux.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def default_metadata() -> dict[str, Any]:
    """Metadata of the default model, which is fetched if it is not here yet."""
    return gguf.read(pull.resolve()).metadata


@pytest.fixture(scope="session")
def of_kind(tmp_path_factory: pytest.TempPathFactory, default_metadata: dict[str, Any]) -> Callable[[str], Tokenizer]:
    """A tokenizer by the name of its kind, made once."""
    root = tmp_path_factory.mktemp("tokenizers")

    @cache
    def make(kind: str) -> Tokenizer:
        if kind == "gguf-llama":
            return tokenizer.from_gguf(sentencepiece_metadata(MISTRAL / FILES["v1"]), source="v1.gguf")
        if kind == "gguf-smollm":
            return tokenizer.from_gguf(default_metadata, source="default")
        if kind == "json-bytes":
            return tokenizer.load(byte_level_json(default_metadata, root / "tokenizer.json"))
        if kind == "json-pieces":
            (root / "pieces").mkdir()
            metadata = sentencepiece_metadata(MISTRAL / FILES["v1"])
            return tokenizer.load(byte_fallback_json(metadata, root / "pieces" / "tokenizer.json"))
        return tokenizer.load(MISTRAL / FILES[kind])

    return make


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest, of_kind: Callable[[str], Tokenizer]) -> Tokenizer:
    return of_kind(request.param)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Whole files and their lines: languages, emoji, code, whitespace, and what should not be there."""
    files = sorted((Path(__file__).parent / "corpus").iterdir())
    texts = [file.read_bytes().decode() for file in files]
    return [*texts, *(line for text in texts for line in text.split("\n")), "", " ", "\n", "\0"]
