"""Messages -> ids: Mistral's formats as code of our own, other models by their template in a sandbox."""

from ventoux.chat.answers import AnswerReader, CallStyle
from ventoux.chat.calls import CallArguments, CallBegins, Content, Piece, whole
from ventoux.chat.format import VERSIONS, ChatFormat, encode, format_for, template_in
from ventoux.chat.messages import GUARDRAIL, new_call_id
from ventoux.chat.mistral import encode_fim

__all__ = [
    "GUARDRAIL",
    "VERSIONS",
    "AnswerReader",
    "CallArguments",
    "CallBegins",
    "CallStyle",
    "ChatFormat",
    "Content",
    "Piece",
    "encode",
    "encode_fim",
    "format_for",
    "new_call_id",
    "template_in",
    "whole",
]
