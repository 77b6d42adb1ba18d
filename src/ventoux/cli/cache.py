"""`cache`: the packed weights that are kept for the next start."""

import json
import time
from dataclasses import asdict

from ventoux.cli.info import megabytes
from ventoux.cpu import store
from ventoux.cpu.kept import NotKept
from ventoux.errors import VentouxError


def cache(action: str | None, *, as_json: bool) -> None:
    try:
        place, limit = store.folder(), store.limit()
        deleted = store.clear() if action == "clear" else None
        entries = store.entries()
    except NotKept as error:
        raise VentouxError(f"there is no cache folder: {error}; set VENTOUX_CACHE to one") from error
    if as_json:
        rows = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        print(json.dumps({"folder": str(place), "limit_bytes": limit, "entries": rows}, ensure_ascii=False))
    elif deleted:
        print(f"deleted {deleted[0]} file{'' if deleted[0] == 1 else 's'}, {megabytes(deleted[1])}")
    else:
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            model = ", ".join(entry.sources) or entry.path.name
            print(f"{megabytes(entry.nbytes):>12}  {used}  {entry.fault or 'good':<26}  {model}")
        total = megabytes(sum(entry.nbytes for entry in entries))
        print(f"{total} of {megabytes(limit)} in {place}")
