"""`convert` on the command line, and the documented converter's flags."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import tiny
from vocabularies import FILES, MISTRAL

from ventoux import checkpoint, tokenizer
from ventoux import convert_mistral_weights_to_hf as documented
from ventoux.chat.jinja import mistral_template
from ventoux.cli.convert import size


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tiny.save_raw(tiny.tiny_model(vocab_size=32768, hidden_size=32), tmp_path_factory.mktemp("raw"))
    shutil.copy(MISTRAL / FILES["v3"], path / "tokenizer.model.v3")
    return path


def test_convert_says_in_a_line_what_it_wrote(ventoux, folder, tmp_path):
    status, out, err = ventoux("convert", folder, tmp_path / "m.gguf", "--to", "gguf", "--dtype", "q4_0")
    assert (status, err) == (0, "writing m.gguf, 3 MB\n")
    first, *rest = out.splitlines()
    assert re.fullmatch(r".*/m\.gguf: 2\.9 MB, 14 Q4_0, 5 F32, 2 Q8_0", first)
    assert rest == ["  Q8_0, for less error, in embed_tokens.weight and lm_head.weight"]
    assert ventoux("info", tmp_path / "m.gguf")[0] == 0
    status, out, _ = ventoux("convert", tmp_path / "m.gguf", tmp_path / "raw", "--to", "raw", "--window", "off")
    assert (status, checkpoint.read(tmp_path / "raw").config.windows) == (0, (None, None))
    assert "Q4_0, Q8_0 became F32, which is exact; --dtype bf16 takes half the space" in out


def test_shards_of_a_chosen_size(ventoux, folder, tmp_path):
    assert ventoux("convert", folder, tmp_path / "hf", "--to", "hf", "--shard-size", "2.1MB", "--dtype", "bf16")[0] == 0
    assert len(list((tmp_path / "hf").glob("model-*-of-00002.safetensors"))) == 2
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 KiB", 1536), ("12", 12), ("2GiB", 2 << 30)],
)
def test_sizes(text, nbytes):
    assert size(text) == nbytes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "onnx"], "invalid choice: 'onnx'"),
        ([], "required: --to"),
        (["--to", "hf", "--dtype", "q8_0"], "--dtype q8_0 needs --to gguf"),
        (["--to", "hf", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["--to", "raw", "--shard-size", "5GB"], "--shard-size needs --to hf"),
        (["--to", "hf", "--shard-size", "5 bananas"], "expected a size such as 5GB or 500MB, found '5 bananas'"),
        (["--to", "hf", "--shard-size", "0"], "expected a size"),
        (["--to", "hf", "--window", "-1"], "expected off or a whole number of at least 1, found '-1'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(ventoux, folder, tmp_path, flags, message):
    status, out, err = ventoux("convert", folder, tmp_path / "x", *flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"ventoux: error: .*see ventoux.* --help\n", err)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_named_as_a_file(ventoux, folder, tmp_path):
    status, _, err = ventoux("convert", folder, tmp_path / "m.gguf", "--to", "hf")
    assert status == 2
    assert "--to hf writes a folder, but" in err


def test_errors_are_one_line_and_status_1(ventoux, folder, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    for source, target, message in (
        (folder, tmp_path / "there", "there is a folder with files here already; name another folder, or empty it"),
        ("no-such-model", tmp_path / "x", "no such file or folder, no such alias"),
        (folder / "config.json", tmp_path / "x", "give the folder"),
        (tmp_path / "there", tmp_path / "x", "expected config.json"),
    ):
        status, out, err = ventoux("convert", source, target, "--to", "hf")
        assert (status, out) == (1, "")
        assert re.fullmatch(r"ventoux: error: .*\n", err)
        assert message in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there"]


def test_the_documented_converter(raw, tmp_path, capsys):
    documented.main(["--input_dir", str(raw), "--model_size", "7B", "--output_dir", str(tmp_path / "hf"), "--is_v3"])
    out, _ = capsys.readouterr()
    assert re.match(r".*/hf: [\d.]+ MB, 21 F32\n", out)
    found = checkpoint.read(tmp_path / "hf")
    assert (found.kind, found.config.context_length, found.config.eos_ids) == ("huggingface", 32768, (2,))
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == mistral_template("v3")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer_config.json").write_text('{"chat_template": "hello"}')
    flags = ["--max_position_embeddings", "100", "--safe_serialization", "--tokenizer_template_name"]
    documented.main([str(raw), str(tmp_path / "again"), *flags, str(tmp_path / "other")])
    assert checkpoint.read(tmp_path / "again").config.context_length == 100
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "hello"


@pytest.mark.parametrize("flags", [["--model_size", "tokenizer_only"], ["--tokenizer_only"]])
def test_the_documented_converter_of_a_tokenizer_alone(raw, tmp_path, flags):
    (tmp_path / "in").mkdir()
    shutil.copy(raw / "tokenizer.model.v3", tmp_path / "in")
    documented.main(["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), *flags])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("tokenizer.json", "tokenizer.model.v3", "tokenizer_config.json"),
    ]
    assert tokenizer.load(tmp_path / "out").version == "v3"


def test_the_documented_converter_takes_split_modules_and_the_raw_one_of_two_layouts(tmp_path):
    model = tiny.tiny_model(2)
    source = tiny.save_raw(model, tmp_path / "in", shards=2)
    tiny.save_hf(tiny.tiny_model(1, sliding_window=9), source)
    documented.main(["--input_dir", str(source), "--output_dir", str(tmp_path / "out"), "--modules_are_split"])
    found = checkpoint.read(tmp_path / "out")
    assert found.config.windows == (4, 4)
    weight = model.state_dict()["model.layers.1.self_attn.k_proj.weight"].numpy()
    assert (found.tensors["layers.1.self_attn.k_proj.weight"].float32() == weight).all()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--input_dir", "IN"], 2, "expected --input_dir and --output_dir"),
        (["--input_dir", "IN", "--output_dir", "OUT", "--model_size", "13B"], 2, "invalid choice: '13B'"),
        (["--input_dir", "IN", "--output_dir", "OUT", "--safe_serialization", "False"], 2, "only safetensors"),
        (["--input_dir", "IN", "--output_dir", "OUT", "--max_position_embeddings", "0"], 2, "whole number"),
        (["IN", "--input_dir", "IN", "--output_dir", "OUT"], 2, "a folder is named twice"),
        (["--input_dir", "absent", "--output_dir", "OUT"], 1, "expected a folder of mistral-src's layout"),
        (["--input_dir", ".", "--output_dir", "OUT"], 1, "expected params.json"),
        (["--input_dir", "IN", "--output_dir", "OUT", "--modules_are_split"], 1, "not in several files"),
        (["--input_dir", "IN", "--output_dir", "OUT", "--template_name", "IN"], 1, "expected a model with a chat"),
        (["--input_dir", "IN", "--output_dir", "IN"], 1, "a folder with files here already"),
    ],
)
def test_the_documented_converter_used_wrongly(raw, tmp_path, monkeypatch, capsys, flags, status, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        documented.main([{"IN": str(raw), "OUT": str(tmp_path / "out")}.get(flag, flag) for flag in flags])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (status, "")
    assert re.fullmatch(r"error: .*\n", err)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_the_documented_converter_is_a_module_to_run():
    command = [sys.executable, "-m", "ventoux.convert_mistral_weights_to_hf", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"--[a-z]\w*", out)) == {
        *("--help", "--input_dir", "--output_dir", "--model_size", "--tokenizer_only", "--is_v3"),
        *("--max_position_embeddings", "--modules_are_split", "--safe_serialization"),
        *("--tokenizer_template_name", "--template_name"),
    }
