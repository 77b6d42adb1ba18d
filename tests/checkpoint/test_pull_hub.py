"""Hub ids, through the hub's real client in a process of its own, against a local server that speaks its routes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pull_server import COMMIT, serving

from ventoux.checkpoint.hub import choose
from ventoux.errors import DownloadError

HF = {"config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
HF |= {"model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
RAW = {"params.json", "consolidated.safetensors", "tokenizer.model.v3"}
OTHER = {"README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "modeling_evil.py"}


def test_choose_takes_one_layout_and_its_descriptions():
    assert set(choose(HF | RAW | OTHER, repo="r")) == HF | {"tokenizer.model.v3"}
    assert set(choose(RAW | OTHER, repo="r")) == RAW
    assert choose({"a.Q4.gguf", "README.md"}, repo="r") == ["a.Q4.gguf"]
    assert choose({"a.gguf", "b.gguf"}, repo="r", file="b.gguf") == ["b.gguf"]


def test_choose_prefers_safetensors_to_a_pickle():
    both = {"params.json", "consolidated.00.pth", "consolidated.safetensors"}
    assert "consolidated.00.pth" not in choose(both, repo="r")
    assert "consolidated.00.pth" in choose({"params.json", "consolidated.00.pth"}, repo="r")
    old = {"config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"}
    assert set(choose(old | {"training_args.bin"}, repo="r")) == old


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        ({"a.gguf", "b.gguf"}, None, r"several models; choose one as r:FILE out of a\.gguf, b\.gguf"),
        ({"a.gguf"}, "c.gguf", r"has no file c\.gguf; its \.gguf files: a\.gguf"),
        ({"README.md", "config.json"}, None, r"no checkpoint that Ventoux reads.*found README\.md, config\.json"),
        ({"../../up.gguf", "sub/x.gguf", "..\\y.gguf"}, None, r"no checkpoint .* found none"),
    ],
)
def test_choose_says_what_is_there(names, file, message):
    with pytest.raises(DownloadError, match=message):
        choose(names, repo="r", file=file)


@pytest.fixture(scope="module")
def server():
    with serving() as state:
        state.repositories["org/both"] = {name: name.encode() for name in HF | RAW | OTHER}
        state.repositories["org/files"] = {"a.gguf": b"GGUF a", "b.gguf": b"GGUF b"}
        state.gated.add("org/gated")
        yield state


@pytest.fixture
def ask(server, tmp_path):
    """Call pull or resolve in a fresh process -> its paths or errors, one for each name."""
    code = """
import json, sys
from ventoux.checkpoint import pull
from ventoux.errors import DownloadError
for name in sys.argv[2:]:
    try:
        print(json.dumps(str(getattr(pull, sys.argv[1])(name))))
    except DownloadError as error:
        print(json.dumps("error: " + str(error)))
print(json.dumps("huggingface_hub" in sys.modules))
"""

    def run(how, *names, endpoint=server.url):
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        env |= {"VENTOUX_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run([sys.executable, "-c", code, how, *names], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_hub_ids_are_fetched_and_then_found_without_the_hub(server, ask, tmp_path):
    server.fetched.clear()
    folder, file, _ = ask("resolve", "org/both", "org/files:b.gguf")
    assert Path(folder).name == COMMIT
    assert {path.name for path in Path(folder).iterdir()} == HF | {"tokenizer.model.v3"}
    assert set(server.fetched) == HF | {"tokenizer.model.v3", "b.gguf"}
    assert (Path(folder) / "config.json").read_bytes() == b"config.json"
    assert Path(file).read_bytes() == b"GGUF b"

    nowhere = "http://127.0.0.1:9"
    assert ask("resolve", "org/both", "org/files:b.gguf", endpoint=nowhere) == [folder, file, False]
    for note in (tmp_path / "cache" / "hub").iterdir():
        note.write_text("{")  # a receipt that a full disk cut off: ask the hub again
    assert ask("resolve", "org/both")[0] == folder
    Path(folder, "config.json").unlink()  # an incomplete checkpoint is not taken for a whole one
    assert ask("resolve", "org/both")[0] == folder
    assert Path(folder, "config.json").exists()


def test_refusals_are_one_clear_line_each(ask):
    gated, missing, several, _ = ask("pull", "org/gated", "org/missing", "org/files")
    assert "accept them on its page, then set HF_TOKEN" in gated
    assert "no such file or folder here and no such model on the hub" in missing
    assert "choose one as org/files:FILE out of a.gguf, b.gguf" in several
    unreachable, _ = ask("pull", "org/both", endpoint="http://127.0.0.1:9")
    assert "check the network" in unreachable
    assert all(text.startswith("error: org/") and "\n" not in text for text in (gated, missing, several, unreachable))
