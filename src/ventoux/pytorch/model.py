"""MistralModel and MistralForCausalLM: our modules, transformers' loading, saving and generating around them."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MistralConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.generic import can_return_tuple

from ventoux.pytorch import masks
from ventoux.pytorch.cache import RollingCache
from ventoux.pytorch.modules import MistralDecoderLayer, MistralRMSNorm, rotation
from ventoux.pytorch.names import CACHE, takes_cache

_CHANGES_WITH_LENGTH = ("dynamic", "longrope")  # rotary frequencies that depend on how long the text is


class MistralPreTrainedModel(PreTrainedModel):
    """What transformers wants to know about all of our classes."""

    config_class = MistralConfig
    config: MistralConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MistralDecoderLayer"]  # noqa: RUF012 (transformers' names and kinds)
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: MistralConfig, *args: Any, **kwargs: Any) -> None:
        check_config(config)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str] | None, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it. Raises OSError for a folder without config.json, which it takes for a 7B's."""
        folder = Path(name or "", kwargs.get("subfolder") or "")
        described = any((folder / each).exists() for each in ("config.json", "adapter_config.json"))
        if name is not None and folder.is_dir() and not described and kwargs.get("config") is None:
            raise OSError(
                f"{folder}: expected a folder in Hugging Face's format, found no config.json; raw weights and GGUF"
                " files are read by ventoux.pytorch.load, or written as such a folder by ventoux convert"
            )
        return super().from_pretrained(name, *args, **kwargs)


def check_config(config: MistralConfig) -> None:
    """Refuse what these classes would otherwise ignore. Raises ValueError."""
    H, K, window = config.num_attention_heads, config.num_key_value_heads, config.sliding_window
    if K < 1 or H % K:
        raise ValueError(f"num_key_value_heads={K} must divide num_attention_heads={H}")
    if config.head_dim < 2 or config.head_dim % 2:
        raise ValueError(f"head_dim must be even, since rotary embeddings turn pairs; found {config.head_dim}")
    if window is not None and window < 1:
        raise ValueError(f"sliding_window counts keys, at least 1 (null: no window); found {window}")
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        raise ValueError("layer_types mixes windows; a MistralConfig has one sliding_window for all layers")
    if getattr(config, "is_causal", True) is False:
        raise ValueError("is_causal=False: these classes are causal; remove it, or use transformers' own")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" and (rope in _CHANGES_WITH_LENGTH or rope not in ROPE_INIT_FUNCTIONS):
        raise ValueError(f"rope_type {rope!r} is not supported; expected default, linear, yarn or llama3")


class MistralModel(MistralPreTrainedModel):
    """Token ids [B, T] -> hidden states [B, T, E], after the last norm."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MistralDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers.

        input_ids            int64 [B, T], or inputs_embeds [B, T, E]: exactly one of them
        attention_mask       [B, past + T], 1 for real tokens; or what the attention implementation takes, ready made
        position_ids         int64 [B, T]; by default each token's place among the real tokens of its row. Positions
                             that begin anew within a row, without a mask and a cache, mean packed sequences, which do
                             not see each other; so does cu_seq_lens_q, int [N + 1], where they begin and end
        cache                a transformers cache, advanced by T; made when use_cache and there is none
        output_attentions    probabilities [B, H, T, S] of each layer, computed by the eager implementation
        output_hidden_states [B, T, E] before each layer, and after the last norm

        Raises ValueError for a mask that does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        masks.check_shapes(embeds, position_ids)
        (batch, length), config = embeds.shape[:2], self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        alone = attention_mask is None and cache is None
        paged = cache if isinstance(cache, PagedAttentionCache) else None  # of generate_batch(), which brings its masks
        position_ids, segments = self._packing(embeds, position_ids, alone=alone, paged=paged is not None, **kwargs)
        cache, use_cache = self._caching(cache if paged is None else None, use_cache, packed=segments is not None)

        past = cache.get_seq_length() if cache is not None else 0
        if not alone and position_ids is not None:
            masks.check_positions(position_ids, attention_mask)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and isinstance(past, int):
            masks.check_mask(attention_mask, batch=batch, past=past, length=length, window=config.sliding_window)
        if position_ids is None:
            position_ids = masks.positions(attention_mask, past=past, length=length, device=embeds.device)
        implementation = "eager" if output_attentions else config._attn_implementation
        mask = masks.attention_mask_for(
            implementation,
            config=config,
            embeds=embeds,
            attention_mask=attention_mask,
            cache=cache,
            segments=segments,
        )
        if segments is not None and implementation.startswith("flash"):
            kwargs |= masks.lengths_for_flash(segments)
        hidden_states = embeds
        all_hidden_states: list[Tensor] = []
        all_attentions: list[Tensor] = []
        turn = rotation(config, position_ids, dtype=embeds.dtype)
        for layer in self.layers:
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            hidden_states, weights = layer(
                hidden_states,
                position_embeddings=turn,
                attention_mask=mask,
                cache=cache if paged is None else paged,
                implementation=implementation,
                **kwargs,
            )
            if output_attentions:
                all_attentions.append(weights)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            **{CACHE: cache if use_cache else None},
            hidden_states=(*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _packing(
        self,
        embeds: Tensor,
        position_ids: Tensor | None,
        *,
        alone: bool,
        paged: bool,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Positions, and the number of each token's sequence where rows are packed; `alone`: no mask and no past."""
        if alone:
            return masks.packed(position_ids, cu_seq_lens_q, shape=embeds.shape[:2], device=embeds.device)
        if cu_seq_lens_q is not None and not paged:
            raise ValueError("cu_seq_lens_q is for packed rows, which have neither attention_mask nor cache")
        return position_ids, None

    def _caching(self, past: Cache | None, use_cache: bool | None, *, packed: bool) -> tuple[Cache | None, bool]:
        """The cache to run with, made if there is to be one, and whether it is given back."""
        checkpointing = self.gradient_checkpointing and self.training
        if isinstance(past, RollingCache):
            past.check(self.config)
        if checkpointing and past is not None:
            raise ValueError("gradient checkpointing runs layers twice and keeps no cache; call model.eval() first")
        if packed and use_cache:
            raise ValueError("packed sequences cannot be continued, so they have no cache; give use_cache=False")
        use_cache = bool(self.config.use_cache if use_cache is None else use_cache) and not packed and not checkpointing
        if use_cache and past is None:
            if not torch.is_grad_enabled():
                return RollingCache(self.config), True
            # a ring is written in place, which gradients cannot pass; transformers' windows of one position keep all
            return DynamicCache(config=None if self.config.sliding_window == 1 else self.config), True
        return past, use_cache


