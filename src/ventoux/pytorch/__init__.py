"""Mistral as PyTorch classes that transformers and what is built on it accept as their own.

from ventoux.pytorch import MistralForCausalLM
model = MistralForCausalLM.from_pretrained("mistral-7B-v0.1", attn_implementation="ventoux")

The extra `ventoux[torch]` brings torch, transformers and accelerate.
"""

from ventoux.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
    from transformers import MistralConfig

    from ventoux.pytorch import attention as _attention
    from ventoux.pytorch.cache import RollingCache
    from ventoux.pytorch.heads import (
        MistralForQuestionAnswering,
        MistralForSequenceClassification,
        MistralForTokenClassification,
    )
    from ventoux.pytorch.loading import load
    from ventoux.pytorch.model import MistralForCausalLM, MistralModel, MistralPreTrainedModel
except ImportError as _error:  # not installed, or too old for what the classes import
    raise MissingExtraError("ventoux.pytorch", "torch", _error) from _error

__all__ = [
    "MistralConfig",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
    "RollingCache",
    "load",
    "register",
]

_attention.offer()


def register() -> None:
    """From here on transformers' Auto classes give Ventoux's for `model_type: mistral`, in this process."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    for auto, model in (
        (AutoModel, MistralModel),
        (AutoModelForCausalLM, MistralForCausalLM),
        (AutoModelForSequenceClassification, MistralForSequenceClassification),
        (AutoModelForTokenClassification, MistralForTokenClassification),
        (AutoModelForQuestionAnswering, MistralForQuestionAnswering),
    ):
        auto.register(MistralConfig, model, exist_ok=True)
