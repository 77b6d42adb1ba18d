"""From a checkpoint of any layout to the PyTorch classes: the same weights, dequantized into one dtype."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import GenerationConfig, MistralConfig

from ventoux import checkpoint
from ventoux.checkpoint import Tensor, pull
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError, RequestError
from ventoux.pytorch.attention import NAME
from ventoux.pytorch.model import MistralForCausalLM


def load(
    path: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    window: int | Literal["off"] | None = None,
    attn_implementation: str = NAME,
) -> MistralForCausalLM:
    """A MistralForCausalLM, in eval mode, from whatever `ventoux.load` takes: raw, Hugging Face or GGUF.

    `MistralForCausalLM.from_pretrained` is for Hugging Face's folders alone, and knows device maps and bitsandbytes.
    window  keys that a query sees, "off" for all of them; None is what the checkpoint says

    Raises CheckpointError, ConfigError or DownloadError, which say what was found and what to do.
    """
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
    device: str | torch.device,
    attn_implementation: str = NAME,
) -> MistralForCausalLM:
    """The model of a checkpoint's config and tensors; one tensor at a time is in memory twice."""
    described = huggingface_config(config)
    described._attn_implementation = attn_implementation
    with torch.device("meta"):
        model = MistralForCausalLM(described)
    for name, tensor in tensors.items():
        full = name if name == "lm_head.weight" else f"model.{name}"
        _assign(model, full, _loaded(tensor, dtype).to(device))
        tensor.release()
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(described)
    model.eval()
    return model


def huggingface_config(config: ModelConfig) -> MistralConfig:
    """Our description in transformers' terms. Raises RequestError for windows that differ from layer to layer."""
    if len(set(config.windows)) > 1:
        raise RequestError(
            "the layers' windows differ, which these classes do not have; use the cpu backend, or choose one window"
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


def _loaded(tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Raises CheckpointError for weights that are beyond the dtype's range."""
    weight = torch.from_numpy(tensor.float32())
    narrow = weight.to(dtype)
    if dtype == torch.float16 and not bool(narrow.isfinite().all()) and bool(weight.isfinite().all()):
        largest = weight.abs().max().item()
        raise CheckpointError(
            f"tensor {tensor.name}: its largest weight, {largest:g}, is beyond float16's 65504; load it as bf16 or fp32"
        )
    return narrow


def _assign(model: nn.Module, name: str, weight: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    assert getattr(module, leaf).shape == weight.shape, f"{name}: {weight.shape}"
    setattr(module, leaf, nn.Parameter(weight, requires_grad=True))
