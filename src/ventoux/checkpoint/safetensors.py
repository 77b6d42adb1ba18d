"""The safetensors container: 8 bytes of header length, a JSON header, then the tensors end to end.

Format: https://github.com/huggingface/safetensors#format. As strict as the library that writes it: every byte of the
file belongs to the header or to exactly one tensor.
"""

from math import prod
from pathlib import Path
from typing import Any

from ventoux.checkpoint import strict_json
from ventoux.checkpoint.stored import Stored, damaged, refuse_overlaps, view
from ventoux.errors import CheckpointError, shown
from ventoux.mapped import map_file
from ventoux.quant import row_bytes

DTYPES = ("F32", "F16", "BF16")  # spelled as the block formats of the same numbers
TENSORS = 1 << 16


def read(path: Path) -> list[Stored]:
    """The tensors of a safetensors file; raises CheckpointError that names file, tensor and reason."""
    data = map_file(path)
    if len(data) < 8:
        raise CheckpointError(f"{path}: not a safetensors file: it has {len(data)} bytes")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(len(data) - 8, strict_json.LARGEST):
        raise CheckpointError(
            f"{path}: the header's length is given as {length} bytes, but the file has {len(data)};"
            " it is cut off, damaged, or not a safetensors file"
        )
    header = strict_json.parse(data[8 : 8 + length].tobytes(), source=f"{path}: the header")
    header.pop("__metadata__", None)
    if len(header) > TENSORS:
        raise CheckpointError(f"{path}: the header has {len(header)} tensors, more than the {TENSORS} that are allowed")
    body = data[8 + length :]
    tensors, extents = [], []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        needed = prod(shape) * row_bytes(1, dtype)
        if end - begin != needed:
            raise damaged(path, name, f"{dtype} {shape} takes {needed} bytes, not {end - begin}")
        tensors.append(view(path, name, body, offset=begin, shape=shape, format=dtype))
        extents.append((begin, end, name))
    refuse_overlaps(path, extents)
    if sum(end - begin for begin, end, _ in extents) != len(body):
        raise CheckpointError(f"{path}: there are bytes that belong to no tensor; the file is damaged, fetch it again")
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, first byte, byte after the last; both bytes counted from the header's end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, name, "expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise damaged(path, name, f"expected a dtype of {', '.join(DTYPES)}, found {shown(dtype)}")
    for key, value in (("shape", shape), ("data_offsets", offsets)):
        if not _are_sizes(value):
            raise damaged(path, name, f"{key} is not a short list of sizes")
    if len(offsets) != 2:
        raise damaged(path, name, f"data_offsets has {len(offsets)} numbers, not 2")
    if 0 in shape:
        raise damaged(path, name, f"impossible shape {tuple(shape)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 48 for n in value)
