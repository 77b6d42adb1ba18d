"""LoRA on packed weights against PEFT on transformers' model, and the same bits whoever else is in the batch."""

from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux import checkpoint
from ventoux.batch import Batch, Float32, Segment
from ventoux.cpu import Backend
from ventoux.errors import CheckpointError, RequestError

LAYOUTS: dict[str, Any] = {
    "raw": lambda model, root: tiny.save_raw(model, root / "raw"),
    "huggingface": lambda model, root: tiny.save_hf(model, root / "hf"),
    "gguf": lambda model, root: tiny.save_gguf(model, root / "model.gguf"),
}
IDS = np.random.default_rng(0).integers(3, 96, 60).tolist()


def load(path: Path, window: int | None = None, **options: Any) -> Backend:
    read = checkpoint.read(path)
    return Backend(read.config.with_window(window) if window else read.config, read.tensors, **options)


def logits(backend: Backend, ids: list[int], adapter: str | None = None, chunks: list[int] | None = None) -> Float32:
    """[T, vocab] through the cache, the ids cut into chunks."""
    cache = backend.new_cache()
    slot, rows, start = cache.allocate(len(ids)), [], 0
    for count in chunks or [len(ids)]:
        part = Segment(slot, start, ids[start : start + count], count, adapter)
        rows.append(backend.forward(Batch.pack([part]), cache))
        start += count
    return np.concatenate(rows)


