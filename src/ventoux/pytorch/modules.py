"""The parts of the model, under Hugging Face's names, so that state dicts, adapters and device maps fit.

B batch, T tokens, E hidden_size, H heads, K KV heads, D head_dim, F intermediate_size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MistralConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import AttentionInterface

from ventoux.pytorch.cache import RollingCache
from ventoux.pytorch.flex import flex
from ventoux.pytorch.names import CACHE

ATTENTION = AttentionInterface()  # transformers' own table, with one entry of ours over it
ATTENTION["flex_attention"] = flex

Rotation = tuple[Tensor, Tensor]  # cosines and sines [B or 1, T, D]


class MistralRMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in fp32 whatever the model's dtype."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class MistralMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down


def rotation(config: MistralConfig, position_ids: Tensor, *, dtype: torch.dtype) -> Rotation:
    """The cosines and sines that turn queries and keys at positions [B, T], computed in fp32.

    No buffer: nothing to lose when a model is made on the meta device, or to round when it goes to bf16.
    """
    kind = config.rope_parameters["rope_type"]
    scaling = 1.0
    if kind == "default":
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=position_ids.device).float()
        frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (steps / config.head_dim)
    else:
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, position_ids.device)
    angles = position_ids[..., None].float() * frequencies  # [B, T, D/2]
    angles = torch.cat((angles, angles), -1)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, T, D] turned by its positions: the pairs are (i, i + D/2)."""
    first, second = x.chunk(2, -1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), -1) * sin.unsqueeze(1)


def eager_attention(
    module: "MistralAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The formula itself, which can show its weights: -> [B, T, H, D] and probabilities [B, H, T, S]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        # a row of padding has nothing else, so it has to stay finite in the softmax's fp32 and in fp16, where -30 + its
        # least is -inf
        least = max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min)
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, least)
        else:
            scores = (scores + attention_mask).clamp(min=least)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MistralAttention(nn.Module):
    """Grouped-query attention over the last W positions, computed by the implementation that the model was told."""

    def __init__(self, config: MistralConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        # what transformers' implementations read from the module that calls them
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        E, Q, KV = (
            config.hidden_size,
            config.num_attention_heads * self.head_dim,
            config.num_key_value_heads * self.head_dim,
        )
        self.q_proj = nn.Linear(E, Q, bias=False)
        self.k_proj = nn.Linear(E, KV, bias=False)
        self.v_proj = nn.Linear(E, KV, bias=False)
        self.o_proj = nn.Linear(Q, E, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotation,
        attention_mask: Any = None,
        cache: Cache | None = None,
        implementation: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, T, E] -> the same shape, and weights [B, H, T, S] where the implementation has them."""
        implementation = implementation or self.config._attn_implementation
        B, T, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, H, T, D]
        key = self.k_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, K, T, D]
        value = self.v_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        query, key = rotated(query, *position_embeddings), rotated(key, *position_embeddings)
        if isinstance(cache, PagedAttentionCache):
            if CACHE == "cache":
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)
            else:  # transformers' attention over it does that itself
                kwargs["cache"] = cache
        elif cache is not None:
            # without a mask all keys count alike, in whatever order the ring has them
            order = {"in_order": attention_mask is not None} if isinstance(cache, RollingCache) else {}
            key, value = cache.update(key, value, self.layer_idx, **order)
        attention = ATTENTION.get_interface(implementation, eager_attention)
        out, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        return self.o_proj(out.reshape(B, T, -1)), weights


class MistralDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: MistralConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MistralAttention(config, layer_idx)
        self.mlp = MistralMLP(config)
        self.input_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, T, E]; the rest is the attention's -> hidden states, and its weights or None."""
        attended, weights = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), weights
