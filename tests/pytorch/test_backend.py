"""The engine's second backend: the same logits and texts as the cpu backend's and transformers', past the window."""

import json
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy import ByteTokenizer

import ventoux
from ventoux import CheckpointError, GenerationError, OutOfMemoryError, RequestError, checkpoint, cpu
from ventoux.batch import Batch, Segment
from ventoux.decoding import SamplingParams
from ventoux.engine import Engine, Finished, Request, Token
from ventoux.pytorch import backend as module
from ventoux.pytorch.backend import Backend

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
MODEL = tiny.tiny_model(seed=3, vocab_size=258)  # as many ids as the tokenizer of bytes has
IDS = np.random.default_rng(3).integers(3, 258, 60).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_hf(MODEL, tmp_path_factory.mktemp("backend") / "hf")


@pytest.fixture(scope="module")
def backend(folder: Path) -> Backend:
    return made(folder)


def made(path, window=None, **options):
    found = checkpoint.read(path)
    config = found.config if window is None else found.config.with_window(window)
    return Backend(config, found.tensors, **options)


def logits(backend, ids, chunks=None, *, cache=None, lookahead=0):
    """[T, vocab] through the cache, the ids cut into chunks."""
    cache = cache or backend.new_cache()
    slot, rows, start = cache.allocate(len(ids)), [], 0
    for count in chunks or [len(ids)]:
        rows.append(backend.forward(Batch.pack([Segment(slot, start, ids[start : start + count], count)]), cache))
        start += count
    return np.concatenate(rows)


def greedy(prompt, count, model=MODEL):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(tiny.logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("window", [1, 4, 16, None])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_equal_transformers_and_the_cpu_backends(tmp_path, window, kv_heads, tied):
    model = tiny.tiny_model(
        kv_heads, sliding_window=window, num_key_value_heads=kv_heads, tie_word_embeddings=tied, head_dim=24
    )
    path = tiny.save_hf(model, tmp_path / "hf")
    found = checkpoint.read(path)
    ids = [i % 96 for i in IDS[:40]]
    kernels = logits(cpu.Backend(found.config, found.tensors, compute="f32", threads=1), ids)
    for chunks in ([40], [1] * 40, [3, 1, 20, 4, 12]):
        ours = logits(made(path), ids, chunks)
        np.testing.assert_allclose(ours, tiny.logits(model, ids), atol=1e-4)
        np.testing.assert_allclose(ours, kernels, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1 << 30), sequences=st.integers(1, 4))
def test_facts_10_any_mix_of_chunks_gives_each_sequence_its_own_logits(backend, seed, sequences):
    """Sequences that join and leave; rows are asked for here and there."""
    rng = np.random.default_rng(seed)
    texts = [IDS[i : i + rng.integers(1, 30)] for i in range(sequences)]
    expected = [tiny.logits(MODEL, ids) for ids in texts]
    cache, slots, done = backend.new_cache(), {}, [0] * sequences
    while unfinished := [i for i, ids in enumerate(texts) if done[i] < len(ids)]:
        segments, wanted = [], []
        for i in rng.permutation(unfinished)[: rng.integers(1, sequences + 1)].tolist():
            count = int(rng.integers(0, min(9, len(texts[i]) - done[i]) + 1))
            rows = int(rng.integers(0, count + 1))
            slots[i] = slots[i] if i in slots else cache.allocate(len(texts[i]))
            segments.append(Segment(slots[i], done[i], texts[i][done[i] : done[i] + count], rows))
            done[i] += count
            wanted.append(expected[i][done[i] - rows : done[i]])
        found = backend.forward(Batch.pack(segments), cache)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-4)
        for i in [i for i in slots if done[i] == len(texts[i])]:
            cache.free(slots.pop(i))
    assert cache.nbytes == 0


def test_facts_1_and_4_exactly_the_window_is_seen(tmp_path):
    model = made(tiny.save_hf(tiny.tiny_model(num_hidden_layers=1, sliding_window=4), tmp_path / "m"))
    ids = [i % 96 for i in IDS[:12]]
    for chunks in ([12], [1] * 12, [7, 5]):
        last = logits(model, ids, chunks)[-1]
        for position in range(12):
            other = [*ids[:position], (ids[position] + 1) % 96, *ids[position + 1 :]]
            changed = logits(model, other, chunks)[-1]
            assert np.allclose(changed, last, atol=1e-6) == (position < 8), f"{position}: the last query sees 8..11"


def test_windows_may_differ_from_layer_to_layer(folder):
    found = checkpoint.read(folder)
    config = replace(found.config, windows=(None, 4))
    mixed, kernels = Backend(config, found.tensors), cpu.Backend(config, found.tensors, compute="f32")
    np.testing.assert_allclose(logits(mixed, IDS, [11, 1, 48]), logits(kernels, IDS), atol=1e-4)
    assert not np.allclose(logits(mixed, IDS), tiny.logits(MODEL, IDS), atol=1e-2)


