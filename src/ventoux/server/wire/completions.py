"""/v1/completions and /v1/fim/completions: what comes in, and what goes out."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ventoux.server.wire.chat import Grammar, ResponseFormat
from ventoux.server.wire.shared import FinishReason, Ids, Sampled, Text, TopLogprobs, UsageOut

Prompt = (
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=256)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=256)]
)


class CompletionBody(Sampled):
    prompt: Prompt = Field(description="a text, several, token ids, or several lists of them")
    suffix: Text | None = Field(None, description="what comes after the answer, for models that fill in the middle")
    echo: bool | None = Field(None, description="the prompt first, with its log-probabilities if they are asked for")
    logprobs: TopLogprobs | None = None
    best_of: Literal[1] | None = None
    response_format: ResponseFormat | None = None
    grammar: Grammar | None = None


class FimBody(Sampled):
    prompt: Text
    suffix: Text | None = None
    min_tokens: Literal[0] | None = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class CompletionOut(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageOut
