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
from ventoux.pytorch.cache import RollingCache
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


def packed(
    position_ids: Tensor | None, cu_seq_lens: Tensor | None, *, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """-> position_ids and the number of each token's sequence, [B, T]; None for those that are not said to be packed.

    Sequences begin at cu_seq_lens [N + 1] of the B x T tokens, or else where positions begin anew.
    """
    B, T = shape
    if cu_seq_lens is None:
        return position_ids, None if position_ids is None else packed_segments(position_ids.expand(B, -1))
    begins = cu_seq_lens.to(device, torch.int64)
    if begins[0] != 0 or begins[-1] != B * T or (begins.diff() < 0).any():
        raise ValueError(f"cu_seq_lens_q must go up from 0 to the {B * T} tokens of the batch; found {begins.tolist()}")
    places = torch.arange(B * T, device=device)
    segments = torch.searchsorted(begins[1:], places, right=True)
    positions = (places - begins[segments]).view(B, T) if position_ids is None else position_ids
    return positions, segments.view(B, T)


def lengths_for_flash(segments: Tensor) -> dict[str, Any]:
    """What FlashAttention wants to know of packed rows [B, T], which it takes as one row of B x T."""
    begins = torch.diff(segments, prepend=segments[:, :1] - 1) != 0  # each row's first token begins one
    ends = torch.tensor([segments.numel()], device=segments.device)
    cu_seq_lens = torch.cat((begins.flatten().nonzero().view(-1), ends)).int()
    longest = int(cu_seq_lens.diff().max())
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_segments(position_ids: Tensor) -> Tensor | None:
    """The number of the sequence that each token of a packed row belongs to, int64 [B, T]; None for one sequence.

    Positions 0 1 2 0 1 -> 0 0 0 1 1: wherever they do not go up by one, another sequence begins.
    """
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    segments = begins.cumsum(-1)
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return segments


def check_shapes(embeds: Tensor, position_ids: Tensor | None) -> None:
    """Refuse embeds that are not [B, T, E], with tokens in it, and position_ids that are not [B or 1, T]."""
    if embeds.dim() != 3 or embeds.numel() == 0:
        found = list(embeds.shape[:-1])
        raise ValueError(f"input_ids must be [batch, tokens] with at least one token; found the shape {found}")
    B, T = embeds.shape[:2]
    if position_ids is not None and tuple(position_ids.shape) not in ((B, T), (1, T)):
        raise ValueError(f"position_ids must be {[B, T]}, as the tokens are; found {list(position_ids.shape)}")


def check_mask(attention_mask: Tensor, *, batch: int, past: Any, length: int, window: int | None) -> None:
    """Refuse a mask [B, past + length] that does not fit, or whose padding a cache of the window cannot know about."""
    total = past + length
    if not torch.compiler.is_compiling() and bool(((attention_mask != 0) & (attention_mask != 1)).any()):
        raise ValueError("attention_mask [batch, tokens] is 1 for real tokens and 0 for padding; found other values")
    if attention_mask.shape[0] != batch:
        raise ValueError(f"attention_mask has {attention_mask.shape[0]} rows; expected {batch}")
    if attention_mask.shape[1] != total:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} columns; expected {total}: {past} for the tokens in the"
            f" cache and {length} for the new ones"
        )
    if past and window is not None and total > window and not torch.compiler.is_compiling():
        mask = attention_mask.bool()
        before, behind = mask.cumsum(-1), mask.flip(-1).cumsum(-1).flip(-1)
        if bool((~mask & (before > 0) & (behind > 0)).any()):
            raise ValueError(
                f"padding between tokens with a cache of {window} positions: real tokens were evicted for it; all"
                ' padding has to stand before the first token (tokenizer.padding_side = "left")'
            )


def check_positions(position_ids: Tensor, attention_mask: Any) -> None:
    """Refuse positions that begin anew among the real tokens of a row, where a mask or a cache is given too."""
    T = position_ids.shape[1]
    if torch.compiler.is_compiling() or T == 1 or (isinstance(attention_mask, Tensor) and attention_mask.dim() != 2):
        return
    again = position_ids.diff() <= 0
    if isinstance(attention_mask, Tensor):
        real = attention_mask[:, -T:].to(again.device).bool()
        again = again & real[:, 1:] & real[:, :-1]
    if bool(again.any()):
        raise ValueError(
            "positions begin anew within a row: packed sequences have neither attention_mask nor cache, which"
            " would let them see each other"
        )


def check_prompt(attention_mask: Any) -> None:
    """Refuse prompts [B, T] that are padded on the right."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt ends in padding, and generation would go on from the padding; pad on the left"
            ' (tokenizer.padding_side = "left")'
        )


def attention_mask_for(
    implementation: str,
    *,
    config: MistralConfig,
    embeds: Tensor,
    attention_mask: Any,
    cache: Cache | None,
    segments: Tensor | None = None,
) -> Any:
    """What the attention implementation takes as its mask, for queries embeds [B, T, E].

    attention_mask is 2D [B, past + T], 4D [B, 1, T, past + T], or already what the implementation takes. segments
    [B, T] are the sequences of a packed batch, which has no past.
    """
    B, T = embeds.shape[:2]
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and not attention_mask.is_floating_point():
        attention_mask = attention_mask.bool()  # 1 is seen; as numbers to add they would say nothing
    q_offset, kv_length, kv_offset = 0, T, 0
    if cache is not None:
        q_offset = cache.get_seq_length()
        kv_length, kv_offset = cache.get_mask_sizes(T, 0)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and attention_mask.shape[3] > kv_length:
            return attention_mask[..., kv_offset : kv_offset + kv_length]  # the cache has let go of the others
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
        return attention_mask
    if implementation not in MASKS:
        return None
    window = config.sliding_window
    ring = isinstance(cache, RollingCache) and implementation != "eager"  # whose weights are shown in order
    if ring and T == 1 and _all_real(attention_mask, window):
        return None  # a ring holds nothing but what its next query sees
    visible = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    if segments is not None:
        if implementation == NAME:
            return Bands(0, segments)
        visible = _within(segments, visible)
    static = getattr(cache, "is_compileable", False)
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


def _all_real(attention_mask: Tensor | None, window: int | None) -> bool:
    """Whether the last W columns have no padding; not looked at while compiling, which could not branch on it."""
    if attention_mask is None:
        return True
    return not torch.compiler.is_compiling() and bool(attention_mask[:, -(window or 0) :].all())


def _within(segments: Tensor, visible: Any) -> Any:
    """Of what is visible, the keys of the query's own sequence."""

    def within(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return visible(batch, head, query, key) & (segments[batch, query] == segments[batch, key])

    return within
