"""Every layout to every other, and back, to the byte."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import logits, save_gguf, save_hf, save_raw, tiny_model
from transformers import AutoModelForCausalLM, MistralForCausalLM

import ventoux
from ventoux import checkpoint
from ventoux.conversion import Converted
from ventoux.errors import CheckpointError, ConfigError, ConversionError

TO = ("raw", "hf", "gguf")
IDS = [5, 80, 3, 3, 17, 60, 2, 9, 41]


def named(folder: Path, to: str) -> Path:
    return folder / ("model.gguf" if to == "gguf" else to)


def quiet(*args: object, **settings: object) -> Converted:
    return ventoux.convert(*args, **settings, progress=lambda here, total: None)


def numbers(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.float32() for name, tensor in checkpoint.read(path).tensors.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("source", [*TO, "pth", "shards", "parallel"])
def test_any_to_any_keeps_every_number(source: str, to: str, model: MistralForCausalLM, tmp_path: Path) -> None:
    start = {
        "raw": lambda path: save_raw(model, path, safetensors=True),
        "hf": lambda path: save_hf(model, path),
        "gguf": lambda path: save_gguf(model, path / "model.gguf"),
        "pth": lambda path: save_raw(model, path),
        "shards": lambda path: save_hf(model, path, shards=True),
        "parallel": lambda path: save_raw(model, path, shards=2),
    }[source](tmp_path / "source")
    window = 4 if source == "gguf" else None
    done = quiet(start, named(tmp_path, to), to=to, window=window)
    same(numbers(start), numbers(done.path))
    before, after = checkpoint.read(start).config, checkpoint.read(done.path).config
    for field in ("vocab_size", "hidden_size", "num_layers", "num_kv_heads", "head_dim", "rms_norm_eps", "rope_theta"):
        assert getattr(before, field) == getattr(after, field)
    assert after.windows == (4, 4)
    assert done.formats == {"F32": len(before.windows) * 9 + 3}
    files = [done.path] if done.path.is_file() else list(done.path.iterdir())
    assert done.nbytes == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6}}])
def test_raw_to_hf_to_gguf_to_raw_gives_the_same_files(
    dtype: torch.dtype, changes: dict[str, object], tmp_path: Path
) -> None:
    start = save_raw(tiny_model(4, **changes), tmp_path / "raw", safetensors=True, dtype=dtype)
    quiet(start, tmp_path / "hf", to="hf")
    quiet(tmp_path / "hf", tmp_path / "m.gguf", to="gguf")
    quiet(tmp_path / "m.gguf", tmp_path / "back", to="raw")
    weights = "consolidated.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (start / weights).read_bytes()
    before, after = (json.loads((folder / "params.json").read_text()) for folder in (start, tmp_path / "back"))
    assert before == after


def test_what_is_written_twice_is_written_alike(raw: Path, tmp_path: Path) -> None:
    for to in TO:
        quiet(raw, named(tmp_path / "1", to), to=to)
        quiet(raw, named(tmp_path / "2", to), to=to)
        for file in (tmp_path / "1").rglob("*.*"):
            if file.is_file():
                assert file.read_bytes() == (tmp_path / "2" / file.relative_to(tmp_path / "1")).read_bytes()


@pytest.mark.parametrize("shard_size", [None, 30_000])
def test_transformers_reads_what_we_save(
    raw: Path, model: MistralForCausalLM, shard_size: int | None, tmp_path: Path
) -> None:
    quiet(raw, tmp_path / "hf", to="hf", shard_size=shard_size)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    assert theirs.dtype == torch.float32
    assert theirs.config.sliding_window == 4
    np.testing.assert_allclose(logits(theirs, IDS), logits(model, IDS), atol=1e-5, rtol=0)
    ours = ventoux.load(tmp_path / "hf", compute="f32")
    np.testing.assert_allclose(ours.logits(IDS), logits(theirs, IDS), atol=2e-5, rtol=0)
    with safe_open(next((tmp_path / "hf").glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_transformers_saves_of_what_we_saved(raw: Path, tmp_path: Path) -> None:
    quiet(raw, tmp_path / "hf", to="hf")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    quiet(tmp_path / "theirs", tmp_path / "back", to="raw")
    assert (tmp_path / "back" / "consolidated.safetensors").read_bytes() == (
        raw / "consolidated.safetensors"
    ).read_bytes()


def test_shards_are_of_the_chosen_size_and_an_index_names_them(raw: Path, tmp_path: Path) -> None:
    folder = quiet(raw, tmp_path / "hf", to="hf", shard_size=30_000).path
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("model-*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    sizes = [sum(weight.nbytes for weight in load_file(shard).values()) for shard in shards]
    assert len(shards) > 5
    assert max(sizes) <= 30_000
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert {name: shard.name for shard in shards for name in load_file(shard)} == index["weight_map"]


def test_facts_17_a_folder_of_both_layouts_is_not_mixed(tmp_path: Path) -> None:
    both = tmp_path / "both"
    save_raw(tiny_model(1, sliding_window=7), both, safetensors=True)
    save_hf(tiny_model(2), both)
    quiet(both, tmp_path / "one", to="raw")
    save_raw(tiny_model(2), tmp_path / "expected", safetensors=True)
    same(numbers(tmp_path / "one"), numbers(tmp_path / "expected"))
    assert checkpoint.read(tmp_path / "one").config.windows == (4, 4)
    quiet(both, tmp_path / "other", to="hf", prefer_raw=True)
    assert checkpoint.read(tmp_path / "other").config.windows == (7, 7)
    assert sorted(file.name for file in (tmp_path / "other").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("format", ["Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_blocks_go_to_gguf_as_they_are(format: str, tmp_path: Path) -> None:
    source = save_gguf(tiny_model(6), tmp_path / "source.gguf", format=format)
    quiet(source, tmp_path / "copy.gguf", to="gguf")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "copy.gguf").tensors}
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.tensor_type == ours[name].tensor_type
        assert tensor.data.tobytes() == ours[name].data.tobytes()
    assert source.read_bytes() == (tmp_path / "copy.gguf").read_bytes()


def test_k_quants_go_to_gguf_as_they_are_and_to_folders_as_floats(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 32}
    source = save_gguf(tiny_model(6, **sizes), tmp_path / "source.gguf", format="Q4_K")
    assert quiet(source, tmp_path / "copy.gguf", to="gguf").formats == {"Q4_K": 16, "F32": 5}
    assert source.read_bytes() == (tmp_path / "copy.gguf").read_bytes()
    done = quiet(source, tmp_path / "hf", to="hf")
    assert done.formats == {"F32": 21}
    assert any("Q4_K became F32" in remark for remark in done.remarks)
    same(numbers(source), numbers(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("dtype", "blocks", "ends"),
    [(name, name.upper(), name.upper()) for name in ("f32", "f16", "bf16", "q8_0")] + [("q4_0", "Q4_0", "Q8_0")],
)
def test_ggml_reads_our_gguf_in_every_format(dtype: str, blocks: str, ends: str, raw: Path, tmp_path: Path) -> None:
    done = quiet(raw, tmp_path / "m.gguf", to="gguf", dtype=dtype)
    floats = {tensor.name: tensor.data for tensor in gguf.GGUFReader(save_again(raw, tmp_path)).tensors}
    for tensor in gguf.GGUFReader(done.path).tensors:
        norm = len(tensor.shape) == 1
        kind = "F32" if norm else ends if tensor.name in ("token_embd.weight", "output.weight") else blocks
        assert tensor.tensor_type.name == kind, tensor.name
        expected = gguf.quants.quantize(floats[tensor.name], tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name
    assert any("Q8_0, for less error" in remark for remark in done.remarks) == (dtype == "q4_0")
    assert ventoux.load(done.path).logits(IDS).shape == (len(IDS), 96)


def save_again(raw: Path, folder: Path) -> Path:
    """The same weights in float32, written by ggml's own library."""
    return save_gguf(tiny_model(3), folder / "floats.gguf")