@pytest.mark.parametrize(("window", "kv_heads"), [(4, 2), (16, 1), (None, 4)])
def test_logits_equal_peft_and_the_merged_model_in_every_layout(
    isa: str, tmp_path: Path, window: int | None, kv_heads: int
) -> None:
    model = tiny.tiny_model(kv_heads, sliding_window=window, num_key_value_heads=kv_heads, head_dim=24)
    oracle = lora.save(model, tmp_path / "adapter", rank_pattern={"q_proj": 3, "0.mlp.up_proj": 1})
    expected, plain = tiny.logits(oracle, IDS), tiny.logits(model, IDS)
    assert np.abs(expected - plain).max() > 1
    for name, write in LAYOUTS.items():
        backend = load(write(model, tmp_path), window if name == "gguf" else None)
        backend.load_adapter("a", tmp_path / "adapter")
        for chunks in ([60], [1] * 9 + [30, 21]):
            np.testing.assert_allclose(logits(backend, IDS, "a", chunks), expected, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(logits(backend, IDS), plain, atol=1e-4, err_msg=name)
    merged = load(tiny.save_hf(oracle.merge_and_unload(), tmp_path / "merged"))
    np.testing.assert_allclose(logits(merged, IDS), expected, atol=1e-4)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """A quantized model with two adapters, one on all layers and one on some, and texts' logits without them."""
    root, model = tmp_path_factory.mktemp("many"), tiny.tiny_model(sliding_window=8)
    backend = load(tiny.save_gguf(model, root / "model.gguf", format="Q4_0"), 8, threads=2)
    lora.save(model, root / "all", r=5, dtype=torch.bfloat16)
    lora.save(model, root / "some", seed=2, r=16, target_modules=["v_proj", "down_proj"])
    for name in ("all", "some"):
        backend.load_adapter(name, root / name)
    return backend


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 30), sequences=st.integers(1, 7))
def test_any_mix_of_adapters_has_the_bits_of_each_alone(many: Backend, seed: int, sequences: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [IDS[i : i + rng.integers(1, 30)] for i in range(sequences)]
    adapters = [[None, "all", "some"][rng.integers(3)] for _ in texts]
    expected = [logits(many, ids, adapter) for ids, adapter in zip(texts, adapters, strict=True)]
    cache, done = many.new_cache(), [0] * sequences
    slots = [cache.allocate(len(ids)) for ids in texts]
    while unfinished := [i for i, ids in enumerate(texts) if done[i] < len(ids)]:
        segments, wanted = [], []
        for i in rng.permutation(unfinished)[: rng.integers(1, sequences + 1)].tolist():
            count = int(rng.integers(0, min(9, len(texts[i]) - done[i]) + 1))
            segments.append(Segment(slots[i], done[i], texts[i][done[i] : done[i] + count], count, adapters[i]))
            done[i] += count
            wanted.append(expected[i][done[i] - count : done[i]])
        np.testing.assert_array_equal(many.forward(Batch.pack(segments), cache), np.concatenate(wanted))


def test_rows_without_an_adapter_have_the_bits_of_a_model_without(many: Backend, tmp_path: Path) -> None:
    plain = load(tiny.save_gguf(tiny.tiny_model(), tmp_path / "m.gguf", format="Q4_0"), 8)
    np.testing.assert_array_equal(logits(many, IDS), logits(plain, IDS))
    assert np.abs(logits(many, IDS, "all") - logits(plain, IDS)).max() > 1
    assert np.abs(logits(many, IDS, "some") - logits(many, IDS, "all")).max() > 1


def test_names_are_loaded_once_and_unknown_ones_run_nothing(many: Backend, tmp_path: Path) -> None:
    model = tiny.tiny_model()
    backend = load(tiny.save_hf(model, tmp_path / "hf"))
    lora.save(model, tmp_path / "a")
    cache = backend.new_cache()
    slot, other = cache.allocate(9), cache.allocate(9)
    with pytest.raises(RequestError, match="there is no adapter 'a'; none is loaded"):
        backend.forward(Batch.pack([Segment(other, 0, IDS[:4], 4), Segment(slot, 0, IDS[:4], 4, "a")]), cache)
    backend.load_adapter("a", tmp_path / "a")
    backend.load_adapter("b", tmp_path / "a")
    found = backend.forward(Batch.pack([Segment(slot, 0, IDS[:9], 9, "a")]), cache)
    np.testing.assert_array_equal(found, logits(backend, IDS[:9], "b"))
    with pytest.raises(RequestError, match="there is an adapter 'a' already; unload it first"):
        backend.load_adapter("a", tmp_path / "a")
    for wrong in ("", None, 3):
        with pytest.raises(RequestError, match="an adapter's name must be a text"):
            backend.load_adapter(wrong, tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="expected a LoRA adapter's folder"):
        backend.load_adapter("c", tmp_path)
    backend.unload_adapter("a")
    assert tuple(backend.adapters) == ("b",)
    with pytest.raises(RequestError, match="there is no adapter 'a'; loaded are 'b'"):
        backend.unload_adapter("a")
    with pytest.raises(RequestError, match="there is no adapter 'a'; loaded are 'b'"):
        logits(backend, IDS, "a")


@pytest.mark.parametrize("adapter", [None, "a"])
def test_hidden_states_are_those_after_the_last_norm(isa: str, tmp_path: Path, adapter: str | None) -> None:
    """And the cache goes on from them."""
    model = tiny.tiny_model(sliding_window=4)
    oracle = lora.save(model, tmp_path / "a")
    backend = load(tiny.save_hf(model, tmp_path / "hf"))
    backend.load_adapter("a", tmp_path / "a")
    with torch.no_grad():
        inner = (oracle.get_base_model() if adapter else model).model
        expected = inner(torch.tensor([IDS]), use_cache=False).last_hidden_state[0].numpy()
    cache = backend.new_cache()
    slot, other = cache.allocate(60), cache.allocate(60)
    first = backend.hidden(Batch.pack([Segment(other, 0, IDS[:3]), Segment(slot, 0, IDS[:41], 0, adapter)]), cache)
    rest = backend.hidden(Batch.pack([Segment(slot, 41, IDS[41:59], 1, adapter)]), cache)
    np.testing.assert_allclose(np.concatenate([first[3:], rest]), expected[:59], atol=1e-4)
    last = backend.forward(Batch.pack([Segment(slot, 59, IDS[59:], 1, adapter)]), cache)
    np.testing.assert_allclose(last[0], tiny.logits(oracle if adapter else model, IDS)[-1], atol=1e-4)
    assert backend.hidden(Batch.pack([Segment(other, 3, [])]), cache).shape == (0, 64)
