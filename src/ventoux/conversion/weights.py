"""Which number format each weight gets."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ventoux import quant
from ventoux.checkpoint import Checkpoint, Tensor
from ventoux.errors import ConversionError

FLOATS = ("f32", "f16", "bf16")
DTYPES = {"raw": FLOATS, "hf": FLOATS, "gguf": (*FLOATS, "q8_0", "q4_0")}
ENDS = ("embed_tokens.weight", "lm_head.weight")  # 30% of the error of 4 bits would come from the head


def check(dtype: str | None, *, to: str) -> None:
    """Raises ConversionError when the target has no such number format."""
    if dtype is not None and dtype not in DTYPES[to]:
        elsewhere = "; GGUF has it" if dtype in DTYPES["gguf"] else ""
        raise ConversionError(f"dtype of {to} must be one of {', '.join(DTYPES[to])}, found {dtype!r}{elsewhere}")


def formats(source: Checkpoint, *, to: str, dtype: str | None) -> tuple[dict[str, str], list[str]]:
    """Our name of a tensor -> its format in the target; and what the user should know about it."""
    tensors = source.tensors
    if to == "gguf":
        chosen = {name: _in_gguf(tensor, dtype) for name, tensor in tensors.items()}
    elif dtype is not None:
        chosen = dict.fromkeys(tensors, dtype.upper())
    else:
        chosen = {name: _kept(tensor) for name, tensor in tensors.items()}
        if source.kind == "gguf":
            chosen |= _norms(tensors, chosen)
    return chosen, _remarks(tensors, chosen, dtype)


def most(tensors: Mapping[str, Tensor], chosen: Mapping[str, str]) -> str:
    """The format of most of the matrices' numbers."""
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        sizes[chosen[name]] += int(np.prod(tensor.shape)) * (len(tensor.shape) > 1)
    return sizes.most_common(1)[0][0]


def _kept(tensor: Tensor) -> str:
    """Float formats stay; block formats become float32, which holds their numbers exactly."""
    return tensor.format if tensor.format.lower() in FLOATS else "F32"


def _in_gguf(tensor: Tensor, dtype: str | None) -> str:
    if len(tensor.shape) == 1:
        return "F32"  # llama.cpp computes with norms in nothing else
    wanted = tensor.format if dtype is None else dtype.upper()
    if wanted == "Q4_0" and tensor.name in ENDS and tensor.format != wanted:
        wanted = "Q8_0"
    return wanted if tensor.shape[-1] % quant.FORMATS[wanted].block == 0 else "F16"


def _norms(tensors: Mapping[str, Tensor], chosen: Mapping[str, str]) -> dict[str, str]:
    """GGUF holds norms as F32; they go back to the format of all matrices where that loses nothing."""
    matrices = {chosen[name] for name, tensor in tensors.items() if len(tensor.shape) > 1}
    if len(matrices) > 1:
        return {}
    format = matrices.pop()
    return {
        name: format for name, tensor in tensors.items() if len(tensor.shape) == 1 and _holds(format, tensor.float32())
    }


def _holds(format: str, numbers: np.ndarray) -> bool:
    return np.array_equal(quant.dequantize(quant.quantize(numbers, format), format), numbers)


def _remarks(tensors: Mapping[str, Tensor], chosen: Mapping[str, str], dtype: str | None) -> list[str]:
    remarks = []
    moved = [(tensor, chosen[name]) for name, tensor in tensors.items() if chosen[name] != tensor.format]
    unpacked = {tensor.format for tensor, format in moved if _blocks(tensor.format) and not _blocks(format)}
    again = {tensor.format for tensor, format in moved if _blocks(tensor.format) and _blocks(format)}
    if unpacked and dtype is None:
        remarks.append(f"{', '.join(sorted(unpacked))} became F32, which is exact; --dtype bf16 takes half the space")
    if again:
        remarks.append(f"{', '.join(sorted(again))} was quantized once more; a source in F16 or BF16 would lose less")
    if dtype not in ("q8_0", "q4_0"):
        return remarks
    matrices = {tensor.name: format for tensor, format in moved if len(tensor.shape) > 1}
    if short := [name for name, format in matrices.items() if format == "F16"]:
        remarks.append(f"{len(short)} tensor(s) are F16: rows do not fill blocks of 32 ({', '.join(short[:3])})")
    if dtype == "q4_0" and (ends := [name for name in ENDS if matrices.get(name) == "Q8_0"]):
        remarks.append(f"Q8_0, for less error, in {' and '.join(ends)}")
    return remarks


def _blocks(format: str) -> bool:
    return quant.FORMATS[format].block > 1