class MistralForCausalLM(MistralPreTrainedModel, GenerationMixin):
    """The model with its output head: logits of the next token, losses, and `generate()`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = MistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As MistralModel, with logits [B, T, V].

        labels          int64 [B, T], the input ids, -100 where there is nothing to learn; they are shifted here
        logits_to_keep  only the last so many logits (0: all), or the positions of those to keep, int64 [N] or [B, N],
                        or bool [B, T], which gives [N, V]
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        if labels is not None and labels.shape != outputs.last_hidden_state.shape[:2]:
            expected = list(outputs.last_hidden_state.shape[:2])
            raise ValueError(f"labels must be {expected}, as the tokens are; found {list(labels.shape)}")
        logits = self.lm_head(_kept(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """A ring of W positions where transformers would make a DynamicCache; `generate()` calls this once.

        Raises ValueError for padding on the right, which would be generated from.
        """
        mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get(CACHE)
        if generation_config.is_assistant and isinstance(mask, Tensor) and mask.dim() == 2:
            # transformers takes the assistant's padding from the ids; only what stands before the text is
            model_kwargs["attention_mask"] = mask = mask.long().cummax(-1).values
        masks.check_prompt(mask)
        if isinstance(cache, RollingCache) and not generation_config.is_assistant:
            cache.stop_past_recording()  # of an earlier call; who takes tokens back asks for it again
        if self.model.gradient_checkpointing and self.training:  # in which layers keep nothing
            model_kwargs["use_cache"] = generation_config.use_cache = False
        wanted = generation_config.use_cache is not False and generation_config.cache_implementation in (
            None,
            "dynamic",
        )
        if wanted and self.config.sliding_window is not None and model_kwargs.get(CACHE) is None:
            cache = RollingCache(self.config)
            if generation_config.is_assistant:
                cache.activate_past_recording()
            model_kwargs[CACHE] = cache
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(config: MistralConfig, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        """Masks for static caches, which `generate()` makes outside of the compiled forward pass."""
        implementation, mask = config._attn_implementation, kwargs.get("attention_mask")
        if implementation in masks.WITHOUT_TENSORS:
            if inputs_embeds.shape[1] > 1:
                return mask  # a prompt is not compiled: the model makes what fits
            implementation = "sdpa"
        return masks.attention_mask_for(
            implementation,
            config=config,
            embeds=inputs_embeds,
            attention_mask=mask,
            cache=kwargs.get(CACHE),
        )


def _kept(hidden_states: Tensor, which: int | Tensor) -> Tensor:
    if isinstance(which, int):
        return hidden_states[:, -which:]
    if which.dim() == 2:
        return hidden_states[which] if which.dtype == torch.bool else hidden_states.take_along_dim(which[..., None], 1)
    return hidden_states[:, which]
