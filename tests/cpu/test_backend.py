"""The whole model against transformers, in every layout, on every instruction set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from ventoux import checkpoint
from ventoux.batch import Batch, Segment
from ventoux.cpu import Backend, physical_cores
from ventoux.cpu import isa as chosen_isa
from ventoux.cpu.model import KEPT, LOOKED_UP
from ventoux.errors import VentouxError

LAYOUTS = {
    "raw": lambda model, root: tiny.save_raw(model, root / "raw"),
    "huggingface": lambda model, root: tiny.save_hf(model, root / "hf"),
    "gguf": lambda model, root: tiny.save_gguf(model, root / "model.gguf"),
}


def load(path, window=None, **options):
    read = checkpoint.read(path)
    config = read.config if window is None else read.config.with_window(window)
    return Backend(config, read.tensors, **options)


def logits(backend, ids, chunks=None):
    """[T, vocab] through the cache, the ids cut into chunks."""
    cache = backend.new_cache()
    slot, rows, start = cache.allocate(len(ids)), [], 0
    for count in chunks or [len(ids)]:
        rows.append(backend.forward(Batch.pack([Segment(slot, start, ids[start : start + count], count)]), cache))
        start += count
    return np.concatenate(rows)


def some_ids(n, vocab=96, seed=0):
    return np.random.default_rng(seed).integers(3, vocab, n).tolist()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [3, 4, 16, None])
def test_logits_equal_transformers_in_every_layout(isa, tmp_path, window, kv_heads, tied):
    model = tiny.tiny_model(
        kv_heads, sliding_window=window, num_key_value_heads=kv_heads, tie_word_embeddings=tied, head_dim=24
    )
    ids = some_ids(70)
    expected = tiny.logits(model, ids)
    for name, write in LAYOUTS.items():
        if name == "raw" and tied:
            continue  # raw checkpoints have no way to say that they are tied
        backend = load(write(model, tmp_path), window if name == "gguf" else None)  # a GGUF file cannot say its window
        for n in (2, window or 9, 70):  # below, at and far past the window
            np.testing.assert_allclose(logits(backend, ids[:n]), expected[:n], atol=1e-4, err_msg=f"{name}, {n} ids")


@pytest.mark.parametrize("window", [4, 16, None])
@pytest.mark.parametrize("compute", ["f32", "mixed"])
def test_logits_do_not_depend_on_which_are_asked_for(isa, tmp_path, window, compute):
    """The last layer leaves out what nobody asks for: in chunks that overwrite a ring, beside another sequence."""
    path = tiny.save_gguf(tiny.tiny_model(num_hidden_layers=2), tmp_path / "m.gguf", format="Q4_0")
    backend, rng = load(path, window, compute=compute), np.random.default_rng(8)
    texts = some_ids(90), some_ids(90, seed=1)
    expected = [logits(backend, ids) for ids in texts]
    for _ in range(10):
        cache, done = backend.new_cache(), [0, 0]
        slots = [cache.allocate(90) for _ in texts]
        while min(done) < 90:
            counts = [int(min(rng.integers(0, 50), 90 - at)) for at in done]
            asked = [int(rng.choice([0, min(1, n), n // 2, n])) for n in counts]
            segments = [
                Segment(slots[i], done[i], texts[i][done[i] : done[i] + counts[i]], asked[i]) for i in range(len(texts))
            ]
            found = backend.forward(Batch.pack(segments), cache)
            done = [at + n for at, n in zip(done, counts, strict=True)]
            rows = [each[end - n : end] for each, end, n in zip(expected, done, asked, strict=True)]
            np.testing.assert_array_equal(found, np.concatenate(rows))


def test_facts_4_only_tokens_inside_the_window_change_the_logits(isa, tmp_path):
    backend = load(tiny.save_hf(tiny.tiny_model(num_hidden_layers=1, sliding_window=4), tmp_path / "m"))
    ids = some_ids(12)
    last = logits(backend, ids)[-1]
    for position in range(12):
        changed = logits(backend, [*ids[:position], (ids[position] + 1) % 96, *ids[position + 1 :]])[-1]
        assert np.array_equal(changed, last) == (position < 8), f"position {position}: the last query sees 8..11"


def test_facts_5_a_short_prompt_goes_on_past_the_window(isa, tmp_path):
    model = tiny.tiny_model(sliding_window=4)
    backend = load(tiny.save_hf(model, tmp_path / "m"))
    ids = some_ids(20)
    step_by_step = logits(backend, ids, [2] + [1] * 18)
    np.testing.assert_allclose(step_by_step, tiny.logits(model, ids), atol=1e-4)


def test_facts_11_packed_sequences_do_not_see_each_other(isa, tmp_path):
    backend = load(tiny.save_hf(tiny.tiny_model(sliding_window=4), tmp_path / "m"))
    sequences = [some_ids(n, seed=n) for n in (9, 1, 17)]
    cache = backend.new_cache()
    batch = Batch.pack([Segment(cache.allocate(20), 0, ids, len(ids)) for ids in sequences])
    np.testing.assert_array_equal(
        backend.forward(batch, cache), np.concatenate([logits(backend, ids) for ids in sequences])
    )


def test_steps_that_want_no_logits_and_segments_without_tokens(isa, tmp_path):
    backend = load(tiny.save_hf(tiny.tiny_model(sliding_window=4), tmp_path / "m"))
    ids = some_ids(9)
    cache = backend.new_cache()
    slot, other = cache.allocate(9), cache.allocate(9)
    assert backend.forward(Batch.pack([Segment(slot, 0, ids[:7])]), cache).shape == (0, 96)
    assert backend.forward(Batch.pack([Segment(slot, 7, [])]), cache).shape == (0, 96)
    rest = backend.forward(Batch.pack([Segment(other, 0, []), Segment(slot, 7, ids[7:], 2)]), cache)
    np.testing.assert_array_equal(rest, logits(backend, ids)[7:])


def test_facts_10_prompts_that_need_different_numbers_of_chunks_work_together(isa, tmp_path):
    backend = load(tiny.save_hf(tiny.tiny_model(sliding_window=4), tmp_path / "m"))
    long, short = some_ids(23), some_ids(6, seed=1)
    cache = backend.new_cache()
    a, b = cache.allocate(40), cache.allocate(40)
    first = backend.forward(Batch.pack([Segment(a, 0, long[:10], 10), Segment(b, 0, short, 6)]), cache)
    second = backend.forward(Batch.pack([Segment(b, 6, [7], 1), Segment(a, 10, long[10:], 13)]), cache)
    np.testing.assert_array_equal(np.concatenate([first[:10], second[1:]]), logits(backend, long))
    np.testing.assert_array_equal(np.concatenate([first[10:], second[:1]]), logits(backend, [*short, 7]))


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"])
def test_block_formats_equal_fp32_arithmetic_on_the_same_weights(isa, tmp_path, format):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64} if format.endswith("K") else {}
    model = tiny.tiny_model(sliding_window=4, **sizes)
    path = tiny.save_gguf(model, tmp_path / "m.gguf", format=format)
    read = checkpoint.read(path)
    config = read.config.with_window(4)
    exact = {name: as_float(tensor) for name, tensor in read.tensors.items()}
    ids = some_ids(20)
    expected = logits(Backend(config, exact, compute="f32"), ids)
    np.testing.assert_allclose(logits(Backend(config, read.tensors, compute="f32"), ids), expected, atol=1e-4)
    np.testing.assert_allclose(logits(Backend(config, read.tensors, compute="int16"), ids), expected, atol=0.02)
    rounded = 0.3 if format == "BF16" else 0.1  # where bf16 is multiplied as such, no activation gets more bits
    np.testing.assert_allclose(logits(Backend(config, read.tensors), ids), expected, atol=rounded)


def as_float(tensor):
    data = np.ascontiguousarray(tensor.float32()).reshape(tensor.data.shape[0], -1).view(np.uint8)
    return checkpoint.tensor.Tensor(tensor.name, tensor.shape, "F32", data)


def test_threads_do_not_change_a_bit(isa, tmp_path):
    path = tiny.save_gguf(tiny.tiny_model(sliding_window=4), tmp_path / "m.gguf", format="Q4_0")
    ids = some_ids(40)
    np.testing.assert_array_equal(logits(load(path, threads=1), ids), logits(load(path, threads=5), ids))


def test_batches_of_kept_and_of_passing_arrays_give_the_same_bits(isa, tmp_path):
    backend = load(tiny.save_gguf(tiny.tiny_model(sliding_window=4), tmp_path / "m.gguf", format="Q4_0"))
    ids = some_ids(3 * KEPT)
    expected = logits(backend, ids)
    np.testing.assert_array_equal(logits(backend, ids, [KEPT, KEPT + 1, KEPT - 2, 1]), expected)


def test_per_layer_windows(isa, tmp_path):
    model = tiny.tiny_model(sliding_window=4)
    read = checkpoint.read(tiny.save_hf(model, tmp_path / "m"))
    mixed = Backend(read.config.__class__(**{**vars(read.config), "windows": (None, 4)}), read.tensors)
    ids = some_ids(30)
    cut = logits(mixed, ids, [11, 1, 18])
    np.testing.assert_array_equal(cut, logits(mixed, ids))
    assert not np.allclose(cut, tiny.logits(model, ids), atol=1e-2)


def test_the_cache_can_be_kept_in_other_number_formats(tmp_path):
    path = tiny.save_hf(tiny.tiny_model(), tmp_path)
    ids, exact = some_ids(40), logits(load(path), some_ids(40))
    for dtype, nbytes, tolerance in (("f32", 4 * 16, 0), ("f16", 2 * 16, 2e-2), ("int8", 16 + 4, 0.2)):
        backend = load(path, kv_cache_dtype=dtype)
        found = logits(backend, ids)
        assert (np.abs(found - exact).max() > 0) == (dtype != "f32")
        np.testing.assert_allclose(found, exact, atol=tolerance)
        np.testing.assert_array_equal(logits(backend, ids, [3, 1, 20, 16]), found)
        cache = backend.new_cache()
        cache.allocate(10)
        assert cache.nbytes == 16 * 2 * 2 * 2 * nbytes  # positions rounded up, layers, keys and values, KV heads
    with pytest.raises(VentouxError, match="kv_cache_dtype must be auto, f32, f16, int8, found 'fp8'"):
        load(path, kv_cache_dtype="fp8")


def test_the_instruction_set_can_be_chosen_and_a_wrong_one_is_refused(monkeypatch):
    monkeypatch.setenv("VENTOUX_ISA", "portable")
    assert chosen_isa() == "portable"
    monkeypatch.setenv("VENTOUX_ISA", "altivec")
    with pytest.raises(VentouxError, match="VENTOUX_ISA is 'altivec', but this machine runs"):
        chosen_isa()


def test_threads_default_to_the_cores_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, {0}); from ventoux.cpu import physical_cores; print(physical_cores())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is resident")
def test_the_checkpoints_pages_are_given_back(tmp_path):
    path = tiny.save_gguf(tiny.tiny_model(), tmp_path / "m.gguf", format="Q4_0")
    backend = load(path)
    assert resident(path) == 0
    cache = backend.new_cache()
    slot = cache.allocate(LOOKED_UP)
    for position in range(LOOKED_UP):
        assert position == 0 or resident(path) > 0
        backend.forward(Batch.pack([Segment(slot, position, [position])]), cache)
    assert resident(path) == 0


def resident(path):
    """Bytes of a file that this process has mapped and in memory."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    own = [each for each in maps if str(path) in each.partition("\n")[0]]
    assert own, "the file is not mapped"
    return sum(1024 * int(re.search(r"^Rss: +(\d+) kB", each, re.MULTILINE)[1]) for each in own)
