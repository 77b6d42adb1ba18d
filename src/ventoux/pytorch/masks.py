"""Which positions tokens stand at, and what each attention implementation is told about who sees whom."""

from typing import Any

import torch
from torch import Tensor
from transformers import MistralConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    AttentionMaskInterface,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from ventoux.pytorch.attention import NAME, Bands
from ventoux.pytorch.flex import flex_mask

MASKS = AttentionMaskInterface()  # transformers' own table, with one entry of ours over it
MASKS["flex_attention"] = flex_mask
WITHOUT_TENSORS = (NAME, "flex_attention")  # whose masks are objects of their own, unless they are given a tensor


def positions(attention_mask: Tensor | None, *, past: int | Tensor, length: int, device: torch.device) -> Tensor:
    """Where each of the last `length` tokens stands among the real ones of its row, int64 [B or 1, length].

    0 0 1 1 1 -> 0 0 0 1 2; padding on the right, 1 1 1 0 0 -> 0 1 2 2 2.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return (torch.arange(length, device=device) + past).unsqueeze(0)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def packed_segments(position_ids: Tensor) -> Tensor | None:
    """The number of the sequence that each token of a packed row belongs to, int64 [B, T]; None for one sequence.

    Positions 0 1 2 0 1 -> 0 0 0 1 1: wherever they do not go up by one, another sequence begins.
    """
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    segments = begins.cumsum(-1)
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return segments


def check_mask(attention_mask: Tensor, *, past: Any, length: int, window: int | None) -> None:
    """Refuse a mask [B, past + length] that does not fit, or whose padding a cache of the window cannot know about."""
    total = past + length
    if attention_mask.shape[1] != total:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} columns; expected {total}: {past} for the tokens in the"
            f" cache and {length} for the new ones"
        )
    if past and window is not None and total > window and not torch.compiler.is_compiling():
        mask = attention_mask.bool()
        if bool((mask.cumsum(-1).bool() & ~mask).any()):
            raise ValueError(
                f"padding between tokens with a cache of {window} positions: real tokens were evicted for it; pad on"
                ' the left (tokenizer.padding_side = "left")'
            )


def check_prompt(attention_mask: Any) -> None:
    """Refuse prompts [B, T] that are padded on the right."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt is padded on the right, and generation would go on from the padding; pad on the left"
            ' (tokenizer.padding_side = "left")'
        )


def attention_mask_for(
    implementation: str,
    *,
    config: MistralConfig,
    embeds: Tensor,
    attention_mask: Any,
    past_key_values: Cache | None,
    segments: Tensor | None = None,
) -> Any:
    """What the attention implementation takes as its mask, for queries embeds [B, T, E].

    attention_mask is 2D [B, past + T], or already what the implementation takes. segments [B, T] are the sequences of
    a packed batch, which has no past.
    """
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
        return attention_mask
    if implementation not in MASKS:
        return None
    B, T = embeds.shape[:2]
    window = config.sliding_window
    visible = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    if segments is not None:
        if implementation == NAME:
            return Bands(0, segments)
        visible = _within(segments, visible)
    q_offset, kv_length, kv_offset = 0, T, 0
    static = getattr(past_key_values, "is_compileable", False)
    if past_key_values is not None:
        q_offset = past_key_values.get_seq_length()
        kv_length, kv_offset = past_key_values.get_mask_sizes(T, 0)
    return MASKS[implementation](
        batch_size=B,
        q_length=T,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=visible,
        attention_mask=None if attention_mask is None else attention_mask.to(embeds.device, torch.bool),
        allow_is_causal_skip=segments is None and not (static and T == 1),  # a compiled step wants a tensor
        local_size=window,
        dtype=embeds.dtype,
        config=config,
        use_vmap=False,
        device=embeds.device,
    )


def _within(segments: Tensor, visible: Any) -> Any:
    """Of what is visible, the keys of the query's own sequence."""

    def within(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return visible(batch, head, query, key) & (segments[batch, query] == segments[batch, key])

    return within
