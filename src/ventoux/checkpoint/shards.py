"""Checkpoints cut into several files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ventoux.checkpoint import strict_json
from ventoux.checkpoint.stored import Stored, damaged
from ventoux.errors import CheckpointError, shown


def read(paths: Sequence[Path]) -> dict[str, list[Stored]]:
    """name -> what each file has under that name, in the order of the files."""
    from ventoux.checkpoint import safetensors, torchfile  # here, for a GGUF file needs neither

    found: dict[str, list[Stored]] = {}
    for path in paths:
        for tensor in safetensors.read(path) if path.suffix == ".safetensors" else torchfile.read(path):
            found.setdefault(tensor.name, []).append(tensor)
    return found


def read_index(index: Path) -> dict[str, list[Stored]]:
    """The same for a Hugging Face index: each tensor stands in the file that it names, and only there."""
    places = strict_json.read(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object from tensors to files")
    files = sorted(set(places.values()))
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    for file in files:
        if Path(file).name != file or "\\" in file or "\0" in file or Path(file).suffix != suffix:
            raise CheckpointError(
                f"{index}: weight_map: expected the name of a {suffix} file here, found {shown(file)}"
            )
    found = read([index.parent / file for file in files])
    for name, parts in found.items():
        if [part.file.name for part in parts] != [places.get(name)]:
            raise damaged(parts[0].file, name, f"{index.name} says that it stands in {shown(places.get(name))}")
    if absent := sorted(places.keys() - found.keys()):
        raise damaged(index.parent / places[absent[0]], absent[0], f"it is missing, but {index.name} names it")
    return found


def joined(parts: Sequence[Stored], shape: tuple[int, ...]) -> Stored:
    """One tensor of a known shape from the parts that model parallelism made of it.

    2 parts (48, 64) of (96, 64) are stacked; 2 parts (64, 32) of (64, 64) are set side by side; 2 parts (64,) of
    (64,) must be equal. A tensor in one part stays a view of its file, several are copied together.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.format != first.format or len(part.shape) != len(shape) for part in parts):
        raise damaged(first.file, first.name, "its parts have different number formats or dimensions")
    if all(part.shape == shape for part in parts):
        if not all(np.array_equal(part.data, first.data) for part in parts):
            raise damaged(first.file, first.name, "several files have it whole, with different numbers")
        return first
    for axis in range(len(shape)):
        sums = sum(part.shape[axis] for part in parts)
        others_fit = all(
            part.shape[other] == size for part in parts for other, size in enumerate(shape) if other != axis
        )
        if sums == shape[axis] and others_fit:
            data = np.concatenate([part.data for part in parts], axis=axis if len(shape) == 2 else 1)
            return Stored(first.file, first.name, shape, first.format, data)
    shapes = " and ".join(str(part.shape) for part in parts[:8])
    raise damaged(first.file, first.name, f"expected parts of {shape}, found {shapes}; is a file missing?")
