"""Attention within a window by masked blocks of queries, with torch's public functions: for any device and dtype.

B batch, H heads, K KV heads, T queries, S keys, D head_dim, W window. Query t stands at key `offset + t`.
"""

from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 256  # queries at once: (W + 256) / W times the arithmetic that is needed


def band(first: int, last: int, low: int, window: int, device: torch.device) -> Tensor:
    """bool [last - first, last - low]: whether the query at a key sees another.

    W=3, queries at 4 5, keys 2..5: 1 1 1 0 / 0 1 1 1
    """
    queries = torch.arange(first, last, device=device)[:, None]
    keys = torch.arange(low, last, device=device)
    return (keys <= queries) & (keys > queries - window)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """bool -> 0 and minus infinity."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    offset: int,
    segments: Tensor | None,
    settings: dict[str, Any],
) -> Tensor:
    """query [B, H, T, D], key and value [B, K, S, D] -> [B, H, T, D]; settings are torch's scale and dropout_p."""
    B, H, T, D = query.shape
    K = key.shape[1]
    # the heads that share a KV head become heads of a batch of B * K, so that keys are not repeated
    q = query.reshape(B * K, -1, T, D)
    k, v = (x.reshape(B * K, 1, *x.shape[2:]).expand(-1, H // K, -1, -1) for x in (key, value))
    blocks = []
    mask: Tensor | None = None
    for begin in range(0, T, _BLOCK):
        end = min(begin + _BLOCK, T)
        first, last = begin + offset, end + offset  # the keys of the block's queries
        low = max(0, first - window + 1)
        if segments is not None:
            seen = segments[:, first:last, None] == segments[:, None, low:last]
            seen = seen & band(first, last, low, window, query.device)
            mask = additive(seen, query.dtype).repeat_interleave(K, 0)[:, None]
        elif mask is None or mask.shape != (end - begin, last - low):  # most blocks have the same
            mask = additive(band(first, last, low, window, query.device), query.dtype)
        blocks.append(
            nn.functional.scaled_dot_product_attention(
                q[:, :, begin:end], k[:, :, low:last], v[:, :, low:last], attn_mask=mask, **settings
            )
        )
    return torch.cat(blocks, dim=2).view(B, H, T, -1)
