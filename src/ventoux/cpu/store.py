"""The folder in which packed weights are kept, and how much of the disk it may take.

Everything that goes wrong here costs the next start some time and nothing else. Files appear by renaming, so that no
half of one is ever seen; two processes that write the same file write the same bytes, and the last one's stays. A file
that is deleted stays with the processes that have mapped it until they end.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ventoux import mapped
from ventoux.checkpoint.pull import cache_folder
from ventoux.cpu import _kernels, kept
from ventoux.cpu.kept import Description, NotKept
from ventoux.errors import CheckpointError, VentouxError, shown

LIMIT_GB = 20.0
VARIABLE = "VENTOUX_PACKED_GB"
BUSY = 60.0  # seconds for which an unfinished file is left to whoever has begun it
STALE = 600.0  # seconds after which it is deleted
PART = ".part"


def folder() -> Path:
    """Where the files are; raises NotKept when there is no such place."""
    try:
        return cache_folder() / "packed"
    except RuntimeError as error:  # no home
        raise NotKept(str(error)) from error


def limit() -> int:
    """Bytes that the folder may take: VENTOUX_PACKED_GB, or 20 GB. 0 for nothing at all."""
    said = os.environ.get(VARIABLE) or LIMIT_GB
    try:
        gigabytes = float(said)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise VentouxError(f"{VARIABLE} is {shown(said)}, expected a number of gigabytes such as 20, or 0")
    return int(gigabytes * 1e9)


def save(description: Description, weights: Sequence[_kernels.Weight], *, stopped: kept.Stopped) -> None:
    """Write the weights' file; raises NotKept when it may not be, or OSError."""
    import tempfile  # here, for a start needs none of it

    target = folder() / description.file_name
    parts = [stat for path, stat in files_in(target.parent) if path.name.startswith(f"{target.name}.")]
    if any(time.time() - stat.st_mtime < BUSY for stat in parts):
        raise NotKept("another process is writing it")
    target.parent.mkdir(parents=True, exist_ok=True)
    make_room(target, sum(weight.nbytes for weight in weights))
    handle, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=PART, dir=target.parent)
    os.close(handle)
    try:
        kept.write(Path(name), description, weights, stopped=stopped)
        if any(state(source) for source in description.sources):
            raise NotKept("a source has changed meanwhile")
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def make_room(target: Path, size: int) -> None:
    """Delete what was not used for longest, until `size` bytes fit into the limit. NotKept when they never do."""
    if size > limit():
        raise NotKept(f"{size} bytes are more than {VARIABLE} allows")
    import shutil

    free = shutil.disk_usage(target.parent).free
    if size > free / 2:
        raise NotKept(f"{size} bytes are more than half of what is free on the disk, {free}")
    files = sorted((stat.st_mtime, path, stat.st_size) for path, stat in files_in(target.parent) if path != target)
    total = size + sum(nbytes for _, _, nbytes in files)
    for used, path, nbytes in files:
        abandoned = path.name.endswith(PART) and time.time() - used > STALE
        if total > limit() or abandoned:
            path.unlink(missing_ok=True)
            total -= nbytes


def files_in(place: Path) -> list[tuple[Path, os.stat_result]]:
    """All files that are ours, unfinished ones too."""
    found = []
    for path in place.glob("*"):
        if path.suffix in (".packed", PART) and path.is_file():
            with suppress(OSError):  # deleted meanwhile
                found.append((path, path.stat()))
    return found


def clear() -> tuple[int, int]:
    """Delete all files -> how many, and their bytes. Raises OSError for one that cannot be deleted."""
    files = files_in(folder())
    for path, _ in files:
        path.unlink(missing_ok=True)
    return len(files), sum(stat.st_size for _, stat in files)


@dataclass(frozen=True)
class Entry:
    """A file: the sources' paths, bytes, when it was last used (seconds since 1970), and why it is of no use, or ""."""

    path: Path
    sources: list[str]
    nbytes: int
    used: float
    fault: str


def entries() -> list[Entry]:
    """What is kept, what was used last first."""
    found = []
    for path, stat in files_in(folder()):
        sources: list[dict[str, Any]] = []
        if path.suffix == PART:
            fault = "being written" if time.time() - stat.st_mtime < STALE else "unfinished"
        else:
            try:
                text, _, _ = kept.read(mapped.map_file(path))
                sources, fault = text["sources"], next(filter(None, map(state, text["sources"])), "")
                if text["version"] != _kernels.LAYOUT_VERSION:
                    fault = "of another version"
            except NotKept as error:
                fault = str(error)
            except CheckpointError:
                fault = "it cannot be read"
        found.append(Entry(path, [str(source["path"]) for source in sources], stat.st_size, stat.st_mtime, fault))
    return sorted(found, key=lambda entry: -entry.used)


def state(source: dict[str, Any]) -> str:
    """What has become of a source since its weights were packed; "" when it is the same."""
    path = source["path"]
    try:
        now = mapped.identity(path, os.stat(path))
    except OSError:
        return "its source is gone"
    return "" if all(source[key] == value for key, value in now.items()) else "its source has changed"
