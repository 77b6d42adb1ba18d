"""mistral-common, which the chat formats are compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

from vocabularies import FILES, MISTRAL


class Oracle:
    """mistral-common as it serves requests."""

    def __init__(self, version: str) -> None:
        from mistral_common.protocol.instruct.validator import ValidationMode
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        self._mistral = MistralTokenizer.from_file(MISTRAL / FILES[version], mode=ValidationMode.serving)

    def encode(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        from mistral_common.protocol.instruct.request import ChatCompletionRequest
        from mistral_common.protocol.instruct.tool_calls import Tool

        asked = {"messages": messages, "model": "m", "tools": [Tool.from_openai(dict(tool)) for tool in tools or []]}
        ids: list[int] = self._mistral.encode_chat_completion(ChatCompletionRequest(**asked)).tokens
        return ids

    def encode_fim(self, prompt: str, suffix: str | None) -> list[int]:
        from mistral_common.protocol.fim.request import FIMRequest

        ids: list[int] = self._mistral.encode_fim(FIMRequest(prompt=prompt, suffix=suffix)).tokens
        return ids
