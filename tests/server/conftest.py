"""Models small enough for a test, behind servers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from served import Served, served
from tiny import save_hf, tiny_model
from tiny_tokenizer import VOCAB, tiny_tokenizer
from vocabularies import FILES, MISTRAL

import ventoux
from ventoux.model import Mistral

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral that reads and writes text, window 16, random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    save_hf(tiny_model(vocab_size=VOCAB, sliding_window=16), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Mistral:
    return ventoux.load(tiny_folder, threads=2)


@pytest.fixture(scope="session")
def tiny_wide(tmp_path_factory: pytest.TempPathFactory) -> Mistral:
    """One without a window, so that all that it has read stays in its cache."""
    folder = tmp_path_factory.mktemp("wide")
    save_hf(tiny_model(vocab_size=VOCAB, sliding_window=None), folder)
    tiny_tokenizer().save_pretrained(folder)
    return ventoux.load(folder, threads=2)


@pytest.fixture(scope="session")
def mistral_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Random weights with Mistral's tokenizer v3, which has tools and what fills in the middle."""
    folder = tmp_path_factory.mktemp("v3")
    save_hf(tiny_model(vocab_size=32768, max_position_embeddings=2048), folder)
    (folder / "tokenizer.model").write_bytes((MISTRAL / FILES["v3"]).read_bytes())
    model = ventoux.load(folder, threads=2)
    with served(lambda: model) as found:
        yield found


@pytest.fixture(scope="session")
def server(tiny: Mistral) -> Iterator[Served]:
    """One that all tests share which change nothing of it."""
    with served(lambda: tiny) as found:
        yield found


@pytest.fixture(scope="session")
def default(default_model: Path) -> Mistral:
    return ventoux.load(default_model, threads=2)


@pytest.fixture(scope="session")
def default_server(default: Mistral) -> Iterator[Served]:
    with served(lambda: default, aliases=("default",)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Headless Chromium, Debian's or another's; for a module, since Playwright's loop would be in others' way."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (program := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip(f"needs one of {', '.join(names)} on PATH")
    with sync_api.sync_playwright() as playwright:
        # No sandbox: in containers it cannot be had, and what is shown is ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose answers may take seconds: 32k tokens of context, so that what interrupts comes into their middle."""
    folder = tmp_path_factory.mktemp("long")
    save_hf(tiny_model(vocab_size=VOCAB, sliding_window=16, max_position_embeddings=32768), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
