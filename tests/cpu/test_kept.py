"""Packed weights that are kept in files: the same bits, whatever happens to the files."""

import gc
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import IDS, load, logits

from ventoux import checkpoint, mapped
from ventoux.checkpoint.tensor import Tensor
from ventoux.cpu import Backend, _kernels, kept, packing, settling, store
from ventoux.errors import VentouxError
from ventoux.quant import FORMATS, row_bytes


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder of one's own, for models of any size, written at once."""
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VENTOUX_PACKED_GB")
    monkeypatch.setattr(packing, "SMALLEST", 0)
    monkeypatch.setattr(packing, "PAUSE", 0)
    monkeypatch.setattr(settling, "PAUSE", 0)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def model(tmp_path):
    return tiny.save_gguf(tiny.tiny_model(), tmp_path / "model.gguf", format="Q4_0")


def without(path, monkeypatch):
    """Logits of weights that are packed."""
    with monkeypatch.context() as patch:
        patch.setenv("VENTOUX_PACKED_GB", "0")
        return logits(load(path))


def mapped_only(monkeypatch):
    monkeypatch.setattr(packing, "_packed", lambda *_: pytest.fail("the weights were packed"))


def test_the_version_changes_with_the_bytes(isa):
    """When this fails, what packed weights look like has changed: raise kLayoutVersion, and then these."""
    found = hashlib.sha256()
    pool = _kernels.Pool(2, isa)
    for name in FORMATS:
        width = row_bytes(512, name)
        data = (np.arange(20 * width) * 2654435761 >> 7).astype(np.uint8).reshape(20, width)
        order = np.arange(20, dtype=np.int32)[::-1].copy()
        found.update(_kernels.Weight(pool, name, 512, data, order).packed.tobytes())
    assert (_kernels.LAYOUT_VERSION, found.hexdigest()[:16]) == (2, "4e9eff58b3e93a78")


