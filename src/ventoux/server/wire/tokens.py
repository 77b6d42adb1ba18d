"""/tokenize and /detokenize: what comes in, and what goes out."""

from typing import Annotated

from pydantic import BaseModel, Field

from ventoux.server.wire.chat import Message
from ventoux.server.wire.shared import Body, Text


class TokenizeBody(Body):
    model: str | None = Field(None, max_length=256)
    content: Text | None = Field(None, description="a text")
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096, description="or a conversation")
    add_special: bool | None = Field(None, description="the BOS first, if the model's prompts begin with one")


class TokenizeOut(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeBody(Body):
    model: str | None = Field(None, max_length=256)
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]], Field(max_length=1 << 20)]


class DetokenizeOut(BaseModel):
    content: str
