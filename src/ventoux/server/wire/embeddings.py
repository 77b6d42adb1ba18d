"""/v1/embeddings: what comes in, and what goes out."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ventoux.server.wire.shared import Body, Ids, Text

MAX_INPUTS = 256


class EmbeddingsBody(Body):
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="a text, several, token ids, or several lists of them")
    model: str | None = Field(None, max_length=256)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=2**31 - 1, description="the model's own number, if it is given")
    user: str | None = Field(None, max_length=256, description="taken and not used")


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsOut(BaseModel):
    id: str  # Mistral's
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
