"""What several of the API's bodies have in common."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ventoux.decoding import MAX_LOGPROBS, SamplingParams
from ventoux.errors import RequestError

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters
MAX_BIASES = 1024

Text = Annotated[str, Field(max_length=1 << 22)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]], Field(min_length=1)]


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]


Biases = dict[
    Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
]


class Body(BaseModel):
    """A request's body. A parameter that is not known is an error: it would mean something to who sent it."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    include_usage: bool = False


class Sampled(Body):
    """How tokens are chosen, and when to stop: in all routes that generate. None is what the parameter is without."""

    model: str | None = Field(None, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    n: int | None = Field(None, ge=1, le=16)
    stop: Stop | None = None
    seed: Seed | None = None
    random_seed: Seed | None = Field(None, description="Mistral's name of `seed`")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: Biases | None = Field(None, max_length=MAX_BIASES)
    ignore_eos: bool | None = None
    cache_salt: str | None = Field(
        None, max_length=256, description="cached beginnings are shared only by requests with the same salt"
    )
    user: str | None = Field(None, max_length=256, description="taken and not used")
    metadata: dict[str, Any] | None = Field(None, max_length=16, description="taken and not used")

    def params(self, *, logprobs: int | None = None, choice: int = 0) -> SamplingParams:
        """The choices as the engine knows them. Raises RequestError.

        A seed of a request that wants several answers gives each its own, or they would be the same.
        """
        if self.seed is not None and self.random_seed is not None and self.seed != self.random_seed:
            raise RequestError("seed and random_seed are two names of one parameter; give one")
        seed = self.seed if self.seed is not None else self.random_seed
        given = {
            "temperature": 1.0 if self.temperature is None else self.temperature,  # the API's default
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(key): value for key, value in (self.logit_bias or {}).items()},
            "seed": None if seed is None else seed + choice,
            "max_tokens": self.limit(),
            "stop": tuple(self.stop or ()),
            "ignore_eos": self.ignore_eos,
            "logprobs": logprobs,
        }
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def limit(self) -> int | None:
        """Tokens at most; None is up to the end of the context."""
        return self.max_tokens


class CachedTokens(BaseModel):
    cached_tokens: int


class UsageOut(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ErrorOut(BaseModel):
    model_config = ConfigDict(extra="allow")
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorOut


FinishReason = Literal["stop", "length", "tool_calls"]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