def test_facts_16_keys_and_values_take_the_window_and_go_when_they_are_freed(folder):
    backend = made(folder, dtype="bf16")
    cache = backend.new_cache()
    a_position = 2 * 2 * 2 * 16 * 2  # keys and values, layers, KV heads, head_dim, bytes
    assert (a_position, backend.description.kv_itemsize) == (256, 2)
    long, short = cache.allocate(1000), cache.allocate(3)
    assert cache.nbytes == (4 + 3) * a_position
    backend.forward(Batch.pack([Segment(long, 0, IDS), Segment(short, 0, IDS[:3])]), cache)
    assert cache.nbytes == (4 + 3) * a_position
    cache.free(long)
    assert cache.nbytes == 3 * a_position
    cache.free(short)
    assert cache.nbytes == 0


@pytest.mark.parametrize("back", [1, 3, 4, 6])
def test_facts_12_what_was_guessed_wrongly_is_taken_back_past_the_window(backend, back):
    """With a lookahead, a segment begins before the last one's end, and evicted keys are there again."""
    cache = backend.new_cache()
    slot = cache.allocate(60, lookahead=6)
    expected, at = tiny.logits(MODEL, IDS), 0
    while at + 8 < 60:
        guessed = IDS[at : at + 8 - back] + [7] * back
        backend.forward(Batch.pack([Segment(slot, at, guessed, 1)]), cache)
        at += 8 - back
        right = backend.forward(Batch.pack([Segment(slot, at, IDS[at : at + 1], 1)]), cache)
        np.testing.assert_allclose(right[0], expected[at], atol=1e-4)
        at += 1
    held = 2 * 2 * 2 * 2 * 16 * 4 * 4
    assert cache.nbytes <= held * 4


def test_positions_may_be_run_again_as_bench_does(backend):
    cache = backend.new_cache()
    slot = cache.allocate(30)
    shape = Batch.pack([Segment(slot, 0, IDS[:30], 1)])
    first = backend.forward(shape, cache)
    np.testing.assert_array_equal(backend.forward(shape, cache), first)
    for again in (2, 20, 29):
        assert backend.forward(Batch.pack([Segment(slot, again, IDS[again:30], 1)]), cache).shape == (1, 258)


def run(backend, arrivals, *, cancel=None, **options):
    """Requests by the step before which they come -> ids, text and reason of each, by the order of adding."""
    engine = Engine(backend, ByteTokenizer(), **options)
    found: dict[int, list[Any]] = {}
    for step in range(1000):
        for request in arrivals.get(step, []):
            found[engine.add(request)] = [[], "", None]
        if cancel is not None and step == cancel[0]:
            held = engine.kv_bytes
            engine.cancel(cancel[1])
            assert engine.kv_bytes < held
        if not engine.busy and step > max(arrivals):
            break
        for key, event in engine.step():
            found[key][1] += event.text
            if isinstance(event, Token):
                found[key][0].append(event.id)
            else:
                found[key][2] = event.error or event.reason
    assert engine.kv_bytes == 0
    return list(found.values())


def requests():
    plain = SamplingParams(max_tokens=14, **GREEDY)
    seeded = SamplingParams(temperature=1.3, top_p=0.9, seed=4, max_tokens=20, repetition_penalty=1.2)
    return {
        0: [Request(IDS[:1], plain), Request(IDS[5:35], plain)],
        3: [Request(IDS[10:14], seeded), Request(IDS[20:22], plain)],
        9: [Request(IDS[30:49], SamplingParams(max_tokens=30, stop=("a", "e"), **GREEDY))],
    }


@pytest.mark.parametrize("budget", [5, 512])
def test_facts_2_the_engine_says_the_same_on_both_backends(folder, backend, budget):
    """Ragged prompts that join and leave, greedy and seeded, stop strings, prompts longer than the budget."""
    found = checkpoint.read(folder)
    kernels = cpu.Backend(found.config, found.tensors, compute="f32")
    ours = run(backend, requests(), budget=budget, max_sequences=4)
    assert ours == run(kernels, requests(), budget=budget, max_sequences=4)
    assert ours[0][0] == greedy(IDS[:1], 14)
    assert ours[1][0] == greedy(IDS[5:35], 14)
    alone = [run(backend, {0: [each]})[0] for each in chain(*requests().values())]
    assert ours == alone


def test_facts_26_cancelling_frees_memory_and_nobody_else_notices(backend):
    arrivals = requests()
    undisturbed = run(backend, arrivals)
    cancelled = run(backend, arrivals, cancel=(6, 1))
    assert cancelled[1][2] == "cancelled"
    assert cancelled[1][0] == undisturbed[1][0][: len(cancelled[1][0])]
    assert cancelled[:1] + cancelled[2:] == undisturbed[:1] + undisturbed[2:]


