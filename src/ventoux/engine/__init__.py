"""Requests in, events out: the one decode loop."""

from ventoux.engine.completion import Completion
from ventoux.engine.engine import Engine, check_logits
from ventoux.engine.request import Event, Finished, Request, Timings, Token, Usage, check_prompt

__all__ = [
    "Completion",
    "Engine",
    "Event",
    "Finished",
    "Request",
    "Timings",
    "Token",
    "Usage",
    "check_logits",
    "check_prompt",
]
