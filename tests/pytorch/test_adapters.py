"""LoRA and hidden states on the pytorch backend: what PEFT and transformers compute, sequence by sequence."""

from pathlib import Path

import lora
import numpy as np
import pytest
import tiny
import torch

from ventoux import RequestError, checkpoint
from ventoux.batch import Batch, Segment
from ventoux.pytorch.backend import Backend

IDS = np.random.default_rng(3).integers(3, 96, 40).tolist()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_batch_of_several_adapters_is_each_by_itself(tmp_path: Path, dtype: str) -> None:
    model = tiny.tiny_model(sliding_window=8)
    found = checkpoint.read(tiny.save_hf(model, tmp_path / "hf"))
    backend = Backend(found.config, found.tensors, dtype=dtype)
    oracles = {
        "a": lora.save(model, tmp_path / "a"),
        "b": lora.save(model, tmp_path / "b", seed=2, r=7, use_rslora=True, target_modules=["v_proj", "up_proj"]),
        None: model,
    }
    backend.load_adapter("a", tmp_path / "a")
    backend.load_adapter("b", tmp_path / "b")
    order = ["a", None, "b", "a", None]
    cache = backend.new_cache()
    slots = [cache.allocate(40) for _ in order]
    for start, end in ((0, 13), (13, 14), (14, 40)):
        parts = [
            Segment(slot, start, IDS[start:end], end - start, name) for slot, name in zip(slots, order, strict=True)
        ]
        rows = backend.forward(Batch.pack(parts), cache).reshape(len(order), end - start, -1)
        for name, logits in zip(order, rows, strict=True):
            expected = tiny.logits(oracles[name], IDS)[start:end]
            np.testing.assert_allclose(logits, expected, atol=1e-4 if dtype == "fp32" else 0.5)


def test_hidden_states_are_those_after_the_last_norm(tmp_path: Path) -> None:
    model = tiny.tiny_model(sliding_window=8)
    found = checkpoint.read(tiny.save_hf(model, tmp_path / "hf"))
    backend = Backend(found.config, found.tensors)
    adapted = lora.save(model, tmp_path / "a")
    backend.load_adapter("a", tmp_path / "a")
    cache = backend.new_cache()
    slots = [cache.allocate(40) for _ in range(2)]
    segments = [Segment(slots[0], 0, IDS), Segment(slots[1], 0, IDS, 3, "a")]
    states = backend.hidden(Batch.pack(segments), cache)
    with torch.no_grad():
        for rows, oracle in ((states[:40], model), (states[40:], adapted.get_base_model())):
            expected = oracle.model(torch.tensor([IDS]), use_cache=False).last_hidden_state[0].numpy()
            np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert backend.hidden(Batch.pack([Segment(slots[0], 40, [])]), cache).shape == (0, 64)


def test_an_adapter_that_is_gone_runs_nothing(tmp_path: Path) -> None:
    model = tiny.tiny_model()
    found = checkpoint.read(tiny.save_hf(model, tmp_path / "hf"))
    backend = Backend(found.config, found.tensors)
    lora.save(model, tmp_path / "a")
    backend.load_adapter("a", tmp_path / "a")
    assert tuple(backend.adapters) == ("a",)
    backend.unload_adapter("a")
    cache = backend.new_cache()
    slot = cache.allocate(9)
    with pytest.raises(RequestError, match="there is no adapter 'a'; none is loaded"):
        backend.forward(Batch.pack([Segment(slot, 0, IDS[:5], 1, "a")]), cache)
    expected = tiny.logits(model, IDS[:5])[-1]
    np.testing.assert_allclose(
        backend.forward(Batch.pack([Segment(slot, 0, IDS[:5], 1)]), cache)[0], expected, atol=1e-4
    )
