"""One model in every layout gives the same tensors; what does not fit together is refused by name."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import GGUF_NAMES, interleaved, renamed, save_gguf, save_hf, save_raw, tiny_model
from transformers import MistralForCausalLM

from ventoux import checkpoint, quant
from ventoux.checkpoint import names
from ventoux.errors import CheckpointError

LAYOUTS = ("hf", "hf-shards", "raw", "raw-2", "raw-safetensors", "raw-safetensors-2", "gguf")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_facts_17_every_layout_holds_the_same_tensors(
    layout: str, layouts: dict[str, Path], model: MistralForCausalLM
) -> None:
    found = checkpoint.read(layouts[layout])
    expected = {name.removeprefix("model."): weight.numpy() for name, weight in model.state_dict().items()}
    assert found.tensors.keys() == expected.keys()
    for name, tensor in found.tensors.items():
        assert tensor.shape == expected[name].shape
        np.testing.assert_array_equal(tensor.float32(), expected[name], err_msg=name)
    assert found.nbytes == sum(weight.nbytes for weight in expected.values())
    assert found.kind == layout.split("-")[0].replace("hf", "huggingface")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_describes_the_same_model(layout: str, layouts: dict[str, Path]) -> None:
    reference, found = checkpoint.read(layouts["hf"]).config, checkpoint.read(layouts[layout]).config
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
        assert getattr(found, field) == getattr(reference, field)
    assert (found.head_dim, found.rope_theta) == (reference.head_dim, reference.rope_theta)
    assert found.windows == ((None,) * 2 if layout == "gguf" else (4, 4))


def test_facts_17_a_folder_with_both_layouts_is_read_as_hugging_face(tmp_path: Path) -> None:
    save_raw(tiny_model(1), tmp_path)
    theirs = save_hf(tiny_model(2), tmp_path)
    assert (theirs / "params.json").exists()
    found = checkpoint.read(tmp_path)
    assert found.kind == "huggingface"
    other = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found.tensors["norm.weight"].float32(), other["model.norm.weight"].numpy())
    (tmp_path / "model.safetensors").unlink()
    assert checkpoint.read(tmp_path).kind == "raw"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_stay_sixteen_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(4)
    save_hf(model, tmp_path / "hf", dtype=dtype)
    save_raw(model, tmp_path / "raw", dtype=dtype)
    hf, raw = checkpoint.read(tmp_path / "hf").tensors, checkpoint.read(tmp_path / "raw").tensors
    for name, weight in model.state_dict().items():
        ours = name.removeprefix("model.")
        assert hf[ours].format == raw[ours].format == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        np.testing.assert_array_equal(hf[ours].float32(), weight.to(dtype).float().numpy())
        np.testing.assert_array_equal(raw[ours].float32(), hf[ours].float32())


@pytest.mark.parametrize("format", [name for name in quant.FORMATS if not name.endswith("_K")])
def test_packed_rows_come_out_in_half_split_order(format: str, tmp_path: Path) -> None:
    model = tiny_model(5)
    found = checkpoint.read(save_gguf(model, tmp_path / "m.gguf", format=format)).tensors
    kind = gguf.GGMLQuantizationType[format]
    for name in ("layers.1.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "layers.0.mlp.up_proj.weight"):
        weight = model.state_dict()[f"model.{name}"].numpy()
        expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)  # rows are packed one by one
        np.testing.assert_array_equal(found[name].float32(), expected)
        np.testing.assert_array_equal(found[name].rows(np.array([5, 1, 5], np.int32)), expected[[5, 1, 5]])


@pytest.mark.parametrize("format", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read_as_ggml_reads_them(format: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 32}
    path = save_gguf(tiny_model(6, **sizes), tmp_path / "m.gguf", format=format)
    found = checkpoint.read(path).tensors
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for ours, name in (("embed_tokens", "token_embd"), ("layers.1.mlp.down_proj", "blk.1.ffn_down")):
        packed = theirs[f"{name}.weight"]
        expected = gguf.quants.dequantize(packed.data, packed.tensor_type)
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found[f"{ours}.weight"].float32(), expected)


def test_nothing_is_copied(layouts: dict[str, Path]) -> None:
    for layout in ("hf", "hf-shards", "raw", "raw-safetensors", "gguf"):
        for tensor in checkpoint.read(layouts[layout]).tensors.values():
            assert not tensor.data.flags.owndata
            assert not tensor.data.flags.writeable
            assert tensor.data.flags.c_contiguous


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (2, 4), (3, 16)])
def test_half_split_order_undoes_the_converter(heads: int, head_dim: int) -> None:
    rows = torch.arange(heads * head_dim).float()[:, None]
    order = names.half_split_order(heads, head_dim)
    np.testing.assert_array_equal(interleaved(rows, heads).numpy()[order], rows.numpy())


@pytest.mark.parametrize("write", [save_hf, save_raw, save_gguf])
def test_tied_embeddings_have_no_head(write: object, tmp_path: Path) -> None:
    model = tiny_model(7, tie_word_embeddings=True)
    found = checkpoint.read(write(model, tmp_path / "m.gguf"))  # type: ignore[operator]
    assert found.config.tie_embeddings
    assert "lm_head.weight" not in found.tensors


def test_a_raw_head_is_there_or_said_to_be_tied(tmp_path: Path) -> None:
    folder = save_raw(tiny_model(7, tie_word_embeddings=True), tmp_path, safetensors=True)
    params, file = json.loads((folder / "params.json").read_text()), folder / "consolidated.safetensors"
    weights = load_file(file)
    save_file(weights | {"output.weight": weights["tok_embeddings.weight"].clone()}, file)
    assert "lm_head.weight" not in checkpoint.read(folder).tensors
    save_file(weights | {"output.weight": weights["tok_embeddings.weight"] + 1}, file)
    with pytest.raises(CheckpointError, match=r"tensor 'output\.weight': .*ties it to the embedding, but it differs"):
        checkpoint.read(folder)
    save_file(weights, file)
    (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if k != "tied_embeddings"}))
    with pytest.raises(CheckpointError, match=r'it is missing; .*say "tied_embeddings": true in params\.json'):
        checkpoint.read(folder)


def test_a_tied_head_that_is_there_must_be_the_embedding(tmp_path: Path) -> None:
    folder = save_hf(tiny_model(7, tie_word_embeddings=True), tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert "lm_head.weight" not in checkpoint.read(folder).tensors
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'lm_head\.weight': .*differs"):
        checkpoint.read(folder)


def change(folder: Path, edit: dict[str, torch.Tensor | None]) -> Path:
    """A Hugging Face folder with some tensors replaced, added or (None) removed."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in edit.items():
        if weight is None:
            del weights[name]
        else:
            weights[name] = weight
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"model.norm.weight": None}, r"tensor 'model\.norm\.weight': it is missing"),
        ({"model.extra.weight": torch.ones(3)}, r"1 tensor\(s\).*'model\.extra\.weight'"),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(96, 64)}, r"'model\.layers\.2\.mlp\.up_proj\.weight'"),
        ({"model.norm.weight": torch.ones(65)}, r"'model\.norm\.weight': expected shape \(64,\).*\(65,\)"),
        ({"lm_head.weight": torch.ones(64, 96)}, r"'lm_head\.weight': expected shape \(96, 64\).*\(64, 96\)"),
        ({"lm_head.weight": torch.ones(96, 64, dtype=torch.int8)}, r"'lm_head\.weight': expected a dtype .*'I8'"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, r"q_proj\.bias"),
    ],
)
def test_each_tensor_once_and_none_left_over(
    edit: dict[str, torch.Tensor | None], reason: str, layouts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(layouts["hf"], tmp_path / "hf"))
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.read(change(folder, edit))


