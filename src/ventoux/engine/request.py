"""What goes into the engine, a Request, and what comes out of it: Tokens, one Finished, perhaps PromptLogprobs."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar, Literal

import numpy as np

from ventoux.batch import Backend, Float32
from ventoux.config import ModelConfig
from ventoux.decoding import MAX_LOGPROBS, Constraint, SamplingParams
from ventoux.errors import GenerationError, RequestError

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """A prompt of token ids and how to go on from it.

    continues says how the answer's text joins the prompt's: True, it goes on where the prompt ends, perhaps within a
    word; False, it is a text of its own, as an answer in a chat is. adapter names a LoRA adapter for the whole text.
    constraint is what the answer has to look like. It stays as it is, so that several requests may share it.

    salt keeps apart who must not learn of each other: what was computed for a prompt serves requests of the same salt
    only. prompt_logprobs asks for a PromptLogprobs with that many of the likeliest tokens; then, and only then,
    max_tokens may be 0, and the request ends after its prompt.

    Raises RequestError.
    """

    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    continues: bool = True
    adapter: str | None = None
    constraint: Constraint | None = None
    salt: str = ""
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        k = self.prompt_logprobs
        if k is not None and (type(k) is not int or not 0 <= k <= MAX_LOGPROBS):
            raise RequestError(f"prompt_logprobs must be a whole number from 0 to {MAX_LOGPROBS}, found {k!r}")
        if k is None and self.params.max_tokens == 0:
            raise RequestError("max_tokens must be a whole number of at least 1, found 0")
        if not isinstance(self.salt, str):
            raise RequestError(f"salt must be a string, found {self.salt!r}")

    @property
    def space(self) -> Hashable:
        """Requests share what was computed for their prompts with those of the same space."""
        return self.salt, self.adapter


@dataclass(frozen=True)
class Token:
    """One generated token.

    text is what became certain with it: "" in the middle of a character or of what may be a stop string, and then more
    than its own later. logprob and top_logprobs, pairs (id, log-probability), are by the model's own distribution,
    None and () unless the request asks for them.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptLogprobs:
    """What the model's own distribution said of the prompt: comes once, before the first Token.

    logprobs has an entry for each of the prompt's tokens, and top_logprobs the likeliest in its place, as Token has
    them. The first token follows nothing: its entries are None and ().
    """

    logprobs: tuple[float | None, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    text: ClassVar[str] = ""  # of the answer, to which it brings nothing


@dataclass(frozen=True)
class Usage:
    """Token counts. An end-of-sequence token is not part of the answer, and not counted.

    cached_tokens are those of the prompt that were taken over from another text, and not read.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds a request spent: waiting in the queue, from there to its first token, and from there to its end."""

    queued_s: float
    prompt_s: float
    decode_s: float


@dataclass(frozen=True)
class Guesses:
    """How many guesses of tokens were checked, and how many passes over the weights the right ones saved.

    That depends on what was faster, as timings do; the text does not.
    """

    checked: int = 0
    right: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of a request.

    reason is "stop" (end of sequence, a stop id, a stop string, or the constraint's end), "length" (max_tokens, or the
    end of the context), "cancelled", or "error", with the exception in `error`. text is what had been held back.
    """

    reason: Reason
    usage: Usage
    timings: Timings
    text: str = ""
    error: Exception | None = None
    guesses: Guesses = Guesses()

    @property
    def prompt_tok_s(self) -> float:
        """Prompt tokens per second, 0 when none was timed."""
        return self.usage.prompt_tokens / self.timings.prompt_s if self.timings.prompt_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens per second, without the first, which the prompt's pass paid for; 0 when none was timed."""
        decoded = self.usage.completion_tokens - 1
        return decoded / self.timings.decode_s if decoded > 0 and self.timings.decode_s else 0.0


Event = Token | PromptLogprobs | Finished


def check_prompt(ids: Sequence[int], config: ModelConfig) -> None:
    """Raises RequestError when there are no ids, or one is outside the vocabulary."""
    if len(ids) == 0:
        raise RequestError("the prompt is empty; give at least one token to go on from")
    check_ids("the prompt", ids, config)


def check_logits(logits: Float32, backend: Backend) -> None:
    """Raise GenerationError, with the backend's reason, when a row of logits [..., vocab] is not of finite numbers."""
    if not np.isfinite(logits.max(-1)).all():  # the maximum of an array that holds a NaN is NaN
        raise GenerationError(f"the model returned logits that are not finite numbers: {backend.not_finite()}")


def check_ids(name: str, ids: Iterable[int], config: ModelConfig) -> None:
    """Raises RequestError when an id of what `name` names is outside the vocabulary."""
    last = config.vocab_size - 1
    for token_id in ids:
        if not isinstance(token_id, Integral) or not 0 <= int(token_id) <= last:
            raise RequestError(f"{name} holds {token_id!r}, but a token id is a whole number from 0 to {last}")
