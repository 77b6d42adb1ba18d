"""Mapped weights that move into memory of the process's own: the same bits, and only where it is worth it."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from packed import load, logits

from ventoux import mapped
from ventoux.cpu import _kernels, machine, packing, settling

GB = 1 << 30


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """A machine that has huge pages and memory for them."""
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    monkeypatch.setattr(settling, "HUGE_PAGES", file)
    monkeypatch.setattr(settling, "spare_memory", lambda: GB)
    monkeypatch.setattr(settling, "PAUSE", 0)
    return file


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model whose packed weights have been written."""
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VENTOUX_PACKED_GB")
    monkeypatch.setattr(packing, "SMALLEST", 0)
    monkeypatch.setattr(packing, "PAUSE", 0)
    path = tiny.save_gguf(tiny.tiny_model(hidden_size=256), tmp_path / "model.gguf", format="Q4_0")
    load(path)
    (packed,) = (tmp_path / "cache" / "packed").iterdir()
    return path, packed


def places(backend):
    return [weight.packed.ctypes.data for weight in backend._weights.values()]


def settle(weights):
    for weight in weights:
        weight.settle(_kernels.pages(weight.packed.nbytes, True))


@pytest.fixture
def parts(monkeypatch):
    """The mapped bytes of the weights of whatever is loaded."""
    found = []
    made = settling.Settler.__init__
    monkeypatch.setattr(settling.Settler, "__init__", lambda self, w, p: found.extend(p) or made(self, w, p))
    return found


def test_weights_move_and_stay_what_they_are(model, offered, parts, monkeypatch):
    path, _ = model
    with monkeypatch.context() as patch:
        patch.setattr(settling, "spare_memory", lambda: 0)
        staying = load(path)
    assert places(staying) == [part.ctypes.data for part in parts]
    parts.clear()
    moved = load(path)
    assert not set(places(moved)) & {part.ctypes.data for part in parts}
    for weight, part in zip(moved._weights.values(), parts, strict=True):
        np.testing.assert_array_equal(weight.packed, part)
    np.testing.assert_array_equal(logits(moved), logits(staying))


PROGRAM = """
import os, sys, threading
sys.path[:0] = {tests!r}
from ventoux.cpu import packing, settling
packing.SMALLEST = settling.PAUSE = 0
settling.HUGE_PAGES = type(settling.HUGE_PAGES)({offered!r})
from packed import load, logits
backend = load({path!r})
os.truncate({packed!r}, 0)
print(logits(backend).tobytes().hex())
"""


def test_nothing_is_read_from_the_file_any_more(model, offered, request):
    """A process that looks into a file that was cut off is killed."""
    path, packed = model
    expected = logits(load(path)).tobytes().hex()
    root = request.config.rootpath / "tests"
    text = PROGRAM.format(tests=[str(root)], path=str(path), packed=str(packed), offered=str(offered))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


def test_kernels_run_while_weights_move(model, offered, isa, monkeypatch):
    monkeypatch.setenv("VENTOUX_ISA", isa)
    path, _ = model
    with monkeypatch.context() as patch:
        patch.setattr(settling, "spare_memory", lambda: 0)
        load(path)  # of this instruction set
        for _ in range(20):
            backend = load(path)
            expected = logits(backend)
            weights = list(backend._weights.values())
            mover = threading.Thread(target=settle, args=[weights])
            mover.start()
            while mover.is_alive():
                np.testing.assert_array_equal(logits(backend), expected)
            np.testing.assert_array_equal(logits(backend), expected)


def test_what_was_packed_or_has_moved_stays(isa):
    data = np.arange(32 * 18 * 2, dtype=np.uint32).astype(np.uint8).reshape(32, 36)
    weight = _kernels.Weight(_kernels.Pool(1, isa), "Q4_0", 64, data)
    place = weight.packed.ctypes.data
    settle([weight])
    assert weight.packed.ctypes.data == place


@pytest.mark.parametrize("reason", ["memory", "huge already", "never", "another system"])
def test_weights_stay_where_moving_gives_nothing(model, offered, parts, monkeypatch, reason):
    path, packed = model
    size = packed.stat().st_size
    if reason == "memory":
        monkeypatch.setattr(settling, "spare_memory", lambda: size)  # for the weights, and not as much again
    elif reason == "huge already":
        monkeypatch.setattr(mapped, "huge_bytes", lambda _: size)
    elif reason == "never":
        offered.write_text("always madvise [never]\n")
    else:
        offered.unlink()
    backend = load(path)
    assert places(backend) == [part.ctypes.data for part in parts]


def test_where_there_is_no_memory_after_all_they_stay(model, offered, parts, monkeypatch):
    pages = _kernels.pages
    monkeypatch.setattr(_kernels, "pages", lambda size, whole: pages(1 << 60 if whole else size, whole))
    backend = load(model[0])
    assert places(backend) == [part.ctypes.data for part in parts]


@pytest.mark.parametrize(("size", "at"), [(64, 0), (1088, 0), (1024, 8)])
def test_memory_that_does_not_fit_is_refused(size, at):
    data = np.ones((32, 18), np.uint8)
    packed = _kernels.Weight(_kernels.Pool(1, "portable"), "Q4_0", 32, data).packed
    weight = _kernels.Weight.mapped("Q4_0", 32, 32, packed)
    memory = _kernels.pages(4096, False)[at:][: len(packed) if size == 1024 else size]
    with pytest.raises(ValueError, match="memory "):
        weight.settle(memory)
    np.testing.assert_array_equal(weight.packed, packed)


def test_a_process_that_ends_does_not_wait(model):
    path, _ = model
    text = f"""
from ventoux import checkpoint
from ventoux.cpu import Backend, packing, settling
packing.SMALLEST, settling.PAUSE = 0, 60
read = checkpoint.read({str(path)!r})
backend = Backend(read.config, read.tensors)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_huge_bytes_are_those_of_the_views_own_file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(1 << 16))
    view = mapped.map_file(tmp_path / "file", whole=True)
    assert 0 <= mapped.huge_bytes(view[4096:]) <= 1 << 16
    assert mapped.huge_bytes(np.zeros(64, np.uint8)) == 0


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8 * GB),
        ("0::/\n", {"memory.max": f"{5 * GB}\n", "memory.stat": f"anon {GB}\nfile 77\n"}, 4 * GB),
        ("0::/\n", {"memory.max": "max\n", "memory.stat": "anon 5\n"}, 8 * GB),
        ("0::/a/b\n", {"a/memory.max": f"{3 * GB}\n", "a/memory.stat": f"anon {GB}\n"}, 2 * GB),
        ("0::/a\n", {"a/memory.max": f"{GB}\n", "a/memory.stat": f"anon {2 * GB}\n"}, 0),
        ("0::/host/only\n", {"memory.max": f"{2 * GB}\n", "memory.stat": "anon 0\n"}, 2 * GB),
        (
            "3:cpu:/x\n2:memory:/x\n0::/\n",
            {"memory/x/memory.limit_in_bytes": f"{6 * GB}\n", "memory/x/memory.stat": f"rss 1\ntotal_rss {GB}\n"},
            5 * GB,
        ),
    ],
)
def test_spare_memory_keeps_the_limits_of_control_groups(tmp_path, monkeypatch, groups, files, expected):
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    written = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 << 20} kB\n", "proc/self/cgroup": groups}
    for name, text in {**written, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.spare_memory() == expected


def test_spare_memory_of_another_system_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.spare_memory() == 0
