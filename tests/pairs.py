"""Our PyTorch classes beside transformers' own, with the same weights."""

from typing import Any

import torch
import transformers
from tiny import tiny_config
from torch import Tensor

from ventoux import pytorch

HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "ventoux")


def scaled(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Weights that make outputs worth comparing: attention that looks at something, logits of a few units."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(0.1 * noise + ("norm" in name))
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)


def ours(
    head: str = "ForCausalLM", *, implementation: str = "ventoux", dtype: torch.dtype = torch.float32, **settings: Any
) -> Any:
    """A tiny model of ours in eval mode; the same settings give the same weights."""
    config = tiny_config(**settings)
    config._attn_implementation = implementation
    model = getattr(pytorch, f"Mistral{head}")(config)
    scaled(model)
    return model.to(dtype).eval()


def theirs(model: Any, *, implementation: str = "eager") -> Any:
    """transformers' own model, with the config and the weights of ours."""
    config = type(model.config)(**model.config.to_dict())
    config._attn_implementation = implementation
    other = getattr(transformers, type(model).__name__)(config).to(model.dtype)
    other.load_state_dict(model.state_dict(), strict=True)
    return other.train(model.training)


def tokens(*shape: int, seed: int = 0, low: int = 3, high: int = 96) -> Tensor:
    """Random token ids; 0, 1 and 2 are kept for padding and ends."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], *, side: str = "left", pad: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged rows -> ids and mask [B, longest]."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(None, len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """What transformers' own models have to be told for a padded batch."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def close(found: Any, expected: Any, *, within: float = 1e-5) -> None:
    """Equal shapes, and equal within 1e-5 of the largest that is expected, or of one."""
    assert found.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max().item() <= within * scale
