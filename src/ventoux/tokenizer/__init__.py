"""Text <-> ids, from any file that a vocabulary comes in.

tokenizer = ventoux.tokenizer.load("mistral-7B-v0.1")
tokenizer.encode("<s>[INST]")  # text, never control tokens: those come from the chat room alone
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ventoux.errors import TokenizerError
from ventoux.tokenizer.base import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "choose", "from_gguf", "is_file_name", "load"]

_SENTENCEPIECE = re.compile(r".*\.model(\.v\d+(m\d+)?)?")


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file (tokenizer.model, .model.v3, tokenizer.json, tekken.json, .gguf) or in a folder.

    Raises TokenizerError when there is none, or when it is damaged.
    """
    path = Path(path)
    try:
        file = choose(path) if path.is_dir() else path
        if file is None:
            raise TokenizerError(
                f"{path}: expected a tokenizer (tokenizer.model, tokenizer.json or tekken.json), found none; the one in"
                " a .gguf file is read when you name that file"
            )
        if not file.is_file():
            raise TokenizerError(f"{path}: expected a tokenizer file, found none; check the path")
        return _load_file(file)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror or error}") from error


def choose(folder: Path) -> Path | None:
    """The one rule for folders: which of their files is the tokenizer, None when there is none. The first there of:

    1. tekken.json, or tekken_*.json
    2. *.model.vN, the highest version: Mistral's own, with the version in its name
    3. tokenizer.model, unless a tokenizer.json beside it adds tokens (as fine-tunes do, for ChatML)
    4. tokenizer.json
    """
    files = sorted(p for p in folder.iterdir() if p.is_file())
    tekken = [p for p in files if p.name.startswith("tekken") and p.suffix == ".json"]
    versioned = [p for p in files if ".model.v" in p.name and _SENTENCEPIECE.fullmatch(p.name)]
    model, converted = folder / "tokenizer.model", folder / "tokenizer.json"
    if tekken:
        return tekken[0]
    if versioned:
        return max(versioned, key=_version_number)
    if model in files and not (converted in files and _adds_tokens(converted)):
        return model
    return converted if converted in files else None


def is_file_name(name: str) -> bool:
    """Whether a file of this name is a tokenizer: tokenizer.model, x.model.v3, tokenizer.json, tekken.json."""
    tekken = name.startswith("tekken") and name.endswith(".json")
    return tekken or name == "tokenizer.json" or _SENTENCEPIECE.fullmatch(name) is not None


def from_gguf(metadata: Mapping[str, Any], *, source: str | Path) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file that is open already; `source` names it in errors."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        from ventoux.tokenizer import sentencepiece

        return sentencepiece.from_gguf(metadata, source)
    if kind == "gpt2":
        from ventoux.tokenizer import bytelevel

        return bytelevel.from_gguf(metadata, source)
    found = "no tokenizer" if kind is None else repr(kind)
    raise TokenizerError(f"{source}: tokenizer.ggml.model: expected 'llama' or 'gpt2', found {found}")


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".gguf":
        from ventoux import gguf

        return from_gguf(gguf.read(path).metadata, source=path)
    if path.suffix == ".json" and "tekken" in path.name:
        from ventoux.tokenizer import tekken

        return tekken.load_tekken(path)
    if path.suffix == ".json":
        from ventoux.tokenizer import huggingface

        return huggingface.load_json(path)
    if _SENTENCEPIECE.fullmatch(path.name):
        from ventoux.tokenizer import sentencepiece

        return sentencepiece.load_model(path)
    raise TokenizerError(
        f"{path}: expected tokenizer.model, tokenizer.json, tekken.json or a .gguf file, found {path.name}"
    )


def _version_number(path: Path) -> int:
    return int(re.findall(r"\.v(\d+)", path.name)[-1])


def _adds_tokens(path: Path) -> bool:
    """Whether a tokenizer.json has added tokens behind the vocabulary: sentencepiece's own stand at its beginning."""
    try:
        data = json.loads(path.read_bytes())
        return any(token["id"] >= len(data["model"]["vocab"]) for token in data["added_tokens"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
