"""Writing beside the wanted place, and renaming once everything is there.

What is being written stands under a hidden name in the same folder. A kill, a full disk or Ctrl-C leaves nothing at
the wanted place that looks finished, and touches nothing that was there; the next run takes the remains away.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ventoux.checkpoint.outgoing import Piece
from ventoux.checkpoint.packaged import Progress
from ventoux.errors import ConversionError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Draft:
    """What is being written: one file at `path`, or a folder of files."""

    def __init__(self, path: Path, *, total: int, progress: Progress) -> None:
        self.path = path
        self.nbytes = 0
        self._total = total
        self._progress = progress

    def write(self, name: str | None, pieces: Iterable[Piece]) -> None:
        """A file of the folder, or (None) the one file; it is on the disk when this returns."""
        path = self.path if name is None else self.path / name
        with path.open("xb") as file:
            for piece in pieces:
                self.nbytes += file.write(piece if isinstance(piece, bytes) else piece.data)
                self._progress(self.nbytes, self._total)
            file.flush()
            os.fsync(file.fileno())


def check(target: Path, *, folder: bool) -> None:
    """Raises ConversionError when something is at the wanted place already; an empty folder may become a folder."""
    try:
        if not os.path.lexists(target):
            return
        if target.is_dir() and not target.is_symlink():
            if folder and not any(target.iterdir()):
                return
            advice = "name another folder, or empty it" if folder else f"name a file, such as {target / 'model.gguf'}"
            found = "a folder with files" if folder else "a folder"
            raise ConversionError(f"{target}: there is {found} here already; {advice}")
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written: {error.strerror}") from error
    raise ConversionError(f"{target}: there is a file here already; remove it, or name another place")


@contextmanager
def drafted(target: Path, *, folder: bool, total: int, progress: Progress) -> Iterator[Draft]:
    """A draft of `total` bytes that becomes `target` when the block ends well, and is removed when it does not.

    Raises ConversionError when there is no room, when somebody else writes to the same place, or when writing fails.
    """
    target = target.absolute()  # a change of the working folder must not move it
    made: list[Path] = []
    try:
        made += _make_parents(target.parent)
        with _alone(target):
            check(target, folder=folder)
            part = target.with_name(f".{target.name}.convert.part")
            _remove(part)  # of a run that was killed: nobody holds the lock
            _check_room(target, total)
            try:
                if folder:
                    part.mkdir()
                draft = Draft(part, total=total, progress=progress)
                yield draft
                _place(part, target)
            finally:
                _remove(part)
        made.clear()
    except OSError as error:
        what = error.strerror or error
        advice = "; free some space, or name a place that has more" if error.errno in FULL else ""
        raise ConversionError(f"{target}: cannot be written: {what}{advice}; nothing was left there") from error
    finally:
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Make what is missing of a path of folders -> what was made, the outermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()][::-1]
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Nobody else writes to this place meanwhile. The lock falls with the process that holds it, however that ends."""
    path = target.with_name(f".{target.name}.convert.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not path.exists():  # nobody holds what could not be made
            raise PermissionError(errno.EACCES, "no file can be made in its folder") from None
        raise ConversionError(
            f"{target}: another conversion is writing there; wait for it, or name another place"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: a file that appears later is another lock
        lock.release()


def _check_room(target: Path, total: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if total > free:
        raise ConversionError(
            f"{target}: {total / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free there;"
            " free some space, name another place, or choose a smaller dtype"
        )


def _place(part: Path, target: Path) -> None:
    """Give the draft its name, in one step that replaces nothing but an empty folder."""
    if part.is_dir():
        _sync(part)
        part.rename(target)
    else:
        try:
            os.link(part, target)
        except OSError as error:  # not every file system has links
            if error.errno == errno.EEXIST or os.path.lexists(target):
                raise
            part.rename(target)
    _sync(target.parent)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """The names in a folder reach the disk; not every system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
