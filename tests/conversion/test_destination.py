"""What is at DST appears whole or not at all, whatever happens meanwhile; what was there stays."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import ventoux
from ventoux import checkpoint
from ventoux.conversion.destination import drafted
from ventoux.errors import CheckpointError, ConversionError

# A conversion that stops at its first piece, says so, and waits to be killed.
PAUSED = """
import sys, time, ventoux
def progress(here, total):
    print("writing", flush=True)
    time.sleep(60)
ventoux.convert(sys.argv[1], sys.argv[2], to=sys.argv[3], progress=progress)
"""
LIMITED = """
import resource, sys, ventoux
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    ventoux.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
except ventoux.ConversionError as error:
    print(error)
"""
KINDS = ("raw", "hf", "gguf")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def paused(source: Path, target: Path, to: str) -> subprocess.Popen[str]:
    process = run(PAUSED, source, target, to)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("to", KINDS)
def test_a_kill_leaves_nothing_that_looks_finished_and_the_next_run_cleans_up(
    to: str, raw: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    process = paused(raw, target, to)
    with pytest.raises(ConversionError, match="another conversion is writing there"):
        ventoux.convert(raw, target, to=to)  # type: ignore[arg-type]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    (left,) = (path for path in tmp_path.iterdir() if path.name.endswith(".part"))
    assert left.name == ".out.convert.part"
    with pytest.raises(CheckpointError):
        checkpoint.read(left)
    ventoux.convert(raw, target, to=to)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert checkpoint.read(target).kind == {"raw": "raw", "hf": "huggingface", "gguf": "gguf"}[to]


@pytest.mark.parametrize("to", KINDS)
def test_ctrl_c_leaves_nothing(to: str, raw: Path, tmp_path: Path) -> None:
    def progress(here: int, total: int) -> None:
        if here == total:  # even at the last byte
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ventoux.convert(raw, tmp_path / "new" / "out", to=to, progress=progress)  # type: ignore[arg-type]
    assert listing(tmp_path) == []


@pytest.mark.parametrize("to", KINDS)
def test_a_file_that_cannot_grow_leaves_nothing(to: str, raw: Path, tmp_path: Path) -> None:
    process = run(LIMITED, raw, tmp_path / "a" / "out", to)
    said, trouble = process.communicate()
    assert "out: cannot be written: File too large; free some space" in said, trouble
    assert "nothing was left there" in said
    assert listing(tmp_path) == []


def test_a_full_disk_is_told_before_anything_is_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.statvfs(tmp_path)
    free = here.f_bavail * here.f_frsize
    with (
        pytest.raises(
            ConversionError, match=rf"{(free + (1 << 40)) / 1e6:,.1f} MB are needed, and [\d,.]+ MB are free"
        ),
        drafted(tmp_path / "out", folder=True, total=free + (1 << 40), progress=lambda *_: None),
    ):
        raise AssertionError("it must not come so far")
    assert listing(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> list[bytes]:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
        return []

    def fill() -> None:
        with drafted(tmp_path / "out", folder=True, total=10, progress=lambda *_: None) as draft:
            draft.write("a", [b"12345"])
            draft.write("b", pieces())

    with pytest.raises(
        ConversionError, match="No space left on device; free some space, or name a place that has more"
    ):
        fill()
    assert listing(tmp_path) == []


def folder_with_files(target: Path) -> None:
    target.mkdir()
    (target / "precious").write_text("data")


def file(target: Path) -> None:
    target.write_text("data")


def dangling(target: Path) -> None:
    target.symlink_to("nowhere")


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("make", [folder_with_files, file, dangling])
def test_what_is_there_is_refused_and_untouched(
    make: Callable[[Path], None], to: str, raw: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    make(target)
    before = listing(tmp_path)
    with pytest.raises(ConversionError, match="here already; "):
        ventoux.convert(raw, target, to=to)  # type: ignore[arg-type]
    assert listing(tmp_path) == before
    assert not (target / "precious").exists() or (target / "precious").read_text() == "data"


def test_what_appears_meanwhile_is_not_replaced(raw: Path, tmp_path: Path) -> None:
    for to, make in (("gguf", file), ("raw", folder_with_files), ("hf", file)):
        target = tmp_path / to

        def progress(here: int, total: int, make: Callable[[Path], None] = make, target: Path = target) -> None:
            if here == total:
                make(target)

        with pytest.raises(ConversionError, match="cannot be written"):
            ventoux.convert(raw, target, to=to, progress=progress)  # type: ignore[arg-type]
        assert (target if target.is_file() else target / "precious").read_text() == "data"
    assert listing(tmp_path) == ["gguf", "hf", "raw", "raw/precious"]


def test_an_empty_folder_becomes_a_folder_and_no_file(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match=r"a folder here already; name a file, such as .*out/model\.gguf"):
        ventoux.convert(raw, tmp_path / "out", to="gguf")
    ventoux.convert(raw, tmp_path / "out", to="hf")
    assert checkpoint.read(tmp_path / "out").kind == "huggingface"


def test_places_that_cannot_be_written(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, said in (
        (tmp_path / "file" / "out", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/out"), "no file can be made in its folder"),
    ):
        with pytest.raises(ConversionError, match=f"cannot be written: {said}"):
            ventoux.convert(raw, target, to="hf")
    assert listing(tmp_path) == ["file"]


def test_the_place_is_where_it_was_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    ventoux.convert(raw, "out.gguf", to="gguf", progress=lambda here, total: os.chdir(tmp_path / "elsewhere"))
    assert (tmp_path / "out.gguf").exists()
    assert listing(tmp_path / "elsewhere") == []


def test_a_lock_that_nobody_holds_is_no_hindrance(raw: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.convert.lock").write_text("")
    (tmp_path / ".out.convert.part").mkdir()
    (tmp_path / ".out.convert.part" / "model.safetensors").write_text("left")
    ventoux.convert(raw, tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with (
        FileLock(tmp_path / ".next.convert.lock"),
        pytest.raises(ConversionError, match="another conversion is writing there"),
    ):
        ventoux.convert(raw, tmp_path / "next", to="hf")


def test_progress_grows_to_the_whole(raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    done = ventoux.convert(raw, tmp_path / "a", to="hf", progress=lambda *each: seen.append(each))
    assert [here for here, _ in seen] == sorted(here for here, _ in seen)
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert capfd.readouterr().err == ""
    ventoux.convert(raw, tmp_path / "b.gguf", to="gguf")
    assert capfd.readouterr().err == "writing b.gguf, 0 MB\n"


@pytest.mark.slow
def test_the_model_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """A file of 400 MB, half of it one tensor, is converted with less memory than that tensor takes as float32."""
    code = (
        "import resource, sys, numpy, torch; from tiny import *; "
        "save_raw(tiny_model(vocab_size=100_000, hidden_size=512, num_hidden_layers=1), Path(sys.argv[1]),"
        " safetensors=True)"
    )
    source, tests = tmp_path / "big", str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code, str(source)], check=True, env=os.environ | {"PYTHONPATH": tests})
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 400_000
    measure = (
        "import sys, resource, ventoux, ventoux.conversion, time\n"
        "def anonymous():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])\n"
        "most = [0]\n"
        "def progress(*_): most[0] = max(most[0], anonymous())\n"
        "ventoux.convert(sys.argv[1], sys.argv[2], to='gguf', dtype='q4_0', progress=progress); print(most[0])"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", measure, str(source), str(tmp_path / "m.gguf")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 180_000, f"{done.stdout} kB after {time.monotonic() - start:.0f} s"
