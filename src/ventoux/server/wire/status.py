"""What the routes say that tell how the server is."""

from typing import Literal

from pydantic import BaseModel


class Status(BaseModel):
    status: Literal["loading", "ready", "failed", "draining"]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]
