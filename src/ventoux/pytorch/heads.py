"""Heads for labels of texts, labels of tokens, and spans that answer questions."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MistralConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from ventoux.pytorch.model import MistralModel, MistralPreTrainedModel
from ventoux.pytorch.names import CACHE, takes_cache


class _WithHead(MistralPreTrainedModel):
    """A MistralModel under the name `model`, and its arguments."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = MistralModel(config)

    def _features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        outputs: BaseModelOutputWithPast = self.model(*args, return_dict=True, **kwargs)
        return outputs


class MistralForSequenceClassification(_WithHead):
    """One row of config.num_labels logits for each text, read at its last real token."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
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
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """As MistralModel, with logits [B, num_labels].

        labels  int64 [B]; float [B] for regression (num_labels 1), float [B, num_labels] for several labels at once

        The last real token is the mask's, on whichever side the padding stands. Without a mask it is the last that is
        not config.pad_token_id. Raises ValueError where that cannot be known (a batch without mask and pad_token_id, or
        one in which rows end in a pad_token_id that also ends texts), and for padding on the left without a mask,
        which the tokens after it would see.
        """
        last = self._last_tokens(input_ids, attention_mask, inputs_embeds)
        outputs = self._features(input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs)
        hidden = outputs.last_hidden_state
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _last_tokens(self, input_ids: Tensor | None, attention_mask: Any, inputs_embeds: Tensor | None) -> Tensor:
        """Where each row's last real token stands among the T that are given, int64 [B]."""
        given = inputs_embeds if input_ids is None else input_ids
        if given is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        B, T = given.shape[:2]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            return _last_of(attention_mask[:, -T:] != 0)
        if B == 1 and (input_ids is None or self.config.pad_token_id is None):
            return torch.full((1,), T - 1)
        if input_ids is None or self.config.pad_token_id is None:
            raise ValueError(
                "the last token of each text is not known: give attention_mask (all ones where nothing is padded), or"
                " set config.pad_token_id and give input_ids"
            )
        padding = input_ids == self.config.pad_token_id
        if bool(padding[:, 0].any()):
            raise ValueError(f"rows begin with the padding, token {self.config.pad_token_id}: give attention_mask")
        if self.config.pad_token_id in _ids(self.config.eos_token_id) and bool(padding[:, -1].any()):
            raise ValueError(
                f"rows end in token {self.config.pad_token_id}, which both pads and ends texts, so the last real token"
                " is not known: give attention_mask"
            )
        return _last_of(~padding)


class MistralForTokenClassification(_WithHead):
    """config.num_labels logits for each token."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        dropout = getattr(config, "classifier_dropout", None)
        if dropout is None:
            dropout = getattr(config, "hidden_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
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
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """As MistralModel, with logits [B, T, num_labels]; labels int64 [B, T], -100 for none."""
        outputs = self._features(input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        if labels is not None and labels.shape != logits.shape[:2]:
            raise ValueError(f"labels must be {list(logits.shape[:2])}, as the tokens are; found {list(labels.shape)}")
        return TokenClassifierOutput(
            loss=None if labels is None else self.loss_function(logits, labels, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MistralForQuestionAnswering(_WithHead):
    """Where an answer begins and ends: two logits for each token."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
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
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """As MistralModel, with start_logits and end_logits [B, T]; start_positions and end_positions int64 [B]."""
        outputs = self._features(input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs)
        start, end = (each.squeeze(-1).contiguous() for each in self.qa_outputs(outputs.last_hidden_state).split(1, -1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _last_of(real: Tensor) -> Tensor:
    """The index of each row's last True, int64 [B]; of a row without any, the last column."""
    T = real.shape[1]
    return (T - 1) - real.flip(1).int().argmax(1)


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
