"""From a name to a checkpoint on this disk.

A name is a path, an alias, a hub id ("org/name", or "org/name:file.gguf"), or None for the default model. `resolve`
uses what is here and fetches only what is not; `pull` asks the hub again and checks the default model's hash again.
"""

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from ventoux.checkpoint.packaged import DEFAULT, DEFAULT_MODEL, Progress
from ventoux.errors import DownloadError, shown

ALIASES = {
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral-7b-instruct-v0.1": "mistralai/Mistral-7B-Instruct-v0.1",
    "mistral-7b-instruct-v0.2": "mistralai/Mistral-7B-Instruct-v0.2",
    "mistral-7b-instruct-v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
}
PART = r"[A-Za-z0-9_][\w.-]*"  # no leading dot: nothing that climbs out of a folder
HUB_ID = re.compile(rf"(?P<repo>{PART}/{PART})(?::(?P<file>{PART}\.gguf))?", re.ASCII)


def resolve(name: str | None = None, *, progress: Progress | None = None) -> Path:
    """The folder or .gguf file that a name means, fetched if it is not here yet; no network is touched when it is.

    `progress(bytes here, bytes in all)` is called while the default model comes; None draws a bar on standard error.
    Raises DownloadError when the name means nothing, saying what was tried, or when the model cannot be fetched.
    """
    path = local(name)
    if path is None and is_default(name):
        path = DEFAULT_MODEL.cached_in(cache_folder())
    elif path is None:
        path = recorded(hub_id(name))
    return path or pull(name, progress=progress)


def pull(name: str | None = None, *, progress: Progress | None = None) -> Path:
    """Fetch what a name means, or make sure that it is here, whole and up to date -> its path. Raises as `resolve`."""
    if path := local(name):
        return path
    if is_default(name):
        from ventoux.checkpoint.download import fetch

        return fetch(DEFAULT_MODEL, cache_folder(), progress=progress or bar(DEFAULT))
    from ventoux.checkpoint.hub import fetch_repository

    match = hub_id(name)
    path, files = fetch_repository(match["repo"], match["file"])
    record(match, path, files)
    return path


def local(name: str | None) -> Path | None:
    try:
        path = Path(name).expanduser() if name else None
        return path if path and path.exists() else None
    except (RuntimeError, ValueError):  # ~ of a user who does not exist; a NUL
        return None
    except OSError as error:
        raise DownloadError(f"{shown(name)}: cannot be read: {error.strerror}") from error


def is_default(name: str | None) -> bool:
    return name is None or name.lower() == DEFAULT


def hub_id(name: str | None) -> re.Match[str]:
    """The hub id that a name or alias means, in its parts."""
    match = HUB_ID.fullmatch(ALIASES.get(str(name).lower(), str(name)))
    looks_like_a_path = re.match(r"[.~/]", str(name)) or re.search(r"^[^:]*\.gguf$", str(name))
    if looks_like_a_path:
        raise DownloadError(f"{shown(name)}: there is no such file or folder")
    if match is None:
        raise DownloadError(
            f"no model is called {shown(name)}: there is no such file or folder, no such alias"
            f" (there are {', '.join([DEFAULT, *ALIASES])}), and it is no hub id (org/name or org/name:file.gguf)"
        )
    return match


def cache_folder() -> Path:
    """$VENTOUX_CACHE, else ventoux in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("VENTOUX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ventoux"


def receipt(match: re.Match[str]) -> Path:
    """Where we note what a hub id was fetched to, so that finding it again needs neither network nor hub client."""
    return cache_folder() / "hub" / (match[0].replace("/", "--").replace(":", "--") + ".json")


def record(match: re.Match[str], path: Path, files: list[Path]) -> None:
    note = receipt(match)
    beside = note.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # a folder that we may not write: the hub is asked again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"path": str(path), "files": [str(file) for file in files]}))
        beside.replace(note)


def recorded(match: re.Match[str]) -> Path | None:
    """What was fetched for a hub id, if every file of it is still there."""
    try:
        known = json.loads(receipt(match).read_bytes())
        return Path(known["path"]) if all(Path(file).exists() for file in known["files"]) else None
    except (OSError, ValueError, LookupError, TypeError):  # none, or one that is damaged: fetch again
        return None


def bar(label: str, doing: str = "fetching") -> Progress:
    """A progress bar on standard error, redrawn at each percent; where that is no terminal, one line at the start."""
    drawn = -1

    def draw(here: int, total: int) -> None:
        nonlocal drawn
        percent = 100 * here // total if total else 0
        if percent == drawn:
            return
        first, drawn = drawn < 0, percent
        size = f"{here / 1e6:.0f} of {total / 1e6:.0f} MB"
        if sys.stderr.isatty():
            blocks = "█" * (percent // 4)
            print(f"\r{label} {blocks:░<25} {percent:3d}%  {size}", end="", file=sys.stderr, flush=True)
            if here == total:
                print(file=sys.stderr)
        elif first:
            print(f"{doing} {label}, {total / 1e6:.0f} MB", file=sys.stderr, flush=True)

    return draw
