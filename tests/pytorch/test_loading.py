"""`ventoux.pytorch.load`: the same weights from every layout, and refusals that say what to do."""

import json
import tracemalloc

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

import ventoux
from ventoux import CheckpointError, ConfigError, OutOfMemoryError, RequestError, checkpoint, pytorch, quant
from ventoux.pytorch import loading

MODEL = tiny.tiny_model(seed=5)
IDS = np.random.default_rng(5).integers(3, 96, 30).tolist()
LAYOUTS = {
    "hf": lambda folder: tiny.save_hf(MODEL, folder / "hf"),
    "hf in shards": lambda folder: tiny.save_hf(MODEL, folder / "hf", shards=True),
    "raw": lambda folder: tiny.save_raw(MODEL, folder / "raw"),
    "raw in parts": lambda folder: tiny.save_raw(MODEL, folder / "raw", shards=2),
    "raw safetensors": lambda folder: tiny.save_raw(MODEL, folder / "raw", safetensors=True),
    "gguf": lambda folder: tiny.save_gguf(MODEL, folder / "tiny.gguf"),
}


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu().numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_facts_17_every_layout_gives_the_same_weights_and_the_oracles_logits(tmp_path, layout):
    path = LAYOUTS[layout](tmp_path)
    model = pytorch.load(path, window=4)
    expected = MODEL.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert not model.training
    np.testing.assert_allclose(logits(model), tiny.logits(MODEL, IDS), atol=1e-4)
    np.testing.assert_allclose(logits(model), ventoux.load(path, window=4, compute="f32").logits(IDS), atol=1e-4)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_quantized_files_are_unpacked_to_the_numbers_that_they_mean(tmp_path, format, dtype):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64} if format.endswith("K") else {}
    path = tiny.save_gguf(tiny.tiny_model(**sizes), tmp_path / "m.gguf", format=format)
    model = pytorch.load(path, window=4, dtype=dtype)
    for name, tensor in checkpoint.read(path).tensors.items():
        full = name if name == "lm_head.weight" else f"model.{name}"
        expected = torch.from_numpy(tensor.float32()).to(loading.DTYPES[dtype])
        assert torch.equal(model.get_parameter(full), expected), name
    if dtype == "fp32":
        expected = ventoux.load(path, window=4, compute="f32").logits(IDS)
        np.testing.assert_allclose(logits(model), expected, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 40), chunk=st.integers(1, 300), ordered=st.booleans(), format=st.sampled_from(["Q8_0", "BF16"])
)
def test_chunks_do_not_matter(rows, chunk, ordered, format):
    rng = np.random.default_rng(rows)
    numbers = rng.normal(size=(rows, 64)).astype(np.float32)
    order = rng.permutation(rows).astype(np.int32) if ordered else None
    packed = quant.quantize(numbers, "Q8_0") if format == "Q8_0" else bfloats(numbers)
    tensor = checkpoint.Tensor("w", (rows, 64), format, packed, order)
    with pytest.MonkeyPatch.context() as patch, loading.ThreadPoolExecutor(2) as pool:
        patch.setattr(loading, "_CHUNK", chunk)
        found = loading._dense(tensor, torch.float32, pool)
    np.testing.assert_array_equal(found.numpy(), tensor.float32())


def bfloats(numbers):
    return torch.from_numpy(numbers).bfloat16().view(torch.uint8).numpy()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_what_from_pretrained_gives_bit_by_bit(tmp_path, tied, dtype):
    folder = tiny.save_hf(tiny.tiny_model(tie_word_embeddings=tied), tmp_path / "hf")
    theirs = MistralForCausalLM.from_pretrained(folder, dtype=dtype)
    ours = pytorch.load(folder, dtype=dtype)
    assert ours.dtype == ours.config.dtype == dtype
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is tied
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], weight), name


