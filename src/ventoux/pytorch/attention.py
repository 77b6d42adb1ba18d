"""Attention that never computes a block outside the window, in torch on any device, and its place in transformers.

B batch, H heads, K KV heads, T queries, S keys, D head_dim, W window. Query t stands at key `offset + t` of the S keys,
and sees the W keys that end there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "ventoux"
_BLOCK = 256  # queries at once: (W + 256) / W times the arithmetic that is needed


@dataclass(frozen=True)
class Bands:
    """What queries see beside the window: an `attention_mask` that is linear in the length.

    offset    the key at which the first query stands
    segments  int [B, S] or None: keys are seen by queries of the same number. Packed sequences have numbers of their
              own, padding has -1, so a padded query sees padding, and no row is without a key.
    """

    offset: int
    segments: Tensor | None = None

    def to(self, device: Any, **kwargs: Any) -> "Bands":
        """On another device, as accelerate moves arguments."""
        return self if self.segments is None else Bands(self.offset, self.segments.to(device, **kwargs))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    offset: int,
    scale: float,
    segments: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention within a window: query [B, H, T, D], key and value [B, K, S, D] -> [B, H, T, D].

    Time and memory are linear in W, and in T for a given W. None for a window of all keys.
    """
    T = query.shape[2]
    settings: dict[str, Any] = {"scale": scale, "dropout_p": dropout}
    if T == 1:
        return _one_query(query, key, value, window=window, at=offset, segments=segments, settings=settings)
    if segments is None and offset == 0 and (window is None or window >= T):
        key, value = _repeated(key[:, :, :T], query), _repeated(value[:, :, :T], query)
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, **settings)
    key, value = _repeated(key, query), _repeated(value, query)
    blocks = []
    for begin in range(0, T, _BLOCK):
        end = min(begin + _BLOCK, T)
        first, last = begin + offset, end + offset  # the keys of the block's queries
        low = 0 if window is None else max(0, first - window + 1)
        mask = _band(first, last, low, window, query.device)  # [t, s]
        if segments is not None:
            mask = mask & (segments[:, None, first:last, None] == segments[:, None, None, low:last])
        seen = key[:, :, low:last], value[:, :, low:last]
        blocks.append(
            nn.functional.scaled_dot_product_attention(query[:, :, begin:end], *seen, attn_mask=mask, **settings)
        )
    return torch.cat(blocks, dim=2)


def _one_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    at: int,
    segments: Tensor | None,
    settings: dict[str, Any],
) -> Tensor:
    """A step of decoding: the heads that share a KV head are its queries, so keys are read once and never repeated."""
    low = 0 if window is None else max(0, at - window + 1)
    mask = None if segments is None else segments[:, None, None, low : at + 1] == segments[:, None, None, at : at + 1]
    B, H, _, D = query.shape
    grouped = query.reshape(B, key.shape[1], -1, D)
    keys, values = key[:, :, low : at + 1], value[:, :, low : at + 1]
    return nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, **settings).reshape(
        B, H, 1, D
    )


def _band(first: int, last: int, low: int, window: int | None, device: torch.device) -> Tensor:
    """bool [last - first, last - low]: whether the query at a key sees another.

    W=3, queries at 4 5, keys 2..5: 1 1 1 0 / 0 1 1 1
    """
    queries = torch.arange(first, last, device=device)[:, None]
    keys = torch.arange(low, last, device=device)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def _repeated(kv: Tensor, query: Tensor) -> Tensor:
    """A view of [B, K, S, D] as [B, H, S, D]: each KV head stands for the heads that share it."""
    B, K, S, D = kv.shape
    groups = query.shape[1] // K
    return kv if groups == 1 else kv[:, :, None].expand(B, K, groups, S, D).reshape(B, -1, S, D)


def ventoux_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Bands | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` behind transformers' attention interface: -> [B, T, H, D], and no weights."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, Tensor):  # dense, of a caller's own making
        mask = attention_mask[..., : key.shape[2]]
        key, value = _repeated(key, query), _repeated(value, query)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, dropout_p=dropout
        )
    else:
        bands = attention_mask or Bands(offset=key.shape[2] - query.shape[2])
        out = attend(
            query,
            key,
            value,
            window=sliding_window,
            offset=bands.offset,
            scale=scale,
            segments=bands.segments,
            dropout=dropout,
        )
    return out.transpose(1, 2).contiguous(), None


def ventoux_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | Bands | None:
    """What `ventoux_attention` takes as its mask, behind transformers' interface for masks.

    A dense one where the pattern is more than causal, window and padding (transformers says so by forbidding the skip
    of causal masks), or where the length is a tensor (a compiled static cache's).
    """
    if isinstance(q_offset, Tensor) and not torch.compiler.is_compiling():
        q_offset = int(q_offset)  # a static cache's
    if not allow_is_causal_skip or isinstance(q_offset, Tensor):
        dense: Tensor = sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            **kwargs,
        )
        return dense
    segments = None
    if attention_mask is not None and not bool(attention_mask.all()):
        segments = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.int32) - 1
        segments = nn.functional.pad(segments, (0, kv_length - segments.shape[1]), value=-1)
    offset = q_offset - kv_offset
    if segments is None and offset + q_length == kv_length:
        return None  # where the queries are the last keys there is nothing to say
    return Bands(offset, segments)


def offer() -> None:
    """Let `attn_implementation="ventoux"` be said to any of transformers' models."""
    AttentionInterface.register(NAME, ventoux_attention)
    AttentionMaskInterface.register(NAME, ventoux_mask)
