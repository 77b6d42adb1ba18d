"""JSON from strangers: one object, no key twice, bounded in size and depth. And ours, as it is written into files."""

import json
from pathlib import Path
from typing import Any

from ventoux.errors import CheckpointError

LARGEST = 1 << 24  # bytes; the index of a model of 10,000 tensors has 1,000,000


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError that names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(data, source=str(path))


def parse(data: bytes, *, source: str) -> dict[str, Any]:
    """The object that these bytes spell; `source` names them in errors."""
    if len(data) > LARGEST:
        raise CheckpointError(f"{source}: more than {LARGEST} bytes of JSON")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{source}: not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: expected a JSON object, found a {type(value).__name__}")
    return value


def written(value: dict[str, Any]) -> bytes:
    """The text of a JSON file; surrogates, which stand for bytes that are no UTF-8, are escaped."""
    return (json.dumps(value, indent=2) + "\n").encode()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
