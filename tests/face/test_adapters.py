"""Adapters and embeddings on the Python face: chosen by each call, and what is refused."""

from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import ByteTokenizer
from transformers import MistralForCausalLM

import ventoux
from ventoux import CheckpointError, GenerationError, Mistral, PromptTooLongError, RequestError
from ventoux.engine.evaluation import batches

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 30}
MODEL = tiny.tiny_model(vocab_size=258, sliding_window=300, max_position_embeddings=600)
IDS = np.random.default_rng(0).integers(3, 258, 600).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("face")
    tiny.save_hf(MODEL, root / "base")
    for seed, name in enumerate("ab"):
        lora.save(MODEL, root / name, seed=seed)
    return {name: root / name for name in ("base", "a", "b")}


@pytest.fixture
def model(folders: dict[str, Path]) -> Mistral:
    loaded = ventoux.load(folders["base"], adapters={"a": folders["a"], "b": folders["b"]})
    return Mistral(loaded.backend, tokenizer=ByteTokenizer(), prefix_bytes=1 << 24)


def assert_greedy(oracle: MistralForCausalLM, prompt: list[int], answer: list[int]) -> None:
    """Each id of the answer is the oracle's likeliest after those before it."""
    assert len(answer) == GREEDY["max_tokens"]
    likeliest = tiny.logits(oracle, prompt + answer).argmax(-1)
    assert likeliest[len(prompt) - 1 : -1].tolist() == answer


def test_each_call_has_its_adapter_and_calls_share_steps(model: Mistral) -> None:
    """Streams that are read in turns run as one batch, and each is what its own model would say; guesses included."""
    prompts = {
        name: [7, 8, 9] * 15 for name in (None, "a", "b")
    }  # alike, and long enough to be shared by one adapter's
    streams = [model.stream(prompt, adapter=name, **GREEDY) for name, prompt in prompts.items()]
    answers = [[event.id for event in events if hasattr(event, "id")] for events in zip(*streams, strict=True)]
    for i, (name, prompt) in enumerate(prompts.items()):
        oracle = lora.adapted(MODEL, seed="ab".index(name)) if name else MODEL
        assert_greedy(oracle, prompt, answer := [row[i] for row in answers if row])
        again = model.generate(prompt, adapter=name, **GREEDY)
        assert again.ids == answer
        assert again.usage.cached_tokens == len(prompt) - 1
    assert [each.ids for each in model.generate([[7, 8], [9]], adapter="b", **GREEDY)] == [
        model.generate(prompt, adapter="b", **GREEDY).ids for prompt in ([7, 8], [9])
    ]


def test_adapters_come_and_go_while_others_run(model: Mistral, folders: dict[str, Path]) -> None:
    expected = model.generate([5, 6], adapter="a", **GREEDY).ids
    model.load_adapter("new", folders["a"])
    assert model.adapters == ("a", "b", "new")
    running = model.stream([5, 6], adapter="new", **GREEDY)
    first = next(running)
    with pytest.raises(RequestError, match=r"1 request\(s\) use the adapter 'new'; unload it when they have finished"):
        model.unload_adapter("new")
    model.unload_adapter("b")
    assert [each.id for each in (first, *running) if hasattr(each, "id")] == expected
    model.unload_adapter("new")
    for call in (model.generate, model.stream, model.embed):
        with pytest.raises(RequestError, match="there is no adapter 'new'; loaded are 'a'"):
            call([5, 6], adapter="new")
    with pytest.raises(RequestError, match="there is no adapter 'new'; loaded are 'a'"):
        model.unload_adapter("new")


def test_an_adapter_under_a_name_that_was_anothers_goes_on_from_nothing_of_it(
    model: Mistral, folders: dict[str, Path]
) -> None:
    prompt = IDS[:50]
    expected = {name: model.generate(prompt, adapter=name, **GREEDY).ids for name in ("a", "b")}
    for name in ("b", "a", "b"):
        model.unload_adapter("a")
        model.load_adapter("a", folders[name])
        assert model.generate(prompt, adapter="a", **GREEDY).ids == expected[name]
    assert expected["a"] != expected["b"]


def test_an_adapter_of_another_model_is_refused_before_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    base = tiny.save_hf(tiny.tiny_model(hidden_size=32), tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"expected shape \(32, 4\) .* found \(64, 4\); is the base another"):
        ventoux.load(base, adapters={"a": folders["a"]})
    with pytest.raises(CheckpointError, match="this is a LoRA adapter"):
        ventoux.load(folders["a"])
    with pytest.raises(CheckpointError, match="expected the path of a LoRA adapter's folder, found None"):
        ventoux.load(base, adapters={"a": None})  # type: ignore[dict-item]
    with pytest.raises(RequestError, match="adapters must be a dict from names to folders, found a list"):
        ventoux.load(base, adapters=["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpu", "pytorch"])
@pytest.mark.parametrize("adapter", [None, "a"])
def test_embeddings_are_means_of_hidden_states(folders: dict[str, Path], backend: Any, adapter: str | None) -> None:
    model = ventoux.load(folders["base"], backend=backend, adapters={"a": folders["a"]})
    texts = [IDS[:3], IDS[:1], IDS[:600], IDS[:520], IDS[5:60]]
    found = model.embed(texts, adapter=adapter)
    assert (found.shape, found.dtype) == ((5, 64), np.float32)
    oracle = lora.adapted(MODEL, seed=0).get_base_model() if adapter else MODEL
    for row, ids in zip(found, texts, strict=True):
        with torch.no_grad():
            states = oracle.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        np.testing.assert_allclose(row, states.mean(0).numpy(), atol=1e-4)
        if backend == "cpu":
            np.testing.assert_array_equal(model.embed(ids, adapter=adapter)[0], row)


def test_texts_are_embedded_with_their_bos_and_what_is_wrong_is_refused(model: Mistral) -> None:
    rows = model.embed(["abc", "d"])
    np.testing.assert_array_equal(rows, model.embed([[256, *b"abc"], [256, *b"d"]]))
    np.testing.assert_array_equal(rows[:1], model.embed("abc"))
    with pytest.raises(PromptTooLongError, match="the prompt has 601 tokens, but the context holds 600"):
        model.embed([[3], [3] * 601])
    for wrong in ([], [[3], []], [[258]], ["a", 3]):
        with pytest.raises(RequestError):
            model.embed(wrong)  # type: ignore[arg-type]
    assert model.embed([[3] * 600]).shape == (1, 64)


def test_embeddings_that_are_not_numbers_are_an_error(tmp_path: Path) -> None:
    broken = tiny.tiny_model()
    with torch.no_grad():
        broken.model.norm.weight[3] = torch.nan
    model = ventoux.load(tiny.save_hf(broken, tmp_path / "m"))
    with pytest.raises(GenerationError, match="hidden states that are not finite numbers: its weights are damaged"):
        model.embed([[3, 4]])


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 9))
def test_passes_hold_every_position_once_in_order(lengths: list[int], budget: int) -> None:
    done = [0] * len(lengths)
    for batch in batches(lengths, budget):
        assert 0 < sum(end - begin for _, begin, end in batch) <= budget
        assert len({text for text, _, _ in batch}) == len(batch)
        for text, begin, end in batch:
            assert begin == done[text]
            assert begin % budget == 0
            done[text] = end
    assert done == lengths
