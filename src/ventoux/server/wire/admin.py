"""/admin: what comes in, and what goes out."""

from typing import Annotated

from pydantic import BaseModel, Field

from ventoux.server.wire.shared import Body

# A name, not a path: what is outside of the folder that the server was given is not reachable by any.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class AdapterBody(Body):
    name: Name = Field(description="what requests call it, and the folder's name within --adapters-folder")


class Adapters(BaseModel):
    adapters: list[str]
