"""Real files, damaged at random: read, or refused with a clear error, in little time and memory."""

import gc
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import save_gguf, save_hf, save_raw, tiny_model

from ventoux import checkpoint
from ventoux.errors import CheckpointError, ConfigError

SECONDS = 1.0  # of the process's time, for one file
BYTES = 32 << 20
INTERESTING = [0, 1, 2, 7, 8, 31, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]
# layout and file in it -> which part of the file the damage is done to: header, directory, or all of it
TARGETS = {
    "gguf": ("m.gguf", 0, 3000),
    "safetensors": ("hf/model.safetensors", 0, 2500),
    "config": ("hf/config.json", 0, None),
    "index": ("shards/model.safetensors.index.json", 0, None),
    "params": ("raw/params.json", 0, None),
    "pickle": ("raw/consolidated.00.pth", 0, 2500),
    "zip": ("raw/consolidated.00.pth", -2500, None),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    small = tiny_model(
        8,
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        head_dim=8,
    )
    save_hf(small, root / "hf")
    save_hf(small, root / "shards", shards=True)
    save_raw(small, root / "raw")
    save_gguf(small, root / "m.gguf", format="Q4_0")
    return root


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """What is done, where (as a fraction of the part), and with which bytes."""
    number = st.sampled_from(INTERESTING).map(lambda n: n.to_bytes(8, "little")) | st.sampled_from(
        [b"-1", b"null", b"true", b"1e999", b'""', b"[]", b"{}", b"99999999999999", b"[[[[", b"R", b"c", b"."]
    )
    step = st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "copy"]),
        st.floats(0, 1, exclude_max=True),
        number | st.binary(min_size=1, max_size=8),
    )
    return draw(st.lists(step, min_size=1, max_size=4))


def damaged(content: bytes, steps: list[tuple[str, float, bytes]], start: int, stop: int | None) -> bytes:
    for action, place, new in steps:
        first, last, _ = slice(start, stop).indices(len(content))
        at = first + int(place * (last - first))
        if action == "set":
            content = content[:at] + new + content[at + len(new) :]
        elif action == "insert":
            content = content[:at] + new + content[at:]
        elif action == "delete":
            content = content[:at] + content[at + len(new) :]
        elif action == "copy":  # a piece stands twice: duplicate keys, entries, opcodes
            content = content[: at + 16 * len(new)] + content[at:]
        else:
            content = content[:at]
    return content


def check(files: Path, target: str, steps: list[tuple[str, float, bytes]], scratch: Path) -> None:
    name, start, stop = TARGETS[target]
    shutil.rmtree(scratch, ignore_errors=True)  # new files each time: earlier ones may still be mapped
    scratch.mkdir()
    source = files / name
    victim = scratch / source.name
    if source.parent != files:
        for file in source.parent.iterdir():
            (scratch / file.name).symlink_to(file)
        victim.unlink()
    victim.write_bytes(damaged(source.read_bytes(), steps, start, stop))
    gc.disable()  # to look at all of the tests' garbage meanwhile would take half of the time that is allowed
    try:
        began = time.process_time()
        tracemalloc.start()
        refusal = read_all(victim if victim.suffix == ".gguf" else scratch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        seconds = time.process_time() - began
    finally:
        gc.enable()
    assert refusal is None or str(scratch) in refusal
    assert len(refusal or "") < 1000
    (refusal or "").encode()  # printable: no stray surrogates of a damaged name
    assert peak < BYTES
    assert seconds < SECONDS


def read_all(path: Path) -> str | None:
    """Read a checkpoint and every number in it; what the reader said if it refused. Anything else it raises, fails."""
    try:
        found = checkpoint.read(path)
        for tensor in found.tensors.values():
            tensor.float32()
    except (CheckpointError, ConfigError) as error:
        return str(error)
    return None


FAST = settings(max_examples=45, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("target", TARGETS)
@FAST
@given(steps=damage())
def test_damaged_files(target: str, steps: list[tuple[str, float, bytes]], files: Path, tmp_path: Path) -> None:
    check(files, target, steps, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@settings(FAST, max_examples=1450)
@given(steps=damage())
def test_ten_thousand_damaged_files(
    target: str, steps: list[tuple[str, float, bytes]], files: Path, tmp_path: Path
) -> None:
    check(files, target, steps, tmp_path / "case")


def test_the_undamaged_files_are_read(files: Path) -> None:
    """Else every case above would pass by being refused for some other reason."""
    for path in ("hf", "shards", "raw", "m.gguf"):
        assert len(checkpoint.read(files / path).tensors) == 12
