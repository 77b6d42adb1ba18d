"""/v1/chat/completions: what comes in, and what goes out."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from ventoux.server.wire.shared import Body, FinishReason, Sampled, Text, TopLogprobs, UsageOut

Json = dict[str, Any]


class TextPart(Body):
    type: Literal["text"]
    text: Text


class FunctionCall(Body):
    name: str = Field(max_length=256)
    arguments: str | Json = Field(description="JSON, as a string in OpenAI's API; Mistral's takes an object as well")


class ToolCall(Body):
    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=256)
    prefix: bool | None = Field(None, description="Mistral's: the last message, an assistant's, is to be continued")
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    reasoning_content: None = None

    def plain(self) -> Json:
        """As `ventoux.chat` takes it. OpenAI's "developer" is its later name of "system"."""
        message = self.model_dump(exclude_none=True, exclude={"annotations"})
        if message["role"] == "developer":
            message["role"] = "system"
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
        return message


class Function(Body):
    name: str = Field(max_length=64)
    description: Text | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Body):
    name: str = Field(max_length=64)


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Body):
    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=4096)
    schema_: Json = Field(validation_alias=AliasChoices("schema", "schema_definition"), serialization_alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema belongs to type "json_schema", and to no other')
        return self


class Grammar(Body):
    type: Literal["regex", "lark"]
    value: Annotated[str, Field(min_length=1, max_length=1 << 16)]


class Prediction(Body):
    type: Literal["content"]
    content: Text | list[TextPart]


class ChatBody(Sampled):
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="OpenAI's later name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    grammar: Grammar | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none", "any", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    safe_prompt: bool | None = Field(None, description="Mistral's: its guardrail prompt first")
    prediction: Prediction | None = Field(None, description="taken and not used: guesses come from the text itself")
    prompt_mode: None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None = None


class FunctionCallOut(BaseModel):
    name: str
    arguments: str


class ToolCallOut(BaseModel):
    id: str = Field(pattern="^[a-zA-Z0-9]{9}$")
    type: Literal["function"]
    function: FunctionCallOut


class MessageOut(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallOut] | None = None


class ChatChoice(BaseModel):
    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatOut(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageOut
