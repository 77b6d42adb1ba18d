"""Files of torch.save: a zip of one pickle, which says what tensors there are, and one member a storage."""

from pathlib import Path

from ventoux.checkpoint import archive, pickled
from ventoux.checkpoint.stored import Stored, damaged, view
from ventoux.errors import CheckpointError
from ventoux.mapped import map_file
from ventoux.quant import row_bytes


def read(path: Path) -> list[Stored]:
    """The tensors of a state dict, as views of the file; raises CheckpointError that names file, tensor and reason."""
    data = map_file(path)
    if data[:4].tobytes() != archive.LOCAL:
        raise CheckpointError(
            f"{path}: not a zip archive, so not a file of torch.save since 1.6 (2020); load it there and save it again"
        )
    members = archive.members(path, data)
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{path}: expected one data.pkl in the archive, found {len(roots)}")
    order = members.get(roots[0] + "byteorder")
    if order is not None and order.tobytes() != b"little":
        raise CheckpointError(f"{path}: its numbers are not little-endian; save it again on a little-endian machine")
    tensors = []
    for name, tensor in pickled.tensors(path, members[roots[0] + "data.pkl"].tobytes()).items():
        storage = tensor.storage
        member = members.get(f"{roots[0]}data/{storage.key}")
        if member is None:
            raise damaged(path, name, f"its storage {storage.key[:40]!r} is not in the archive")
        offset = tensor.offset * row_bytes(1, storage.format)
        tensors.append(view(path, name, member, offset=offset, shape=tensor.shape, format=storage.format))
    return tensors
