"""transformers' own loader reads what we save, and we read what it saves."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import logits, tiny_model
from tiny_tokenizer import VOCAB, tiny_tokenizer

import ventoux
from ventoux import pytorch

IDS = [1, 50, 7, 93, 12, 4, 80, 33, 21]  # past a window of 4
HEADS = ("MistralModel", "MistralForSequenceClassification", "MistralForTokenClassification")


def ours_from(folder, **settings):
    return pytorch.MistralForCausalLM.from_pretrained(folder, **{"attn_implementation": "eager"} | settings)


def theirs_from(folder, **settings):
    return transformers.MistralForCausalLM.from_pretrained(folder, attn_implementation="eager", **settings)


def contents(folder):
    """All tensors of a folder, and its config."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors, json.loads((folder / "config.json").read_text())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_what_both_save_is_the_same_and_both_read_it(tmp_path, tied, dtype, shards):
    model = tiny_model(tie_word_embeddings=tied).to(dtype)
    size = {"max_shard_size": "8KB"} if shards else {}
    model.save_pretrained(tmp_path / "theirs", **size)
    ours = ours_from(tmp_path / "theirs")
    assert ours.dtype == dtype  # "auto" is transformers' default: the file's
    ours.save_pretrained(tmp_path / "ours", **size)
    written = [sorted(path.name for path in (tmp_path / who).iterdir()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    assert (len(written[0]) > 10) is shards

    (found, config), (expected, their_config) = contents(tmp_path / "ours"), contents(tmp_path / "theirs")
    assert_same(found, expected)
    assert ("lm_head.weight" in found) is not tied
    assert config == their_config
    back = theirs_from(tmp_path / "ours")
    assert_same(back.state_dict(), model.state_dict())
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is tied
    np.testing.assert_allclose(logits(ours.float().eval(), IDS), logits(back.float().eval(), IDS), rtol=0, atol=1e-5)


def test_nothing_is_missing_and_nothing_left_over(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    _, report = pytorch.MistralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report


def test_the_cpu_backend_reads_what_we_save(tmp_path):
    model = pytorch.MistralForCausalLM._from_config(tiny_model().config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    found = ventoux.load(tmp_path, compute="f32").logits(IDS)
    np.testing.assert_allclose(found, logits(model, IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_saved_and_read(tmp_path, name):
    tiny_model().save_pretrained(tmp_path / "base")
    ours = getattr(pytorch, name).from_pretrained(tmp_path / "base").eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()
    assert_same(theirs.state_dict(), ours.state_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(getattr(pytorch, name).from_pretrained(tmp_path / "theirs").state_dict(), ours.state_dict())
    base = tiny_model().state_dict()
    inner = ours.state_dict()
    assert torch.equal(
        inner["norm.weight" if name == "MistralModel" else "model.norm.weight"], base["model.norm.weight"]
    )


def test_a_new_head_is_drawn_as_transformers_draws_it(tmp_path):
    tiny_model(initializer_range=0.05).save_pretrained(tmp_path)
    heads = []
    for classes in (transformers, pytorch):
        torch.manual_seed(0)
        heads.append(classes.MistralForSequenceClassification.from_pretrained(tmp_path, num_labels=3).score.weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": torch.bfloat16},
        {"dtype": "bfloat16", "device_map": "cpu"},
        {"dtype": "auto", "device_map": "auto"},
        {"device_map": {"": "cpu"}, "low_cpu_mem_usage": True},
        {"use_safetensors": True},
    ],
    ids=str,
)
def test_from_pretrained_takes_transformers_arguments(tmp_path, settings):
    tiny_model().save_pretrained(tmp_path)
    ours, theirs = ours_from(tmp_path, **settings).eval(), theirs_from(tmp_path, **settings).eval()
    assert ours.dtype == theirs.dtype
    assert getattr(ours, "hf_device_map", None) == getattr(theirs, "hf_device_map", None)
    found = [model(torch.tensor([IDS]), use_cache=False).logits.detach().float() for model in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=0, atol=0 if ours.dtype == torch.bfloat16 else 1e-5)


WHERE = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "settings",
    [{"device_map": WHERE | {"lm_head": "cpu"}}, {"device_map": "auto", "max_memory": {"cpu": 200_000}}],
    ids=["a map", "too little memory"],
)
def test_layers_may_lie_on_disk(tmp_path, tied, settings):
    """They are fetched for each forward pass; generation with our cache works, and the weights can be saved again."""
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    split = ours_from(tmp_path / "model", offload_folder=tmp_path / "offload", **settings).eval()
    assert split.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    np.testing.assert_allclose(logits(split, IDS), logits(model, IDS), rtol=0, atol=1e-5)
    whole = ours_from(tmp_path / "model").eval()
    asked = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.tensor([IDS])
    assert torch.equal(split.generate(ids, **asked), whole.generate(ids, **asked))
    split.save_pretrained(tmp_path / "again")
    assert_same(contents(tmp_path / "again")[0], contents(tmp_path / "model")[0])


def test_the_auto_classes_after_register(tmp_path):
    tiny_model(vocab_size=VOCAB).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    script = (
        "import sys, ventoux.pytorch; from transformers import AutoModelForCausalLM as Auto, pipeline\n"
        "before = Auto.from_pretrained(sys.argv[1]); ventoux.pytorch.register()\n"
        "after = Auto.from_pretrained(sys.argv[1], attn_implementation='ventoux', device_map='auto')\n"
        "pipe = pipeline('text-generation', model=sys.argv[1])\n"
        "for model in (before, after, pipe.model): print(type(model).__module__, model.config._attn_implementation)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "transformers.models.mistral.modeling_mistral sdpa",
        "ventoux.pytorch.model ventoux",
        "ventoux.pytorch.model sdpa",
    ]


def test_a_folder_without_weights_says_so(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        pytorch.MistralForCausalLM.from_pretrained(tmp_path)
