"""/admin: what comes in, and what goes out."""

from typing import Annotated

from pydantic import BaseModel, Field

from ventoux.server.wire.chat import Message
from ventoux.server.wire.shared import Body, Ids, Text

# A name, not a path: what is outside of the folder that the server was given is not reachable by any.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class AdapterBody(Body):
    name: Name = Field(description="what requests call it, and the folder's name within --adapters-folder")


class SessionBody(Body):
    name: Name = Field(description="the session's file within --sessions-folder")
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096, description="the conversation so far")
    prompt: Text | Ids | None = Field(None, description="or a text, or its ids")
    cache_salt: str | None = Field(None, max_length=256)


class SessionName(Body):
    name: Name
    cache_salt: str | None = Field(None, max_length=256)


class Session(BaseModel):
    name: str
    tokens: int


class Adapters(BaseModel):
    adapters: list[str]
