"""Requests in, events out: the one decode loop."""

from ventoux.engine.completion import Completion
from ventoux.engine.engine import Engine
from ventoux.engine.evaluation import embed, logits
from ventoux.engine.request import (
    Event,
    Finished,
    Guesses,
    PromptLogprobs,
    Request,
    Timings,
    Token,
    Usage,
    check_logits,
    check_prompt,
)

__all__ = [
    "Completion",
    "Engine",
    "Event",
    "Finished",
    "Guesses",
    "PromptLogprobs",
    "Request",
    "Timings",
    "Token",
    "Usage",
    "check_logits",
    "check_prompt",
    "embed",
    "logits",
]