@pytest.mark.parametrize("layout", ["hf", "raw", "gguf"])
def test_facts_5_the_python_face_is_the_run_without_a_cache(tmp_path, layout):
    save = {"hf": tiny.save_hf, "raw": tiny.save_raw, "gguf": tiny.save_gguf}[layout]
    path = save(MODEL, tmp_path / "m")
    model = ventoux.load(path, backend="pytorch", window=4)
    np.testing.assert_allclose(model.logits(IDS), tiny.logits(MODEL, IDS), atol=1e-4)
    prompts = [IDS[:2], IDS[5:35]]
    answers = model.generate(prompts, max_tokens=12, **GREEDY)
    assert [answer.ids for answer in answers] == [greedy(prompt, 12) for prompt in prompts]
    events = list(model.stream(IDS[:2], max_tokens=12, **GREEDY))
    assert [event.id for event in events[:-1]] == answers[0].ids
    assert isinstance(events[-1], Finished)
    full = ventoux.load(path, backend="pytorch", window="off").logits(IDS)
    np.testing.assert_allclose(
        full, tiny.logits(tiny.tiny_model(3, vocab_size=258, sliding_window=None), IDS), atol=1e-4
    )


def test_quantized_files_run_too(tmp_path):
    path = tiny.save_gguf(MODEL, tmp_path / "m.gguf", format="Q4_0")
    model = ventoux.load(path, backend="pytorch", window=4)
    np.testing.assert_allclose(model.logits(IDS), ventoux.load(path, window=4, compute="f32").logits(IDS), atol=1e-4)


@pytest.mark.parametrize(("dtype", "off"), [("bf16", 0.25), ("fp16", 0.04)])
def test_facts_20_half_the_bits_stay_close(folder, dtype, off):
    model = ventoux.load(folder, backend="pytorch", dtype=dtype)
    found, expected = model.logits(IDS), tiny.logits(MODEL, IDS)
    assert 0 < np.abs(found - expected).max() < off * expected.std()
    assert model.backend.description.compute == dtype
    assert model.backend.nbytes == 2 * sum(weight.numel() for weight in MODEL.parameters())
    assert len(model.generate(IDS[:9], max_tokens=20, **GREEDY).ids) == 20


