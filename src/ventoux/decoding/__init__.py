"""Pure decisions over logits and ids: which token comes next, and when to stop."""

from ventoux.decoding.choosing import Chooser
from ventoux.decoding.grammar import Constraint, Grammars
from ventoux.decoding.ledger import MAX_DRAFT, Ledger, Pace
from ventoux.decoding.lookup import PromptLookup
from ventoux.decoding.params import MAX_LOGPROBS, SamplingParams
from ventoux.decoding.sampling import History, Sampled, sample, with_logprobs
from ventoux.decoding.stopping import StopStrings

__all__ = [
    "MAX_DRAFT",
    "MAX_LOGPROBS",
    "Chooser",
    "Constraint",
    "Grammars",
    "History",
    "Ledger",
    "Pace",
    "PromptLookup",
    "Sampled",
    "SamplingParams",
    "StopStrings",
    "sample",
    "with_logprobs",
]
