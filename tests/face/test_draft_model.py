"""`ventoux.load(draft_model=...)`: the same texts, and only models that mean the same by an id."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny

import ventoux
from ventoux import CheckpointError, RequestError

SIZE = {"hidden_size": 32, "intermediate_size": 32, "sliding_window": 300}


def folder(path: Path, tokenizer: str | None, *, seed: int = 0, **settings: Any) -> Path:
    """A tiny model with one of Mistral's own tokenizers."""
    tiny.save_hf(tiny.tiny_model(seed, **{"vocab_size": 32768, **SIZE, **settings}), path)
    if tokenizer:
        package = find_spec("mistral_common")
        assert package is not None
        assert package.origin is not None
        shutil.copy(Path(package.origin).parent / "data" / tokenizer, path / "tokenizer.model")
    return path


V2, V3 = "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("model"), V3)


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_texts_are_the_same_and_guesses_are_told(model: Path, tmp_path: Path, layout: str) -> None:
    """The model drafts for itself, in its own layout and in another, and so is right."""
    draft = model
    if layout == "gguf":
        draft = tmp_path / "draft.gguf"
        ventoux.convert(model, draft, to="gguf")
    assisted, alone = ventoux.load(model, draft_model=draft), ventoux.load(model)
    for params in ({"temperature": 0}, {"temperature": 1.0, "seed": 5, "logprobs": 1}):
        settings: dict[str, Any] = {**params, "max_tokens": 200, "ignore_eos": True}
        found, expected = (each.generate("Hello", **settings) for each in (assisted, alone))
        assert (found, found.ids, found.logprobs) == (expected, expected.ids, expected.logprobs)
        assert found.guesses.right <= found.guesses.checked
    many = assisted.generate(["one", "two"], max_tokens=40, seed=1)
    assert many == alone.generate(["one", "two"], max_tokens=40, seed=1)


def test_another_size_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has 32000 tokens instead of 32768; use a smaller model of the same"):
        ventoux.load(model, draft_model=folder(tmp_path, None, vocab_size=32000))


def test_another_token_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its token \d+ is .* instead of .*; use a smaller model of the same"):
        ventoux.load(model, draft_model=folder(tmp_path, V2))


def test_a_draft_without_a_tokenizer_is_refused_unless_the_model_has_none_either(model: Path, tmp_path: Path) -> None:
    ids = folder(tmp_path / "ids", None)
    with pytest.raises(CheckpointError, match="the draft has no tokenizer to compare by"):
        ventoux.load(model, draft_model=ids)
    with pytest.raises(CheckpointError, match="the model has no tokenizer to compare by"):
        ventoux.load(ids, draft_model=model)
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    found, expected = (ventoux.load(ids, draft_model=draft).generate([1, 5], **settings) for draft in (ids, None))
    assert found.ids == expected.ids


@pytest.mark.parametrize("settings", [{"backend": "pytorch"}, {"speculation": False}])
def test_a_draft_that_nobody_would_ask_is_refused(model: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="draft_model needs the cpu backend and speculation"):
        ventoux.load(model, draft_model=model, **settings)


def test_a_draft_that_is_not_there_is_named(model: Path) -> None:
    with pytest.raises(ventoux.VentouxError, match="no-such-draft"):
        ventoux.load(model, draft_model="no-such-draft")
