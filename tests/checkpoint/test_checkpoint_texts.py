"""Which files hold a checkpoint's tokenizer and chat template."""

import json
import shutil
from pathlib import Path

import pytest

from ventoux import checkpoint
from ventoux.errors import CheckpointError


@pytest.fixture
def folder(layouts: dict[str, Path], tmp_path: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(shutil.copytree(layouts["hf"], tmp_path / "hf"))


def test_the_most_exact_tokenizer_file_wins(folder: checkpoint.Checkpoint) -> None:
    assert checkpoint.tokenizer_file(folder) is None
    for name in ("tokenizer.json", "tekken.json", "tokenizer.model", "tokenizer.model.v2", "tokenizer.model.v11"):
        (folder.path / name).write_bytes(b"")
        assert checkpoint.tokenizer_file(folder) == folder.path / name
    (folder.path / "tokenizer.model.v3").write_bytes(b"")
    (folder.path / "tokenizer.model.vendor").write_bytes(b"")
    assert checkpoint.tokenizer_file(folder) == folder.path / "tokenizer.model.v11"
    (folder.path / "added_tokens.json").write_text("{}")
    assert checkpoint.tokenizer_file(folder) == folder.path / "tokenizer.json"


def test_a_gguf_without_a_vocabulary_has_no_tokenizer(layouts: dict[str, Path]) -> None:
    found = checkpoint.read(layouts["gguf"])
    assert checkpoint.tokenizer_file(found) is None
    assert checkpoint.chat_template(found) is None
    grown = checkpoint.Checkpoint(
        found.path,
        found.kind,
        found.config,
        found.tensors,
        found.metadata | {"tokenizer.ggml.tokens": [], "tokenizer.chat_template": "{{ x }}"},
    )
    assert checkpoint.tokenizer_file(grown) == found.path
    assert checkpoint.chat_template(grown) == "{{ x }}"


def test_the_template_of_a_folder(folder: checkpoint.Checkpoint) -> None:
    settings = folder.path / "tokenizer_config.json"
    assert checkpoint.chat_template(folder) is None
    for value, expected in (
        ("one", "one"),
        ([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ([{"name": "tool_use", "template": "a"}], None),
        (None, None),
        (7, None),
    ):
        settings.write_text(json.dumps({"chat_template": value}))
        assert checkpoint.chat_template(folder) == expected
    (folder.path / "chat_template.jinja").write_text("two 🌬", encoding="utf-8")
    assert checkpoint.chat_template(folder) == "two 🌬"
    (folder.path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        checkpoint.chat_template(folder)
