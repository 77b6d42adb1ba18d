"""FlashAttention-2 runs on CUDA only. This stands in its place: what its documentation says, in torch."""

from collections.abc import Callable
from typing import Any

import torch
from pairs import ours
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils


def reference_flash(calls: list[dict[str, Any]]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """flash_attn's two functions by their documentation, in torch: FlashAttention-2 itself runs on CUDA only.

    window_size (left, right): the query i of q sees keys i + k - q - left .. i + k - q + right; causal makes right 0.
    """

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        calls.append({"window_size": window_size, "causal": causal, "shape": tuple(k.shape)})
        groups = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        at = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        keys = torch.arange(k.shape[1])
        left, right = window_size[0], 0 if causal else window_size[1]
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        seen &= (keys >= at - left) | (left < 0)
        seen &= (keys <= at + right) | (right < 0)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ):
        settings = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size}
        assert int(max_seqlen_q) == int(cu_seqlens_q.diff().max())
        assert int(max_seqlen_k) == int(cu_seqlens_k.diff().max())
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        ends = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
        parts = [flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **settings)[0] for a, b, c, d in ends]
        return torch.cat(parts)

    return flash_attn_func, flash_attn_varlen_func


def replace_flash(monkeypatch: Any) -> list[dict[str, Any]]:
    """Let transformers call the reference; -> the calls as they come."""
    calls: list[dict[str, Any]] = []
    one, many = reference_flash(calls)
    functions = (one, many, None, flash_utils._pad_input, flash_utils._unpad_input)
    process = flash_utils._lazy_define_process_function(many)
    imported = lambda *args, **kwargs: (functions, (process, None))  # noqa: E731
    monkeypatch.setattr(flash_utils, "lazy_import_flash_attention", imported)
    return calls


def build(implementation: str, head: str = "ForCausalLM", **settings: Any) -> Any:
    """FlashAttention-2 is set past transformers' check for CUDA."""
    model = ours(head, implementation="eager" if implementation.startswith("flash") else implementation, **settings)
    model.config._attn_implementation_internal = implementation
    return model
