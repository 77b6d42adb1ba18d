"""What stands beside the weights and says what they are: config.json, or the metadata of a GGUF file."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ventoux.checkpoint import Checkpoint, strict_json
from ventoux.checkpoint.outgoing import Outgoing
from ventoux.config import to_generation, to_gguf, to_huggingface
from ventoux.config.huggingface import HARMLESS
from ventoux.quant import FORMATS

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# llama.cpp's numbers for "mostly this format" (enum llama_ftype of llama.h)
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7}
FILE_TYPES |= {"Q4_K": 15, "Q5_K": 17, "Q6_K": 18}
# transformers warns of tokenizers that its versions before 5 wrote with a wrong pattern; ours are right
FIRST_VERSION = "5.0.0"
# what is another file's, and not the model's
NOT_KEPT = frozenset(
    ("_name_or_path", "_attn_implementation", "_flash_attn_2_enabled", "attn_implementation", "dtype", "name")
)


def huggingface(source: Checkpoint, *, dtype: str) -> dict[str, dict[str, Any]]:
    """config.json and, when there are ids to name or one stood there, generation_config.json.

    A Hugging Face source keeps its keys that do not describe the model (initializer_range, pad_token_id, ...).
    """
    described, generation = to_huggingface(source.config, dtype=dtype), to_generation(source.config)
    described["transformers_version"] = FIRST_VERSION
    if source.kind == "huggingface":
        found = strict_json.read(source.path / "config.json")
        ours = described.keys() | NOT_KEPT
        described |= {key: value for key, value in found.items() if key in HARMLESS and key not in ours}
        if (source.path / "generation_config.json").exists():
            generation = strict_json.read(source.path / "generation_config.json")
    return {"config.json": described} | ({"generation_config.json": generation} if generation else {})


def metadata(
    source: Checkpoint, tensors: Sequence[Outgoing], vocabulary: Mapping[str, Any], *, keep: bool
) -> dict[str, Any]:
    """All key/values of a GGUF file, in order. A GGUF source keeps its own; `keep`: its model's description too."""
    files = {"general.file_type": FILE_TYPES[_most(tensors)]}
    if any(FORMATS[tensor.format].block > 1 for tensor in tensors):
        files["general.quantization_version"] = 2
    if source.kind == "gguf":
        same = all(tensor.format == tensor.tensor.format for tensor in tensors)
        described = dict(source.metadata) | dict(vocabulary)
        if not same:  # nor does the importance matrix of another quantization say anything of this one
            described = {key: v for key, v in described.items() if not key.startswith("quantize.imatrix.")} | files
        if keep:
            return described
        described.pop("llama.attention.sliding_window", None)
        new = to_gguf(source.config)
        return described | {key: new[key] for key in _TOLD if key in new}
    general = {"general.architecture": "llama", "general.type": "model"} | files
    return general | to_gguf(source.config) | dict(vocabulary)


_TOLD = ("llama.attention.sliding_window", "llama.context_length")


def _most(tensors: Sequence[Outgoing]) -> str:
    """The format of most numbers of the layers' matrices: what a file is called after."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and tensor.name.startswith("blk."):
            sizes[tensor.format] = sizes.get(tensor.format, 0) + prod(tensor.shape)
    return max(sizes, key=lambda format: sizes[format])