def test_buffers_that_follow_from_the_config_are_passed_over(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["hf"], tmp_path / "hf"))
    change(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert checkpoint.read(folder).tensors.keys() == checkpoint.read(layouts["hf"]).tensors.keys()


def test_scaled_rotary_frequencies_are_not_passed_over(model: MistralForCausalLM, tmp_path: Path) -> None:
    for factor, fine in ((1.0, True), (4.0, False)):
        path = tmp_path / f"{factor}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        source = gguf.GGUFReader(save_gguf(model, tmp_path / "plain.gguf"))
        for key, field in source.fields.items():
            if key.startswith("llama."):
                writer.add_key_value(key, field.contents(), field.types[0])
        for name, weight in renamed(model, GGUF_NAMES).items():
            writer.add_tensor(name, weight.numpy())
        writer.add_tensor("rope_freqs.weight", np.full(8, factor, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if fine:
            assert "rope_freqs.weight" not in checkpoint.read(path).tensors
        else:
            with pytest.raises(CheckpointError, match="rope_freqs"):
                checkpoint.read(path)


@pytest.mark.parametrize("layout", ["raw-2", "raw-safetensors-2"])
def test_raw_shards_must_be_complete_and_agree(layout: str, layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts[layout], tmp_path / "raw"))
    second = next(folder.glob("consolidated.01.*"))
    second.unlink()
    with pytest.raises(CheckpointError, match=r"expected shape .* found"):
        checkpoint.read(folder)


def test_raw_norms_of_all_shards_are_equal(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["raw-2"], tmp_path / "raw"))
    weights = torch.load(folder / "consolidated.01.pth")
    weights["norm.weight"] += 1
    torch.save(weights, folder / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"'norm\.weight': several files have it whole"):
        checkpoint.read(folder)


def test_raw_shards_may_hold_different_tensors(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["raw"], tmp_path / "raw"))
    weights = torch.load(folder / "consolidated.00.pth")
    rest = {name: weights.pop(name) for name in list(weights)[::2]}
    torch.save(weights, folder / "consolidated.00.pth")
    torch.save(rest, folder / "consolidated.01.pth")
    whole = checkpoint.read(layouts["raw"]).tensors
    for name, tensor in checkpoint.read(folder).tensors.items():
        np.testing.assert_array_equal(tensor.float32(), whole[name].float32())


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("../model-00001-of-00002.safetensors", "expected the name of a .safetensors file"),
        ("/etc/passwd", "expected the name of a .safetensors file"),
        ("evil.bin", "expected the name of a .safetensors file"),
        ("absent.safetensors", r"absent\.safetensors: cannot be read"),
        (7, "weight_map: expected an object"),
    ],
)
def test_an_index_names_only_files_beside_it(
    file: object, reason: str, layouts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(layouts["hf-shards"], tmp_path / "hf"))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.read(folder)


