"""From a checkpoint of any layout to the PyTorch classes: the same weights, dequantized into one dtype."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, MistralConfig

from ventoux import checkpoint, quant
from ventoux.checkpoint import Tensor, pull
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError, OutOfMemoryError, RequestError, shown
from ventoux.pytorch.attention import NAME
from ventoux.pytorch.model import MistralForCausalLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # formats that torch reads as they are
_CHUNK = 32768  # weights: they stay in a core's cache, and torch converts them without threads of its own


def load(
    path: str | Path | None = None,
    *,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    window: int | Literal["off"] | None = None,
    attn_implementation: str = NAME,
) -> MistralForCausalLM:
    """A MistralForCausalLM, in eval mode, from whatever `ventoux.load` takes: raw, Hugging Face or GGUF.

    `MistralForCausalLM.from_pretrained` is for Hugging Face's folders alone, and knows device maps and bitsandbytes.

    dtype   a torch.dtype, or "fp32", "bf16", "fp16"
    window  keys that a query sees, "off" for all of them; None is what the checkpoint says

    Raises RequestError, CheckpointError, ConfigError, DownloadError or OutOfMemoryError, which say what was found and
    what to do.
    """
    dtype, device = dtype_named(dtype), usable_device(device)
    found = checkpoint.read(pull.resolve(None if path is None else str(path)))
    config = found.config
    if window is not None:
        config = config.with_window(None if window == "off" else window)
    return build(config, found.tensors, dtype=dtype, device=device, attn_implementation=attn_implementation)


def build(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str = NAME,
) -> MistralForCausalLM:
    """The model of a checkpoint's config and tensors; what is in memory twice is one tensor at most.

    Raises RequestError, CheckpointError or OutOfMemoryError.
    """
    described = huggingface_config(config)
    described.dtype = dtype
    described._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = MistralForCausalLM(described)
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    too_large = f"the weights take {needed} bytes in {dtype}, which do not fit; use bf16, or a smaller model"
    with memory_errors(too_large), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, tensor in tensors.items():
            full = name if name == "lm_head.weight" else f"model.{name}"
            _assign(model, full, _dense(tensor, dtype, pool).to(device))
            tensor.release()
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(described)
    model.eval()
    return model


def huggingface_config(config: ModelConfig) -> MistralConfig:
    """Our description in transformers' terms. Raises RequestError for windows that differ from layer to layer."""
    if len(set(config.windows)) > 1:
        raise RequestError(
            "the layers' windows differ, which a MistralConfig cannot say; use ventoux.load, or choose one window"
        )
    return MistralConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.context_length,
        sliding_window=config.window,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=config.bos_id,
        eos_token_id=list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None),
    )


def dtype_named(dtype: str | torch.dtype) -> torch.dtype:
    """Raises RequestError for what is no dtype of a model."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise RequestError(f"dtype must be {', '.join(DTYPES)} or such a torch.dtype, found {shown(str(dtype))}")
    return found


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name, tried out. Raises RequestError where torch cannot use it."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # what torch raises differs from device to device
        reason = re.split(r"\.?\s*\n|\. ", str(error).strip().removesuffix("."))[
            0
        ]  # the first sentence; some tell pages
        raise RequestError(f"device {shown(str(name))} cannot be used by torch here: {reason}; use cpu") from error
    return device


@contextmanager
def memory_errors(message: str) -> Iterator[None]:
    """What torch raises when a device's or the system's memory is used up becomes an OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # only some accelerators have an error of their own for it; the system's allocator says it in words
        used_up = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not used_up and not any(words in str(error) for words in ("can't allocate memory", "out of memory")):
            raise
        raise OutOfMemoryError(message) from error


def _dense(tensor: Tensor, dtype: torch.dtype, pool: ThreadPoolExecutor) -> torch.Tensor:
    """The weights unpacked, some rows at a time on each thread.

    Raises CheckpointError for a weight that is no number, or beyond the dtype's range.
    """
    dense = torch.empty(tensor.shape, dtype=dtype)
    rows = dense.view(len(tensor.data), -1)  # a vector is one row
    step = max(1, _CHUNK // rows.shape[1])
    for damage in pool.map(lambda begin: _fill(rows, tensor, begin, begin + step), range(0, len(rows), step)):
        if damage:
            raise CheckpointError(f"tensor {tensor.name}: {damage}")
    return dense


def _fill(rows: torch.Tensor, tensor: Tensor, begin: int, end: int) -> str:
    """Unpack some rows -> what is wrong with them, or nothing."""
    part = slice(begin, end)
    packed = np.array(tensor.data[part]) if tensor.row_order is None else tensor.data[tensor.row_order[part]]
    if tensor.format in _FLOATS:
        numbers = torch.from_numpy(packed).view(_FLOATS[tensor.format])
    else:
        numbers = torch.from_numpy(quant.dequantize(packed, tensor.format))
    rows[part] = numbers
    if bool(rows[part].isfinite().all()):
        return ""
    if not bool(numbers.isfinite().all()):
        return "some of its weights are not finite numbers; the file is damaged, fetch it again"
    largest = numbers.abs().max().item()
    return f"a weight of {largest:g} is beyond {rows.dtype}'s {torch.finfo(rows.dtype).max:g}; load it as bf16 or fp32"


def _assign(model: nn.Module, name: str, weight: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    assert getattr(module, leaf).shape == weight.shape, f"{name}: {weight.shape}"
    setattr(module, leaf, nn.Parameter(weight, requires_grad=True))
