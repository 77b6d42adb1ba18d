"""Every command on the pytorch backend, and flags that do not go with a backend."""

import json
import re
import subprocess
import sys

import pytest
import torch

import ventoux as package
from ventoux.cli.reference import PROMPTS

PYTORCH = ("--backend", "pytorch")
SHORT = ("--max-tokens", 5, "--temperature", 0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(folder):
    return package.load(folder, compute="f32")


def result(run):
    status, out, err = run
    assert (status, err) == (0, "")
    return out


def test_commands_that_generate_say_what_the_cpu_backend_says(ventoux, folder, model):
    expected = model.generate("Hello", max_tokens=5, temperature=0)
    assert result(ventoux("generate", "Hello", "-m", folder, *PYTORCH, *SHORT)) == f"{expected}\n"
    found = json.loads(result(ventoux("generate", "Hello", "-m", folder, *PYTORCH, *SHORT, "--json", "--window", 3)))
    assert found["ids"] == package.load(folder, window=3).generate("Hello", max_tokens=5, temperature=0).ids
    answer = model.chat([{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0)
    assert result(ventoux("chat", "--message", "Hi", "-m", folder, *PYTORCH, *SHORT)) == f"{answer}\n"
    out = result(ventoux("demo", folder, *PYTORCH, *SHORT))
    assert all(prompt + model.generate(prompt, max_tokens=5, temperature=0) in out for prompt in PROMPTS)
    out = result(ventoux("interactive", folder, *PYTORCH, *SHORT, stdin="Hello\n"))
    assert f"Hello{expected}" in out


def test_commands_that_tell(ventoux, folder, model):
    same = ("tokenize", "Hello", "-m", folder)
    assert result(ventoux(*same, *PYTORCH)) == result(ventoux(*same))
    ours = json.loads(result(ventoux("info", folder, "--json")))
    theirs = json.loads(result(ventoux("info", folder, "--json", *PYTORCH, "--dtype", "bf16", "--threads", 1)))
    changed = {key for key in ours if ours[key] != theirs[key]} - {"threads"}
    assert changed == {"backend", "isa", "compute", "kv_dtype", "kv_bytes_per_token"}
    assert (theirs["backend"], theirs["device"], theirs["isa"]) == ("pytorch", "cpu", None)
    assert (theirs["compute"], theirs["threads"]) == ("bf16", 1)
    cache = package.load(folder, window=512, backend="pytorch", dtype="bf16").backend.new_cache()
    cache.allocate(512)
    assert cache.nbytes == 512 * theirs["kv_bytes_per_token"]
    assert "compute    fp16 on pytorch cpu, 1 threads" in result(ventoux("info", folder, *PYTORCH, "--dtype", "fp16"))
    shape = ("--prompt", 9, "--new", 3, "--depth", 6, "--streams", 2, "--repeat", 2)
    found = json.loads(result(ventoux("bench", "-m", folder, *PYTORCH, *shape, "--json")))
    assert len(found["decode_tok_s"]) == 2
    assert (found["backend"], found["device"], found["compute"], found["isa"]) == ("pytorch", "cpu", "fp32", None)
    assert found["kv_bytes"] == 2 * 4 * theirs["kv_bytes_per_token"] * 2  # streams, window, fp32 for bf16
    assert "fp32 on pytorch cpu, 1 threads, median of 2" in result(ventoux("bench", "-m", folder, *PYTORCH, *shape))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "bf16"], "--dtype 'bf16' is for the pytorch backend, and this is the cpu backend"),
        (["--device", "cuda"], "--device 'cuda' is for the pytorch backend, and this is the cpu backend"),
        ([*PYTORCH, "--compute", "int16"], "--compute 'int16' is for the cpu backend; the pytorch backend has dtype"),
        (
            [*PYTORCH, "--kv-cache-dtype", "int8"],
            "--kv-cache-dtype 'int8' is for the cpu backend; the pytorch backend has",
        ),
        ([*PYTORCH, "--device", "gpu"], "--device 'gpu' cannot be used by torch here: "),
        ([*PYTORCH, "--dtype", "f32"], "argument --dtype: invalid choice: 'f32'"),
        (["--kv-cache-dtype", "fp8"], "argument --kv-cache-dtype: invalid choice: 'fp8'"),
        (["--backend", "jax"], "argument --backend: invalid choice: 'jax'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(ventoux, flags, message):
    status, out, err = ventoux("generate", "x", "-m", "no-such-model", *flags)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"ventoux: error: .*see ventoux generate --help\n", err)
    assert message in err


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_one_line_says_how_to_get_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from ventoux import cli; cli.main()"
    command = [sys.executable, "-c", code, "chat", "-m", "no-such-model", "--backend", "pytorch"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(r"ventoux: error: ventoux.pytorch needs .*pip install 'ventoux\[torch\]' .*\n", run.stderr)


def test_the_cpu_backend_starts_without_torch(folder):
    code = "import sys; from ventoux import cli; cli.main(); print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code, "generate", "x", "-m", str(folder), "--max-tokens", "1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers"} & set(out.splitlines()[-1].split())