def test_an_index_and_its_files_agree(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["hf-shards"], tmp_path / "hf"))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for edit, reason in (
        ({"ghost.weight": content["weight_map"]["model.norm.weight"]}, "'ghost.weight': it is missing"),
        ({"model.norm.weight": content["weight_map"]["lm_head.weight"]}, r"'model\.norm\.weight'.*says that it stands"),
    ):
        index.write_text(json.dumps({"weight_map": content["weight_map"] | edit}))
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.read(folder)


def test_old_hugging_face_folders_of_torch_files(model: MistralForCausalLM, tmp_path: Path) -> None:
    save_hf(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = checkpoint.read(tmp_path).tensors
    np.testing.assert_array_equal(found["lm_head.weight"].float32(), model.lm_head.weight.detach().numpy())


def test_paths_that_are_no_checkpoint(layouts: dict[str, Path], tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "absent", "there is no such file or folder"),
        (tmp_path, r"expected config\.json .* found nothing"),
        (layouts["hf"] / "config.json", "give the folder"),
        (layouts["raw"] / "consolidated.00.pth", "give the folder"),
        (Path(__file__), "not a GGUF file"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.read(path)
    shutil.copy(layouts["hf"] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"found 'config\.json'"):
        checkpoint.read(tmp_path)


def test_a_gguf_file_under_another_name_is_read(layouts, tmp_path):
    other = tmp_path / "model.bin"
    other.write_bytes(layouts["gguf"].read_bytes())
    assert checkpoint.read(other).kind == "gguf"


@pytest.mark.parametrize(
    ("there", "said"),
    [("config.json", "config.json is here, its weights are not"), ("a.gguf", "name the GGUF file itself: .*a.gguf")],
)
def test_an_incomplete_folder_says_what_is_missing(tmp_path, there, said):
    (tmp_path / there).write_text("{}")
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(tmp_path)
