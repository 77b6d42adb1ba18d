"""What the routes say that tell how the server is."""

from typing import Literal

from pydantic import BaseModel


class Status(BaseModel):
    status: Literal["loading", "ready", "failed", "draining"]


class Capabilities(BaseModel):
    completion_chat: bool
    completion_fim: bool


class Model(BaseModel):
    """OpenAI's fields, vLLM's `max_model_len`, and those that Mistral's clients look for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    type: Literal["base"]
    max_context_length: int
    capabilities: Capabilities


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]
