"""Attention that never computes a block outside the window, in torch on any device, and its place in transformers.

B batch, H heads, K KV heads, T queries, S keys, D head_dim, W window. Query t stands at key `offset + t` of the S keys,
and sees the W keys that end there.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from ventoux.pytorch.blocks import masked_attention
from ventoux.pytorch.window import SHORT, fits, window_attention

NAME = "ventoux"
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias")  # what some models want, and scores here do not get


@dataclass(frozen=True)
class Bands:
    """What queries see: an `attention_mask` that is linear in the length.

    offset    the key at which the first query stands
    segments  int [B, S] or None: keys are seen by queries of the same number. Packed sequences have numbers of their
              own, padding has -1, so a padded query sees padding, and no row is without a key.
    window    W, where whoever made the mask knows it
    """

    offset: int
    segments: Tensor | None = None
    window: int | None = None
    ndim = 4  # transformers asks whether a mask [B, T] has been made into what attention takes; it has

    def contiguous(self) -> "Bands":
        """What `generate()` asks of each mask that it makes for a static cache."""
        return self

    def to(self, device: Any, **kwargs: Any) -> "Bands":
        """On another device, as accelerate moves arguments."""
        return self if self.segments is None else replace(self, segments=self.segments.to(device, **kwargs))


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

    Time and memory are linear in W, and in T for a given W. None for a window of all keys. Keys after the last query's
    are not looked at. Raises ValueError for shapes that do not fit each other.
    """
    _check(query, key, value, window=window, offset=offset, segments=segments)
    T = query.shape[2]
    end = offset + T
    low = 0 if window is None else max(0, offset - window + 1)
    key, value, offset = key[:, :, low:end], value[:, :, low:end], offset - low
    segments = None if segments is None else segments[:, low:end]
    settings: dict[str, Any] = {"scale": scale, "dropout_p": dropout}
    if T == 1:
        mask = None if segments is None else (segments == segments[:, -1:])[:, None, None]
        return _one_query(query, key, value, mask=mask, settings=settings)
    width = end if window is None else window
    device = query.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):  # as torch does for its own
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if T >= SHORT and dropout == 0 and fits(query, key, value):
        out: Tensor = window_attention(query, key, value, segments, width, offset, scale)[0]
        return out
    if segments is None and offset == 0 and width >= T:
        shared = query.shape[1] != key.shape[1]
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=shared, **settings
        )
    return masked_attention(query, key, value, window=width, offset=offset, segments=segments, settings=settings)


def _check(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None, offset: int, segments: Tensor | None
) -> None:
    """Refuse what would be computed as something else."""
    (B, H, T, _), (K, S) = query.shape, key.shape[1:3]
    if key.shape[0] != B or H % K or value.shape[:3] != key.shape[:3]:
        found = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise ValueError(f"expected query [B, H, T, D], key and value [B, K, S, D], where K divides H; found {found}")
    if window is not None and window < 1:
        raise ValueError(f"a window is at least 1 key, the query's own; found {window} (None for all keys)")
    if not 0 <= offset <= S - T:
        raise ValueError(f"{T} queries at an offset of {offset} do not stand among {S} keys")
    if segments is not None and (segments.shape[0] != B or segments.shape[1] < offset + T):
        raise ValueError(f"segments number the keys, [{B}, {offset + T}] of them; found {list(segments.shape)}")


def _one_query(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, settings: dict[str, Any]) -> Tensor:
    """A step of decoding: the heads that share a KV head are its queries, so keys are read once and never repeated.

    mask [B or 1, 1, 1, S]
    """
    B, H, _, D = query.shape
    grouped = query.reshape(B, key.shape[1], -1, D)
    out = nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, **settings)
    return out.reshape(B, H, 1, -1)


def _dense(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, settings: dict[str, Any]) -> Tensor:
    """Attention with a mask [B or 1, 1 or H, T, S] of a caller's own making; None: every key is seen."""
    if query.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        return _one_query(query, key, value, mask=mask, settings=settings)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **settings)


def ventoux_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Bands | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` behind transformers' attention interface: -> [B, T, H, D], and no weights.

    Raises ValueError for what changes the scores, which this implementation does not do.
    """
    for name in _CHANGES_SCORES:
        if kwargs.get(name) is not None:
            raise ValueError(f'attn_implementation="{NAME}" has no {name}, which this model needs; use "eager"')
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if isinstance(attention_mask, Tensor) or (attention_mask is None and not causal):
        mask = None if attention_mask is None else attention_mask[..., : key.shape[2]]
        settings = {"scale": scale, "dropout_p": dropout}
        out = _dense(query, key, value, mask=mask, settings=settings)
    else:
        bands = attention_mask or Bands(offset=key.shape[2] - query.shape[2])
        out = attend(
            query,
            key,
            value,
            window=bands.window or sliding_window,
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
    attention_mask: Tensor | Bands | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | Bands | None:
    """What `ventoux_attention` takes as its mask, behind transformers' interface for masks.

    A dense one where the pattern is more than causal, window and padding (transformers says so by forbidding the skip
    of causal masks; a config with chunks does), or where the length is a tensor (a compiled static cache's).
    """
    if isinstance(attention_mask, Bands):
        return attention_mask  # made by `generate()` before it called the model
    compiling = torch.compiler.is_compiling()
    if isinstance(q_offset, Tensor) and not compiling:
        q_offset = int(q_offset)  # a static cache's
    plain = allow_is_causal_skip and getattr(config, "attention_chunk_size", None) is None
    if not plain or isinstance(q_offset, Tensor):
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
    # compiled code cannot ask what is in a tensor
    if attention_mask is not None and (compiling or not bool(attention_mask.all())):
        segments = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.int32) - 1
        segments = nn.functional.pad(segments, (0, kv_length - segments.shape[1]), value=-1)
    offset = q_offset - kv_offset
    if segments is None and offset + q_length == kv_length and (local_size is None or kv_length <= local_size):
        return None  # where the queries are the last keys and none is out of sight there is nothing to say
    return Bands(offset, segments, local_size)


def offer() -> None:
    """Let `attn_implementation="ventoux"` be said to any of transformers' models."""
    AttentionInterface.register(NAME, ventoux_attention)
    AttentionMaskInterface.register(NAME, ventoux_mask)
