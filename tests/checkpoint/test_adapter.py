"""The reader of LoRA adapters: what PEFT saves, and nothing that is more or less than that."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

from ventoux import checkpoint
from ventoux.checkpoint.adapter import Adapter, _first, read_adapter
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError

LAYER = "base_model.model.model.layers.0"


@pytest.fixture(scope="module")
def config(layouts: dict[str, Path]) -> ModelConfig:
    return checkpoint.read(layouts["hf"]).config


@pytest.fixture(scope="module")
def saved(model: MistralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    lora.save(model, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def changed(folder: Path, **keys: Any) -> Path:
    """Keys of adapter_config.json set, or taken out with None."""
    path = folder / "adapter_config.json"
    described = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in described.items() if value != "nothing"}))
    return folder


def rewritten(folder: Path, change: Any) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


def products(adapter: Adapter) -> dict[str, Any]:
    """scale * B A of each layer, float32 [out, in]."""
    return {name: pair.scale * pair.b.float32() @ pair.a.float32() for name, pair in adapter.pairs.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 1, "lora_alpha": 0.5},
        {"use_rslora": True},
        {"target_modules": ["v_proj", "down_proj"]},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 7, "model.layers.1.mlp.up_proj": 2}, "alpha_pattern": {"1.self_attn.q_proj": 3}},
        {"rank_pattern": {r"^model\.layers\.0\.self_attn\.v_proj": 3}, "use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
    ids=str,
)
def test_what_is_added_is_what_peft_merges(
    model: MistralForCausalLM, config: ModelConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    wrapped = lora.save(model, tmp_path, **settings)
    found = products(read_adapter(tmp_path, config))
    expected = {
        name.removeprefix("base_model.model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, atol=1e-6, err_msg=name)


def test_a_bin_file_and_an_adapter_of_the_bare_model_are_read(config: ModelConfig, folder: Path) -> None:
    expected = products(read_adapter(folder, config))
    tensors = load_file(folder / "adapter_model.safetensors")
    bare = {name.replace("model.model.", "model.", 1): weight for name, weight in tensors.items()}
    save_file(bare, folder / "adapter_model.safetensors")
    np.testing.assert_equal(products(read_adapter(folder, config)), expected)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    np.testing.assert_equal(products(read_adapter(folder, config)), expected)


def test_both_names_of_one_layer_are_refused(config: ModelConfig, folder: Path) -> None:
    rewritten(folder, lambda t: t.update({n.replace("model.model.", "model.", 1): w + 1 for n, w in t.items()}))
    with pytest.raises(CheckpointError, match=r"stands there twice, with and without model\. before it"):
        read_adapter(folder, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "'use_dora': True is more than plain LoRA"),
        ({"bias": "lora_only"}, "'bias': 'lora_only' is more than plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save': a list is more than plain LoRA"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "expected lora_A or lora_B of a linear layer"),
        ({"target_modules": ["q_proj", "lm_head"]}, "expected lora_A or lora_B of a linear layer"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base model's own weights too"),
        ({"lora_bias": True}, "'lora_bias': True is more than plain LoRA"),
        ({"trainable_token_indices": [3]}, "'trainable_token_indices': a list is more than plain LoRA"),
        ({"rank_pattern": {r".*\.q_proj": 3}}, "expected names of modules, found the pattern"),
    ],
    ids=str,
)
def test_more_than_plain_lora_says_to_merge(
    model: MistralForCausalLM, config: ModelConfig, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    lora.save(model, tmp_path, **settings)
    with pytest.raises(CheckpointError, match=message) as error:
        read_adapter(tmp_path, config)
    assert "merge_and_unload()" in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected LORA, found 'IA3'"),
        ({"peft_type": "nothing"}, "peft_type: expected LORA, found None"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out': True is more"),
        ({"invented_later": 1}, "'invented_later': 1 is more"),
        ({"init_lora_weights": 1}, "init_lora_weights: 1 changes"),
        ({"r": 0}, "r: expected a whole number of at least 1, found 0"),
        ({"r": True}, "r: expected a whole number"),
        ({"r": "nothing"}, "r: expected a whole number of at least 1, found None"),
        ({"r": 5}, r"expected shape \(5, 96\) by the model and adapter_config.json, found \(4, 96\)"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number, found nan"),
        ({"lora_alpha": 10**400}, "lora_alpha: expected a number, found 1000"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern: expected a whole number"),
        ({"rank_pattern": {"(a+)+$": 1}}, "found the pattern"),
        ({"rank_pattern": {"": 1}}, "found the pattern ''"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern: expected a number"),
    ],
    ids=str,
)
def test_a_description_that_is_wrong_is_refused(
    config: ModelConfig, folder: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(changed(folder, **keys), config)


def test_what_a_later_peft_adds_and_leaves_off_is_no_matter(config: ModelConfig, folder: Path) -> None:
    changed(folder, invented=None, also=False, more={}, rank_pattern="nothing", bias="nothing", use_rslora="nothing")
    assert len(read_adapter(folder, config).pairs) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.mlp.up_proj.lora_B.weight"), r"mlp.up_proj.lora_B.weight.*it is missing"),
        (lambda t: t.update({f"{LAYER}.mlp.up_proj.lora_C.weight": torch.ones(1)}), "expected lora_A or lora_B"),
        (lambda t: t.update({"layers.0.mlp.up_proj.lora_A.weight": torch.ones(1)}), "expected lora_A or lora_B"),
        (
            lambda t: t.update({f"{LAYER[:-1]}7.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}),
            "this model has 2 layers",
        ),
        (lambda t: t.update({f"{LAYER}.self_attn.q_proj.lora_A.weight": torch.ones(4)}), r"found \(4,\)"),
        (
            lambda t: t.update({f"{LAYER}.self_attn.q_proj.lora_B.weight": torch.ones(4, 64)}),
            r"expected shape \(64, 4\)",
        ),
        (lambda t: t[f"{LAYER}.self_attn.o_proj.lora_A.weight"].fill_(torch.nan), "numbers that are not finite"),
        (lambda t: t[f"{LAYER}.self_attn.o_proj.lora_B.weight"][1].fill_(-torch.inf), "numbers that are not finite"),
        (lambda t: t.clear(), "there are no tensors in it"),
    ],
)
def test_tensors_that_are_wrong_are_refused(config: ModelConfig, folder: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(rewritten(folder, change), config)


def test_a_folder_that_is_no_adapter_says_what_it_is(
    config: ModelConfig, layouts: dict[str, Path], folder: Path
) -> None:
    for path, reason in (
        (layouts["hf"], "it is not in there"),
        (layouts["gguf"], "it is a file"),
        (folder / "none", "there is no such folder"),
    ):
        with pytest.raises(
            CheckpointError, match=f"expected a LoRA adapter's folder with adapter_config.json.*{reason}"
        ):
            read_adapter(path, config)
    with pytest.raises(CheckpointError, match=r"this is a LoRA adapter.*--adapter.*merge_and_unload\(\)"):
        checkpoint.read(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        read_adapter(folder, config)


KEYS = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights")
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["LORA", "^", "."])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=9), values, max_size=4))
def test_any_description_is_read_or_refused(config: ModelConfig, folder: Path, keys: dict[str, Any]) -> None:
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **keys}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    with suppress(CheckpointError):
        assert all(np.isfinite(pair.scale) for pair in read_adapter(folder, config).pairs.values())


pieces = st.lists(
    st.sampled_from(["model", "layers", "1", "11", "self_attn", "q_proj", "proj"]), min_size=1, max_size=4
)
names = pieces.map(".".join)


@given(st.lists(st.tuples(st.sampled_from(["", "^"]), names), max_size=4), names)
def test_patterns_mean_what_they_mean_to_peft(patterns: list[tuple[str, str]], module: str) -> None:
    """Theirs is a regular expression over a whole name or the end of one, at a dot."""
    numbers = {begin + name: float(i) for i, (begin, name) in enumerate(patterns)}
    theirs = get_pattern_key([key.replace(".", r"\.") for key in numbers], module).replace("\\", "")
    assert _first(numbers, module, -1.0) == numbers.get(theirs, -1.0)