def test_facts_15_the_window_can_be_given_or_taken_away(tmp_path):
    folder = tiny.save_hf(MODEL, tmp_path / "hf")
    assert pytorch.load(folder).config.sliding_window == 4
    assert pytorch.load(folder, window=7).config.sliding_window == 7
    free = pytorch.load(folder, window="off")
    assert free.config.sliding_window is None
    expected = tiny.logits(tiny.tiny_model(seed=5, sliding_window=None), IDS)
    np.testing.assert_allclose(logits(free), expected, atol=1e-4)
    assert pytorch.load(tiny.save_gguf(MODEL, tmp_path / "m.gguf")).config.sliding_window is None
    with pytest.raises(ConfigError, match="whole number of keys"):
        pytorch.load(folder, window=0)


def test_several_ends_of_text_end_a_generation(tmp_path):
    folder = tiny.save_hf(MODEL, tmp_path / "hf")
    answer = pytorch.load(folder).generate(torch.tensor([IDS]), max_new_tokens=6, do_sample=False)[0, 30:].tolist()
    ends = [answer[3], 90]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "bos_token_id": 1}))
    model = pytorch.load(folder)
    assert model.generation_config.eos_token_id == ends
    stopped = model.generate(torch.tensor([IDS]), max_new_tokens=6, do_sample=False)[0, 30:].tolist()
    assert stopped == answer[: answer.index(answer[3]) + 1]


def test_it_trains_and_saves_as_any_model_does(tmp_path):
    model = pytorch.load(tiny.save_gguf(MODEL, tmp_path / "m.gguf"), window=4)
    ids = torch.tensor([IDS])
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = pytorch.MistralForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="ventoux")
    np.testing.assert_array_equal(logits(again), logits(model))


def test_facts_20_a_weight_beyond_fp16_is_reported_and_bf16_takes_it(tmp_path):
    folder = tiny.save_hf(MODEL, tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = -70000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight.*70000.*65504.*bf16 or fp32"):
        pytorch.load(folder, dtype="fp16")
    for dtype in ("bf16", "fp32"):
        assert pytorch.load(folder, dtype=dtype).model.layers[1].mlp.up_proj.weight.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "fp8"}, "dtype must be fp32, bf16, fp16 or such a torch.dtype, found 'fp8'"),
        ({"dtype": torch.int8}, "found 'torch.int8'"),
        ({"dtype": None}, "found 'None'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used by torch here: .*; use cpu"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": ""}, "device '' cannot be used"),
        ({"device": None}, "device 'None' cannot be used"),
    ],
)
def test_what_torch_does_not_have_is_refused_before_anything_is_read(settings, message):
    with pytest.raises(RequestError, match=message):
        pytorch.load("no-such-model", **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match=r"device 'cuda' cannot be used by torch here: .*; use cpu"):
        pytorch.load(device="cuda")


def test_windows_that_differ_are_refused(tmp_path):
    folder = tiny.save_hf(MODEL, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_types": ["full_attention", "sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"windows differ.*use ventoux\.load, or choose one window"):
        pytorch.load(folder)
    assert pytorch.load(folder, window=4).config.sliding_window == 4


def test_memory_that_is_used_up_is_an_error_of_ours():
    with pytest.raises(OutOfMemoryError, match="too much"), loading.memory_errors("too much"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(OutOfMemoryError), loading.memory_errors("too much"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="shape"), loading.memory_errors("too much"):
        torch.ones(3).view(2, 2)


def test_no_tensor_is_unpacked_as_a_whole_beside_the_result(tmp_path):
    """numpy's memory at its peak is a few chunks, however large the tensor: tracemalloc does not see torch's."""
    model = tiny.tiny_model(vocab_size=16384, hidden_size=256, head_dim=64)  # an embedding of 16 MB
    found = checkpoint.read(tiny.save_gguf(model, tmp_path / "m.gguf", format="Q8_0"))
    settings = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    loading.build(found.config, found.tensors, **settings)  # imports have their memory now
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        loading.build(found.config, found.tensors, **settings)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 4e6
