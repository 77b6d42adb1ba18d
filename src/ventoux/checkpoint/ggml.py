"""The tensors of a GGUF file."""

from ventoux.checkpoint.stored import Stored, damaged, refuse_overlaps, view
from ventoux.gguf import GGUFFile
from ventoux.quant import FORMATS

BY_GGML_TYPE = {format.ggml_type: name for name, format in FORMATS.items()}


def tensors(file: GGUFFile) -> list[Stored]:
    """Views of the packed tensors; raises CheckpointError when one does not lie in the file, or in another's place."""
    found, extents = [], []
    for tensor in file.tensors:
        format = BY_GGML_TYPE.get(tensor.ggml_type)
        if format is None:
            raise damaged(
                file.path,
                tensor.name,
                f"number format {tensor.ggml_type} of ggml is not supported, only {', '.join(FORMATS)};"
                " quantize the model to one of these",
            )
        stored = view(file.path, tensor.name, file.data, offset=tensor.offset, shape=tensor.shape, format=format)
        found.append(stored)
        extents.append((tensor.offset, tensor.offset + stored.data.nbytes, tensor.name))
    refuse_overlaps(file.path, extents)
    return found