def test_rows_that_fill_no_block_fall_back_to_f16_and_a_remark_says_so(tmp_path: Path) -> None:
    start = save_raw(tiny_model(8, intermediate_size=80), tmp_path / "raw", safetensors=True)
    done = quiet(start, tmp_path / "m.gguf", to="gguf", dtype="q4_0")
    assert done.formats == {"Q4_0": 12, "F32": 5, "Q8_0": 2, "F16": 2}
    assert any(remark.startswith("2 tensor(s) are F16: rows do not fill blocks of 32") for remark in done.remarks)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_and_numbers_survive_any_shape(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    kv_heads = data.draw(st.integers(1, 3))
    heads, size = kv_heads * data.draw(st.integers(1, 3)), 2 * data.draw(st.integers(1, 5))
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size, "hidden_size": 24}
    tied = data.draw(st.booleans())
    model = tiny_model(data.draw(st.integers(0, 99)), **shape, intermediate_size=40, tie_word_embeddings=tied)
    dtype = data.draw(st.sampled_from(["f32", "f16", "bf16", None]))
    path, expected = save_raw(model, folder / "0", safetensors=True), None
    for step in range(1, 4):
        to = data.draw(st.sampled_from(TO))
        target = folder / str(step)
        quiet(path, target, to=to, dtype=dtype if step == 1 else None)
        path, found = target, numbers(target)
        expected = found if expected is None else expected
        same(expected, found)
    rounded = {"f16": torch.float16, "bf16": torch.bfloat16}.get(dtype or "", torch.float32)
    for name, weight in model.state_dict().items():
        ours = name.removeprefix("model.")
        if ours in expected and "norm" not in ours:
            np.testing.assert_array_equal(expected[ours], weight.to(rounded).float().numpy())


