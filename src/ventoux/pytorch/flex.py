"""FlexAttention on a CPU, where transformers' way of calling it breaks when lengths change.

transformers compiles it; inductor's CPU template fails to compile for dynamic shapes (torch 2.13), which is what each
step of decoding is. On a CPU it is called as it is, uncompiled: exact, and not fast; and since it has no backward pass
there, SDPA computes the same when gradients are wanted. On other devices, and inside a torch.compile of the caller's,
transformers' way is taken.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask

warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")


def _compiled(device: torch.device | str) -> bool:
    return torch.compiler.is_compiling() or torch.device(device).type != "cpu"


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """-> [B, T, H, D]. Raises ValueError for dropout, which FlexAttention does not have."""
    if dropout > 0:
        raise ValueError("flex_attention has no dropout; set config.attention_dropout to 0 or train with another one")
    if query.requires_grad and not _compiled(query.device) and isinstance(attention_mask, BlockMask):
        B, (T, S) = query.shape[0], (query.shape[2], key.shape[2])
        attention_mask = create_mask(attention_mask.mask_mod, B, None, T, S, device=str(query.device))
    if isinstance(attention_mask, Tensor):  # dense: there are no blocks to leave out
        dense, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return dense, None
    if _compiled(query.device):
        out, weights = flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return out, weights
    shared = query.shape[1] != key.shape[1]
    out = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=shared)
    return out.transpose(1, 2).contiguous(), None


def flex_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    *,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Any:
    """The BlockMask of a mask function over positions, and of padding [B, kv_offset + kv_length]."""
    if _compiled(device):
        settings = {**kwargs, "mask_function": mask_function, "attention_mask": attention_mask, "device": device}
        return flex_attention_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **settings)
    if isinstance(q_offset, Tensor):
        q_offset = int(q_offset)  # a static cache counts on in place, before the mask is asked
    padding = attention_mask
    if padding is not None:
        padding = torch.nn.functional.pad(padding, (0, max(0, kv_offset + kv_length - padding.shape[1])))

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = mask_function(batch, head, query + q_offset, key + kv_offset)
        return seen if padding is None else seen & padding[batch, key + kv_offset]

    return create_block_mask(visible, B=batch_size, H=None, Q_LEN=q_length, KV_LEN=kv_length, device=str(device))