LAYOUTS = {
    "raw": lambda root: tiny.save_raw(tiny.tiny_model(), root / "raw"),
    "raw, safetensors": lambda root: tiny.save_raw(tiny.tiny_model(), root / "raw", safetensors=True),
    "tied": lambda root: tiny.save_hf(tiny.tiny_model(tie_word_embeddings=True), root / "hf"),
    "shards": lambda root: tiny.save_hf(tiny.tiny_model(), root / "hf", shards=True),
    "gguf": lambda root: tiny.save_gguf(tiny.tiny_model(), root / "model.gguf", format="Q5_1"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mapped_weights_give_the_same_bits(isa, layout, place, tmp_path, monkeypatch):
    path = LAYOUTS[layout](tmp_path)
    expected = logits(load(path))
    (file,) = place.iterdir()
    os.utime(file, (0, 0))
    mapped_only(monkeypatch)
    backend = load(path)
    gc.collect()
    np.testing.assert_array_equal(logits(backend), expected)
    assert [p.name for p in place.iterdir()] == [file.name]
    assert file.stat().st_mtime > 0, "the use is noted"


def test_a_mapped_model_does_not_read_the_matrices_of_its_source(place, tmp_path):
    model = tiny.tiny_model(hidden_size=512, intermediate_size=1024)
    path = tiny.save_hf(model, tmp_path / "m") / "model.safetensors"
    load(path.parent)
    gc.collect()
    backend = load(path.parent)
    logits(backend)
    resident = re.search(rf"{path}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
    assert int(resident[1]) * 1024 < path.stat().st_size / 10


def test_a_deleted_file_stays_with_who_has_mapped_it(place, model):
    expected = logits(load(model))
    backend = load(model)
    assert store.clear()[0] == 1
    np.testing.assert_array_equal(logits(backend), expected)


def test_weights_in_memory_are_not_kept(place, model):
    read = checkpoint.read(model)
    tensors = {name: Tensor(t.name, t.shape, t.format, t.data.copy(), t.row_order) for name, t in read.tensors.items()}
    Backend(read.config, tensors)
    assert not place.exists()


def remade(path, place, expected):
    """The model still says the same, and its file is whole again."""
    np.testing.assert_array_equal(logits(load(path)), expected)
    (file,) = place.iterdir()
    assert [entry.fault for entry in store.entries()] == [""]
    return file


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_made_anew(place, model, data):
    expected = logits(load(model))
    (file,) = place.iterdir()
    whole = file.read_bytes()
    header = kept.TEXT + int.from_bytes(whole[kept.LENGTH : kept.TEXT], "little")
    if data.draw(st.booleans(), label="cut short"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:  # a byte of the header, or of the weights in a file of another boot
        at = data.draw(st.integers(0, len(whole) - 1) if data.draw(st.booleans()) else st.integers(0, header - 1))
        damaged = bytearray(whole)
        damaged[at] ^= data.draw(st.integers(1, 255))
        if at >= header:
            damaged[kept.BOOT : kept.DIGEST] = b"another boot".ljust(kept.DIGEST - kept.BOOT)
    file.unlink()
    file.write_bytes(damaged)
    assert remade(model, place, expected).stat().st_size == len(whole)


def test_weights_are_looked_at_once_in_a_boot(place, model, monkeypatch):
    load(model)
    (file,) = place.iterdir()
    whole = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(kept.BOOT)
        opened.write(b"-" * (kept.DIGEST - kept.BOOT))
    mapped_only(monkeypatch)
    load(model)
    assert file.read_bytes() == whole, "the boot is noted"


def test_nothing_of_a_file_is_believed_that_does_not_follow_from_the_tensors(place, model, tmp_path):
    """A file of the right name and a sound header that is another model's."""
    expected = logits(load(model))
    (own,) = place.iterdir()
    other = tiny.save_gguf(tiny.tiny_model(hidden_size=128), tmp_path / "other.gguf", format="Q8_0")
    load(other)
    (foreign,) = set(place.iterdir()) - {own}
    foreign.replace(own)
    remade(model, place, expected)


def test_a_source_that_changes_is_packed_anew(place, model, tmp_path, monkeypatch):
    """Also when it has the same size, times and name: a copy in its place is another inode, and written later."""
    load(model)
    before = model.stat()
    changed = tiny.save_gguf(tiny.tiny_model(seed=1), tmp_path / "changed.gguf", format="Q4_0")
    expected = without(changed, monkeypatch)
    model.write_bytes(changed.read_bytes())  # the same inode
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [entry.fault for entry in store.entries()] == ["its source has changed"]
    remade(model, place, expected)
    model.unlink()
    assert [entry.fault for entry in store.entries()] == ["its source is gone"]


def test_the_ends_of_a_source_count_where_a_file_system_keeps_no_times(place, model, tmp_path, monkeypatch):
    identity = {"path": str(model), "size": 0, "mtime_ns": 0, "ctime_ns": 0, "inode": 0}
    monkeypatch.setattr(mapped, "identity", lambda *_: identity)
    load(model)
    model.write_bytes(tiny.save_gguf(tiny.tiny_model(seed=1), tmp_path / "b.gguf", format="Q4_0").read_bytes())
    remade(model, place, without(model, monkeypatch))


def test_a_source_that_changes_while_it_is_packed_is_not_kept(place, model, tmp_path):
    read = checkpoint.read(model)
    os.utime(model, (0, 0))
    Backend(read.config, read.tensors)
    for thread in threading.enumerate():
        if isinstance(thread, packing.Writer):
            thread.join()
    assert list(place.iterdir()) == []


def test_links_lead_to_one_file(place, model, tmp_path):
    load(model)
    (tmp_path / "link.gguf").symlink_to(model)
    load(tmp_path / "link.gguf")
    assert len(list(place.iterdir())) == 1


@pytest.mark.parametrize("where", ["/dev/null/cache", "~nobody-of-this-name/cache"])
def test_a_folder_that_cannot_be_written_hurts_nobody(place, model, monkeypatch, where):
    expected = without(model, monkeypatch)
    monkeypatch.setenv("VENTOUX_CACHE", where)
    np.testing.assert_array_equal(logits(load(model)), expected)


def test_interrupted_writing_leaves_nothing(place, model):
    description, weights = parts(model)
    times = iter([False, True])
    with pytest.raises(kept.NotKept, match="interrupted"):
        store.save(description, weights, stopped=lambda: next(times))
    assert list(place.iterdir()) == []


def test_an_interrupted_process_ends_without_writing(place, model):
    """Ctrl-C, once the answer is there: as the command line ends then."""
    with start(model, place, "packing.PAUSE = 60", after="packing.stop_writing()") as process:
        assert process.communicate(timeout=30)[0]
    assert not place.exists() or list(place.iterdir()) == []


def test_a_process_that_ends_has_written(place, model):
    with start(model, place, "packing.PAUSE = 60") as process:
        assert process.communicate(timeout=30)[0]
    assert [path.suffix for path in place.iterdir()] == [".packed"]


def test_the_default_model_is_the_same(place, default_model, monkeypatch):
    expected = logits(load(default_model))
    mapped_only(monkeypatch)
    np.testing.assert_array_equal(logits(load(default_model)), expected)


def parts(path):
    read = checkpoint.read(path)
    matrices = [tensor for tensor in read.tensors.values() if len(tensor.shape) == 2]
    pool = _kernels.Pool(1, "portable")
    weights = [_kernels.Weight(pool, t.format, t.shape[1], t.data, t.row_order) for t in matrices]
    return kept.describe(matrices, "portable"), weights


PROGRAM = """
import hashlib, os, resource, time
from ventoux import checkpoint
from ventoux.batch import Batch, Segment
from ventoux.cpu import Backend, kept, packing
packing.SMALLEST = packing.PAUSE = 0
{before}
read = checkpoint.read({path!r})
backend = Backend(read.config, read.tensors)
cache = backend.new_cache()
logits = backend.forward(Batch.pack([Segment(cache.allocate({count}), 0, {ids}, {count})]), cache)
print(hashlib.sha256(logits).hexdigest(), flush=True)
{after}
"""


def start(path, place, before="", after=""):
    text = PROGRAM.format(path=str(path), before=before, after=after, ids=IDS, count=len(IDS))
    env = {**os.environ, "VENTOUX_CACHE": str(place.parent)}
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=env)


def test_processes_that_start_together_say_the_same(place, model, monkeypatch):
    running = [start(model, place) for _ in range(4)]
    said = {process.communicate()[0] for process in running}
    assert said == {hashlib.sha256(without(model, monkeypatch)).hexdigest() + "\n"}
    mapped_only(monkeypatch)
    load(model)
    assert len(list(place.iterdir())) == 1


def test_a_killed_writer_leaves_no_file_that_is_taken(place, model, monkeypatch):
    pausing = r"""
write, print = kept.write, lambda *_, **__: None
kept.write = lambda *rest, stopped: write(*rest, stopped=lambda: os.write(1, b"writing\n") and time.sleep(9))
"""
    with start(model, place, pausing) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    (part,) = place.iterdir()
    assert part.suffix == ".part"
    assert [entry.fault for entry in store.entries()] == ["being written"]
    expected = without(model, monkeypatch)
    np.testing.assert_array_equal(logits(load(model)), expected)
    assert list(place.iterdir()) == [part], "another process may still be writing it"
    os.utime(part, (0, 0))
    remade(model, place, expected)


def test_a_full_disk_hurts_nobody(place, model, monkeypatch):
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))"
    with start(model, place, full) as process:
        assert process.communicate()[0] == hashlib.sha256(without(model, monkeypatch)).hexdigest() + "\n"
    assert list(place.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 0, 9999))
    load(model)
    assert list(place.iterdir()) == [], "half of what is free stays free"