@pytest.fixture
def overflowing(folder, tmp_path):
    """All weights are small enough for fp16, but what they make of token 7 is not."""
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][7] = torch.eye(64)[0]  # it alone goes along the first axis
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    for name in ("gate", "up"):
        weights[f"model.layers.0.mlp.{name}_proj.weight"][0] = 1000 * torch.eye(64)[0]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_facts_20_fp16_that_overflows_is_reported_and_ends_one_request_only(overflowing):
    model = ventoux.load(overflowing, backend="pytorch", dtype="fp16")
    says = r"not finite numbers: fp16 overflowed.*65504.*use bf16 or fp32"
    with pytest.raises(GenerationError, match=says):
        model.logits([5, 7, 5])
    for prompt in ([5, 7], [7, 5], [7, *[5] * 20]):  # the last token does not see it itself
        with pytest.raises(GenerationError, match=says):
            model.generate(prompt, max_tokens=3)
    params = SamplingParams(max_tokens=3, logit_bias={7: -100}, **GREEDY)
    fine, broken = run(model.backend, {0: [Request([5, 6], params), Request([7, 6, 6, 6, 6, 6], params)]}, budget=3)
    assert fine[2] == "length"
    assert isinstance(broken[2], GenerationError)
    for dtype in ("bf16", "fp32"):
        assert np.isfinite(ventoux.load(overflowing, backend="pytorch", dtype=dtype).logits([5, 7, 5])).all()


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_facts_20_what_attention_would_hide_is_reported(folder, tmp_path, name):
    """torch's CPU attention makes zeros of an infinite query, and a token that is seen by none of infinite keys."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"] *= 300
    weights[f"model.layers.1.self_attn.{name}.weight"][:1] *= 3000
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backend = made(tmp_path, dtype="fp16")
    found = logits(backend, IDS)
    first = int(np.isnan(found).any(-1).argmax())
    assert np.isnan(found[first:]).all()
    assert np.isfinite(found[:first]).all()
    assert np.isfinite(logits(made(tmp_path, dtype="fp32"), IDS)).all()
    cache = backend.new_cache()
    slot = cache.allocate(60, lookahead=60)
    backend.forward(Batch.pack([Segment(slot, 0, IDS[: first + 1])]), cache)
    assert np.isnan(backend.forward(Batch.pack([Segment(slot, first + 1, IDS[:1], 1)]), cache)).all()
    if first:  # an overflow that is taken back is none
        assert np.isfinite(
            backend.forward(Batch.pack([Segment(slot, first - 1, IDS[first - 1 : first], 1)]), cache)
        ).all()


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_damaged_model_is_not_told_to_be_an_overflow(folder, tmp_path, dtype):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][2, 3] = float("nan")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.self_attn.k_proj.weight: .*damaged"):
        ventoux.load(tmp_path, backend="pytorch", dtype=dtype)
    with pytest.raises(GenerationError, match=r"not finite numbers: its weights are damaged"):
        ventoux.load(tmp_path).generate([5, 6], max_tokens=3)


def test_fp16_weights_that_do_not_fit_are_refused_at_load(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e6
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*1e\+06.*65504"):
        ventoux.load(tmp_path, backend="pytorch", dtype="fp16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "backend must be cpu or pytorch, found 'jax'"),
        ({"device": "cpu"}, "device 'cpu' is for the pytorch backend, and this is the cpu backend"),
        ({"dtype": "bf16"}, "dtype 'bf16' is for the pytorch backend"),
        ({"compute": "int8"}, "compute must be auto, mixed, int16 or f32, found 'int8'"),
        (
            {"backend": "pytorch", "compute": "f32"},
            "compute 'f32' is for the cpu backend; the pytorch backend has dtype",
        ),
        ({"backend": "pytorch", "dtype": "f32"}, "dtype must be fp32, bf16, fp16"),
        ({"backend": "pytorch", "device": "tpu9"}, "device 'tpu9' cannot be used by torch here"),
        ({"backend": "pytorch", "device": "meta"}, "device 'meta' cannot be used by torch here"),
        ({"backend": "pytorch", "threads": 0}, "threads must be a whole number from 1 to 1024"),
    ],
)
def test_settings_that_would_be_ignored_are_refused_before_anything_is_fetched(options, message):
    with pytest.raises(RequestError, match=message):
        ventoux.load("no-such-model", **options)


def test_the_default_dtype_is_the_devices(monkeypatch):
    assert module.choose("cpu", None, 2) == (torch.device("cpu"), torch.float32)
    monkeypatch.setattr(module, "usable_device", torch.device)  # as if there were one
    assert module.choose("cuda:1", None, None) == (torch.device("cuda:1"), torch.bfloat16)
    assert module.choose("cuda", "fp16", None) == (torch.device("cuda"), torch.float16)
    with pytest.raises(RequestError, match="threads are a CPU's, and the device is cuda"):
        module.choose("cuda", None, 2)


def test_threads_are_torchs(folder):
    before = torch.get_num_threads()
    try:
        model = ventoux.load(folder, backend="pytorch", threads=2)
        assert torch.get_num_threads() == model.backend.description.threads == 2
        assert str(model.backend.description) == "fp32 on pytorch cpu, 2 threads"
    finally:
        torch.set_num_threads(before)


def test_memory_that_is_used_up_ends_the_request(folder, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 1 << 30})
    )
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = ventoux.load(tmp_path, backend="pytorch", window="off")
    rings = model.backend.new_cache()
    with pytest.raises(OutOfMemoryError, match="positions do not fit into the memory of cpu"):
        rings.allocate(1 << 54)
    assert rings.nbytes == 0
    assert len(model.generate(IDS[:3], max_tokens=2, ignore_eos=True).ids) == 2


def test_an_accelerator_that_runs_out_of_memory_says_so(backend, monkeypatch):
    def used_up(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(module, "rotation", used_up)
    with pytest.raises(OutOfMemoryError, match="a batch of 3 tokens does not fit into the memory of cpu"):
        logits(backend, IDS[:3])


def test_nothing_to_run_is_no_rows(backend):
    cache = backend.new_cache()
    slot, other = cache.allocate(9), cache.allocate(9)
    assert backend.forward(Batch.pack([Segment(slot, 0, [])]), cache).shape == (0, 258)
    assert backend.forward(Batch.pack([Segment(slot, 0, IDS[:7])]), cache).shape == (0, 258)
    rest = backend.forward(Batch.pack([Segment(other, 0, []), Segment(slot, 7, IDS[7:9], 2)]), cache)
    np.testing.assert_allclose(rest, tiny.logits(MODEL, IDS[:9])[7:], atol=1e-4)


def test_several_threads_may_ask_at_once(folder):
    model = ventoux.load(folder, backend="pytorch")
    answers: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        answers[i] = model.generate(IDS[i : i + 5], max_tokens=10, **GREEDY).ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    found = model.logits(IDS)
    [thread.join() for thread in threads]
    np.testing.assert_allclose(found, tiny.logits(MODEL, IDS), atol=1e-4)
    assert answers == {i: greedy(IDS[i : i + 5], 10) for i in range(4)}
