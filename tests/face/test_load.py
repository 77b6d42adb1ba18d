"""`ventoux.load` on tiny checkpoints with the real CPU backend: transformers is the oracle."""

import json
import resource
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import ventoux
from ventoux import ChatError, ConfigError, Mistral, OutOfMemoryError, PromptTooLongError, TokenizerError

MODEL = tiny.tiny_model(seed=1)  # window 4
IDS = [int(i) for i in np.random.default_rng(2).integers(3, 96, 40)]
LIMIT = resource.getrlimit(resource.RLIMIT_AS)
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("face")
    return {
        "hf": tiny.save_hf(MODEL, folder / "hf"),
        "raw": tiny.save_raw(MODEL, folder / "raw"),
        "gguf": tiny.save_gguf(MODEL, folder / "tiny.gguf"),
    }


def load(path: Path, **options: Any) -> Mistral:
    return ventoux.load(path, threads=1, **options)


def greedy(prompt: list[int], count: int) -> list[int]:
    """transformers' likeliest continuation, every step computed afresh, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(tiny.logits(MODEL, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("layout", ["hf", "raw", "gguf"])
def test_facts_17_every_layout_gives_the_oracles_logits(checkpoints: dict[str, Path], layout: str) -> None:
    model = load(checkpoints[layout], window=4 if layout == "gguf" else None)
    assert model.config.windows == (4, 4)
    np.testing.assert_allclose(model.logits(IDS), tiny.logits(MODEL, IDS), atol=1e-4)


def test_what_a_gguf_file_cannot_say_is_not_guessed(checkpoints: dict[str, Path]) -> None:
    assert load(checkpoints["gguf"]).config.windows == (None, None)
    assert load(str(checkpoints["hf"]), window=7).config.windows == (7, 7)


def test_a_window_can_be_taken_away(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["hf"], window="off")
    assert model.config.windows == (None, None)
    expected = tiny.logits(tiny.tiny_model(seed=1, sliding_window=None), IDS)
    np.testing.assert_allclose(model.logits(IDS), expected, atol=1e-4)
    for wrong in (0, -1, 2.5, True, 1 << 40, "on"):
        with pytest.raises(ConfigError, match=f"whole number of keys from 1 to 1073741824, found {wrong!r}"):
            load(checkpoints["hf"], window=wrong)


def test_a_sequence_that_memory_cannot_hold_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["hf"], tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 30}))
    model = load(folder, window=1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, LIMIT[1]))
    try:
        with pytest.raises(OutOfMemoryError, match="keys and values of 1073741824 positions"):
            model.generate(IDS[:3])
        assert len(model.generate(IDS[:3], max_tokens=2, ignore_eos=True).ids) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, LIMIT)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 30])
def test_facts_5_generation_past_the_window_is_the_run_without_a_cache(
    checkpoints: dict[str, Path], length: int
) -> None:
    model = load(checkpoints["hf"])
    assert model.generate(IDS[:length], max_tokens=20, **GREEDY).ids == greedy(IDS[:length], 20)


def test_a_ragged_batch_is_each_prompt_alone(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["raw"])
    prompts = [IDS[:1], IDS[5:35], IDS[10:14], IDS[20:22]]
    answers = model.generate(prompts, max_tokens=12, **GREEDY)
    assert [answer.ids for answer in answers] == [greedy(prompt, 12) for prompt in prompts]
    assert [answer.usage.prompt_tokens for answer in answers] == [1, 30, 4, 2]


def test_a_seed_is_one_answer_alone_and_in_a_batch(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["hf"])
    alone = model.generate(IDS[:6], seed=9, temperature=1.5, max_tokens=25).ids
    batch = model.generate([IDS[:3], IDS[:6], IDS[:9]], seed=9, temperature=1.5, max_tokens=25)
    assert batch[1].ids == alone


def test_facts_15_the_context_is_longer_than_the_window(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["hf"])
    assert len(model.generate([1] * 490, **GREEDY).ids) == 512 - 490
    with pytest.raises(PromptTooLongError, match="512"):
        model.generate([1] * 512, **GREEDY)


def test_a_checkpoint_without_a_tokenizer_loads(checkpoints: dict[str, Path]) -> None:
    for path in checkpoints.values():
        model = load(path)
        assert len(model.generate(IDS[:3], max_tokens=2, **GREEDY).ids) == 2
        with pytest.raises(TokenizerError, match="no tokenizer"):
            model.generate("text")


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the real tokenizer of Mistral 7B v0.1."""
    folder = tiny.save_hf(tiny.tiny_model(vocab_size=32000), tmp_path_factory.mktemp("text"))
    package = find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    shutil.copy(Path(package.origin).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    return folder


def test_text_gets_one_bos_and_an_answer_continues_it(with_text: Path) -> None:
    model = load(with_text)
    ids = model.tokenizer.encode("This is a test", bos=True)
    assert ids[0] == 1
    answer = model.generate("This is a test", max_tokens=12, **GREEDY)
    assert answer.usage.prompt_tokens == len(ids)
    assert model.tokenizer.decode(ids + answer.ids) == "This is a test" + answer
    events = list(model.stream("This is a test", max_tokens=12, **GREEDY))
    assert "".join(event.text for event in events) == answer


def test_chat_is_the_answer_to_the_encoded_conversation(with_text: Path) -> None:
    model = load(with_text)
    messages = [{"role": "user", "content": "Bonjour"}]
    ids = ventoux.chat.encode(messages, tokenizer=model.tokenizer, version="v1")
    assert model.chat_format.version == "v1"
    answer = model.chat(messages, max_tokens=8, **GREEDY)
    assert answer.ids == model.generate(ids, max_tokens=8, **GREEDY).ids
    assert answer == model.tokenizer.decode(answer.ids)
    guarded = model.chat(messages, safe_prompt=True, max_tokens=8, **GREEDY)
    assert guarded.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_chat_format_can_be_asked_for(with_text: Path) -> None:
    with pytest.raises(ChatError, match="v1, v2, v3"):
        load(with_text, chat_format="v0")
    assert load(with_text, chat_format="v1").chat_format.reason == "as asked for"