def test_what_was_not_used_for_longest_goes_first(place, tmp_path, monkeypatch):
    models = [tiny.save_gguf(tiny.tiny_model(seed=i), tmp_path / f"m{i}.gguf") for i in range(3)]
    for age, path in enumerate(models[:2]):
        load(path)
        newest = max(place.iterdir(), key=lambda file: file.stat().st_mtime)
        os.utime(newest, (1000 - age, 1000 - age))
    size = newest.stat().st_size
    load(models[0])
    monkeypatch.setenv("VENTOUX_PACKED_GB", str(2.5 * size / 1e9))
    load(models[2])
    assert {Path(entry.sources[0]).name for entry in store.entries()} == {"m0.gguf", "m2.gguf"}
    monkeypatch.setenv("VENTOUX_PACKED_GB", str(0.5 * size / 1e9))
    load(models[1])
    assert len(list(place.iterdir())) == 2, "what does not fit takes nobody's place"


@pytest.mark.parametrize("limit", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(place, model, monkeypatch, limit):
    monkeypatch.setenv("VENTOUX_PACKED_GB", limit)
    with pytest.raises(VentouxError, match=r"VENTOUX_PACKED_GB is .*, expected a number of gigabytes such as 20"):
        load(model)


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=8))
def test_places_are_apart_and_aligned(shapes):
    tensors = [Tensor("x", (rows, 32 * blocks), "Q4_0", np.empty(0, np.uint8)) for rows, blocks in shapes]
    end = 0
    for (at, size), (rows, blocks) in zip(kept.places(tensors), shapes, strict=True):
        assert at % kept.PAGE == 0
        assert end <= at < end + kept.PAGE
        assert size >= -(-rows // 16) * 16 * blocks * 18 + 64, "kernels may load 64 bytes behind the panels"
        end = at + size


def test_mapped_weights_are_checked():
    memory = np.zeros(1 << 12, np.uint8)
    skew = memory.ctypes.data % 64
    size = _kernels.packed_bytes("Q4_0", 16, 32)
    assert _kernels.Weight.mapped("Q4_0", 16, 32, memory[64 - skew :][:size]).nbytes == 16 * 18
    for wrong in (memory[64 - skew :][: size - 1], memory[65 - skew :][:size]):
        with pytest.raises(ValueError, match="packed bytes"):
            _kernels.Weight.mapped("Q4_0", 16, 32, wrong)
    for shape in ((0, 32), (16, 31), (-1, 32), (1 << 31, 32)):
        with pytest.raises((ValueError, TypeError)):
            _kernels.packed_bytes("Q4_0", *shape)
