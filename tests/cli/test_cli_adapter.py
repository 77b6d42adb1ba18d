"""`--adapter`: the commands that generate take one; the others, and `convert`, say what to do."""

import json

import lora
import pytest
import tiny

BASE = tiny.tiny_model(vocab_size=32000, hidden_size=32, intermediate_size=32)  # what the fixture `folder` holds


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    lora.save(BASE, path)
    return path


def test_the_commands_that_generate_take_an_adapter(ventoux, folder, adapter):
    asked = ["--max-tokens", 8, "--temperature", 0]
    for command in (
        ["generate", "-m", folder, "Hello", "--ignore-eos"],
        ["chat", "-m", folder, "--message", "Hello", "--ignore-eos"],
        ["demo", folder],
        ["interactive", folder],
        ["interactive", folder, "--instruct"],
    ):
        status, plain, _ = ventoux(*command, *asked, stdin="Hello\n")
        assert status == 0
        status, adapted, _ = ventoux(*command, *asked, "--adapter", adapter, stdin="Hello\n")
        assert status == 0
        assert adapted != plain, command


def test_the_text_is_the_adapted_models(ventoux, folder, adapter):
    asked = ["generate", "Hello", "--max-tokens", 12, "--temperature", 0, "--ignore-eos", "--json", "-m", folder]
    ids = json.loads(ventoux(*asked, "--adapter", adapter)[1])["ids"]
    prompt = json.loads(ventoux("tokenize", "-m", folder, "Hello", "--json")[1])["ids"]
    likeliest = tiny.logits(lora.adapted(BASE), prompt + ids).argmax(-1)
    assert likeliest[len(prompt) - 1 : -1].tolist() == ids


def test_what_is_no_adapter_is_one_line(ventoux, folder, adapter, tmp_path):
    for wrong in (folder, tmp_path / "none", ""):
        status, _, err = ventoux("generate", "-m", folder, "x", "--adapter", wrong)
        assert status == 1
        assert "expected a LoRA adapter's folder with adapter_config.json" in err
        assert err.count("\n") == 1
    status, _, err = ventoux("bench", "-m", folder, "--adapter", adapter)
    assert (status, "unrecognized arguments: --adapter" in err) == (2, True)


@pytest.mark.parametrize("command", [["convert", "{}", "out", "--to", "raw"], ["generate", "-m", "{}", "x"]])
def test_an_adapter_in_a_models_place_says_to_merge(ventoux, adapter, command):
    status, _, err = ventoux(*(str(adapter) if word == "{}" else word for word in command))
    assert status == 1
    assert "this is a LoRA adapter, which is no model by itself" in err
    assert "merge_and_unload()" in err
