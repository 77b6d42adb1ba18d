"""Which chat format a checkpoint wants: one function decides, and says why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ventoux.chat import mistral
from ventoux.chat.answers import MISTRAL, AnswerReader, CallStyle, style_of
from ventoux.chat.messages import parse, parse_tools, with_guardrail
from ventoux.errors import ChatError
from ventoux.tokenizer.base import Tokenizer

VERSIONS = (*mistral.VERSIONS, "template")


@dataclass(frozen=True)
class ChatFormat:
    """How a checkpoint's conversations are written; `reason` is shown by `ventoux info`."""

    version: str
    template: str | None
    reason: str

    @property
    def call_style(self) -> CallStyle | None:
        """How models of this format write calls of tools, None when it has no tools."""
        if self.version != "template":
            return None if self.version == "v1" else MISTRAL
        return style_of(self.template or "")

    def reader(self, tools: Sequence[Mapping[str, Any]] | None = None, *, tokenizer: Tokenizer) -> AnswerReader:
        """What tells an answer's text and its calls of `tools` apart; without tools all of it is text.

        Raises ChatError for tools in a format that has none.
        """
        style = self._style_for(tools)
        names = [tool["function"]["name"] for tool in parse_tools(tools)]
        return AnswerReader(style, names, marker_id=tokenizer.control_id(style.marker) if style else None)

    def _style_for(self, tools: Sequence[Mapping[str, Any]] | None) -> CallStyle | None:
        if not tools:
            return None
        if self.call_style is None:
            other = "a model whose template has tools" if self.version == "template" else "tokenizer v2 or later"
            raise ChatError(f"chat format {self.version} of this model has no tools; use {other}, or leave them out")
        return self.call_style

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None = None,
        safe_prompt: bool = False,
    ) -> list[int]:
        """Ids of a conversation that the model is to answer: one that ends with an assistant's message is refused,
        unless that message has `"prefix": true` and is to be continued."""
        last = parse(messages)[-1]
        self._style_for(tools)
        if last.role == "assistant" and not last.prefix:
            raise ChatError(
                f'message {last.index}: expected a user or tool message last, found assistant; add "prefix": true to'
                " have it continued"
            )
        return encode(
            messages,
            tokenizer=tokenizer,
            version=self.version,
            tools=tools,
            safe_prompt=safe_prompt,
            template=self.template,
        )


def encode(
    messages: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    version: str = "v1",
    tools: Sequence[Mapping[str, Any]] | None = None,
    safe_prompt: bool = False,
    template: str | None = None,
) -> list[int]:
    """Ids of a conversation, written whole: one that ends with an assistant's message ends with its EOS.

    `messages` are dicts of OpenAI's shape. `version` is "v1", "v2", "v3" or "v7" for Mistral's own formats, "template"
    for `template`, a Jinja text. `safe_prompt` puts Mistral's guardrail before the system prompt, a blank line between.
    Raises ChatError that names the message and what was expected.
    """
    if safe_prompt:
        messages = with_guardrail(messages)
    if version != "template":
        return mistral.encode(messages, tokenizer=tokenizer, version=version, tools=tools)
    if template is None:
        raise ChatError("chat format 'template' needs the checkpoint's template, found none; give a version instead")
    from ventoux.chat import template as templates

    return templates.encode(messages, tokenizer=tokenizer, template=template, tools=tools)


def format_for(tokenizer: Tokenizer, *, template: str | None) -> ChatFormat:
    """The format that a checkpoint's tokenizer and template ask for; ChatError when neither tells.

    1. A Mistral tokenizer (`tokenizer.version`, see tokenizer/version.py: v1 is told from Llama 2 by its pieces) wants
       the format of its version. The templates that Mistral shipped with v0.1 and v0.2 are wrong in their spaces.
    2. But a template without [INST] is no template of Mistral's: a fine-tune such as Zephyr has taken the tokenizer
       and another format, and the template decides.
    3. Any other tokenizer needs a template.
    """
    if tokenizer.version in mistral.VERSIONS:
        if template is None or "[INST]" in template:
            return ChatFormat(tokenizer.version, None, f"Mistral's tokenizer {tokenizer.version}")
        reason = (
            f"the checkpoint's template; its tokenizer is Mistral's {tokenizer.version}, but the template has no [INST]"
        )
        return ChatFormat("template", template, reason)
    if template is not None:
        return ChatFormat("template", template, "the checkpoint's template")
    if tokenizer.version is not None:
        raise ChatError(
            f"this checkpoint has Mistral's tokenizer {tokenizer.version}, and Ventoux writes the chat formats"
            f" {', '.join(mistral.VERSIONS)}; pass --chat-format"
        )
    raise ChatError("this checkpoint has no chat format: no Mistral tokenizer and no template; pass --chat-format")


def template_in(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder: chat_template.jinja, else in tokenizer_config.json, else None."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_text("utf-8")
        found = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
        if isinstance(found, list):  # several by name; "default" is the one for conversations
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ChatError(f"{folder}: expected a chat template, found one that cannot be read: {error}") from None
    if found is not None and not isinstance(found, str):
        raise ChatError(f"{config}: chat_template: expected a string, found {type(found).__name__}")
    return found
