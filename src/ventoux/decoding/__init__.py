"""Pure decisions over logits and ids: which token comes next, and when to stop."""

from ventoux.decoding.lookup import MAX_DRAFT, Ledger, PromptLookup
from ventoux.decoding.params import MAX_LOGPROBS, SamplingParams
from ventoux.decoding.sampling import History, Sampled, sample
from ventoux.decoding.stopping import StopStrings

__all__ = [
    "MAX_DRAFT",
    "MAX_LOGPROBS",
    "History",
    "Ledger",
    "PromptLookup",
    "Sampled",
    "SamplingParams",
    "StopStrings",
    "sample",
]