def test_packed_rows_move_without_being_unpacked(tmp_path: Path) -> None:
    """Q4_0 with q and k in another order: raw layout's rows are GGUF's, Hugging Face's are not."""
    source = save_gguf(tiny_model(9), tmp_path / "a.gguf", format="Q4_0")
    quiet(source, tmp_path / "hf", to="hf")
    quiet(tmp_path / "hf", tmp_path / "b.gguf", to="gguf", dtype="q4_0")
    same(
        {name: n for name, n in numbers(source).items() if "proj" in name},
        {name: n for name, n in numbers(tmp_path / "b.gguf").items() if "proj" in name},
    )


def test_numbers_that_overflow_name_their_tensor(model: MistralForCausalLM, raw: Path, tmp_path: Path) -> None:
    loud = Path(shutil.copytree(raw, tmp_path / "loud"))
    weights = load_file(loud / "consolidated.safetensors")
    weights["layers.1.feed_forward.w1.weight"][3, 5] = 7e4
    save_file(weights, loud / "consolidated.safetensors")
    for to in TO:
        with pytest.raises(ConversionError, match=r"'layers\.1\.mlp\.gate_proj\.weight': .*70000.*use bf16 or f32"):
            quiet(loud, named(tmp_path, to), to=to, dtype="f16")
        assert not named(tmp_path, to).exists()
    quiet(loud, tmp_path / "fine", to="hf", dtype="bf16")
    weights["layers.1.feed_forward.w1.weight"][3, 5] = float("nan")
    save_file(weights, loud / "consolidated.safetensors")
    with pytest.raises(ConversionError, match="infinite or none at all"):
        quiet(loud, tmp_path / "nan.gguf", to="gguf", dtype="q8_0")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fine", "loud"]


def test_windows_that_a_layout_cannot_say_are_refused(raw: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(raw, tmp_path / "mixed"))
    params = json.loads((mixed / "params.json").read_text())
    (mixed / "params.json").write_text(json.dumps(params | {"sliding_window": [None, 4]}))
    with pytest.raises(ConfigError, match="one sliding window for all layers, but they have None, 4"):
        quiet(mixed, tmp_path / "m.gguf", to="gguf")
    done = quiet(mixed, tmp_path / "hf", to="hf")
    assert checkpoint.read(done.path).config.windows == (None, 4)
    assert any("layer_types" in remark for remark in done.remarks)
    (mixed / "params.json").write_text(json.dumps(params | {"sliding_window": [3, 4]}))
    with pytest.raises(ConfigError, match=r"one width .* but the layers have \[3, 4\]"):
        quiet(mixed, tmp_path / "hf2", to="hf")
    quiet(mixed, tmp_path / "raw", to="raw")
    assert checkpoint.read(tmp_path / "raw").config.windows == (3, 4)
    assert checkpoint.read(quiet(mixed, tmp_path / "off", to="hf", window="off").path).config.windows == (None, None)


def test_a_damaged_source_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(raw, tmp_path / "cut"))
    file = cut / "consolidated.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        quiet(cut, tmp_path / "hf", to="hf")
    assert [each.name for each in tmp_path.iterdir()] == ["cut"]


def test_hugging_face_keeps_what_is_not_ours(hf: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(hf, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"pad_token_id": 7, "initializer_range": 0.5}))
    generation = {"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.5, "transformers_version": "5.0.0"}
    (source / "generation_config.json").write_text(json.dumps(generation))
    for name in ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "evil.py", "notes.txt"):
        (source / name).write_text("{}")
    folder = quiet(source, tmp_path / "out", to="hf").path
    written = json.loads((folder / "config.json").read_text())
    assert (written["pad_token_id"], written["initializer_range"]) == (7, 0.5)
    assert json.loads((folder / "generation_config.json").read_text()) == generation
    assert checkpoint.read(folder).config.eos_ids == (2, 5)
    assert {each.name for each in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja"),
    }
    through = quiet(folder, tmp_path / "m.gguf", to="gguf").path
    assert checkpoint.read(through).config.eos_ids == (2, 5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"to": "onnx"}, "to must be one of raw, hf, gguf, found 'onnx'"),
        ({"to": "hf", "dtype": "q4_0"}, "dtype of hf must be one of f32, f16, bf16, found 'q4_0'; GGUF has it"),
        ({"to": "gguf", "dtype": "Q4_0"}, "found 'Q4_0'"),
        ({"to": "raw", "shard_size": 5}, "shard_size is for hf"),
        ({"to": "hf", "shard_size": 0}, "at least 1, found 0"),
        ({"to": "hf", "context_length": 0}, "context_length must be"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, object], said: str, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=said.replace("[", r"\[")):
        quiet(raw, tmp_path / "x", **settings)
    assert not list(tmp_path.iterdir())
