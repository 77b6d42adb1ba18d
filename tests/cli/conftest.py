"""A tiny Mistral with the real v1 vocabulary, and `ventoux` called as from a shell."""

import importlib.util
import io
import signal
import sys
from pathlib import Path

import pytest
import tiny

from ventoux import cli


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Programs inherit an ignored Ctrl-C, as a shell gives it to jobs in the background, but no handler of ours."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Hugging Face folder: random weights, window 4, tokenizer.model of Mistral 7B v0.1, so chat format v1."""
    path = tmp_path_factory.mktemp("mistral")
    tiny.save_hf(tiny.tiny_model(vocab_size=32000, hidden_size=32, intermediate_size=32), path)
    data = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0], "data")
    (path / "tokenizer.model").write_bytes((data / "tokenizer.model.v1").read_bytes())
    return path


@pytest.fixture
def ventoux(monkeypatch, capsys):
    """Run the command in this process -> (exit status, standard output, standard error)."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["ventoux", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call
