"""LoRA adapters made and saved by PEFT, for a model of `tiny`: what a reader has to agree with."""

import copy
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import MistralForCausalLM

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: MistralForCausalLM, *, seed: int = 1, **settings: Any) -> Any:
    """A copy of the model with a new adapter, which changes its logits by about as much as they are."""
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": EVERY, "task_type": "CAUSAL_LM"}
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**chosen | settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) / weight.shape[0] ** 0.5)
    return wrapped.eval()


def save(model: MistralForCausalLM, folder: Path, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Save a new adapter as PEFT does -> the adapted model, an oracle of logits."""
    wrapped = adapted(model, **settings)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(dtype)
    wrapped.save_pretrained(folder)
    return wrapped.float()
