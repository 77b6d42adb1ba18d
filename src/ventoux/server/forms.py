"""Events as the API's objects: chat completions and text completions, whole and in chunks."""

import time
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from ventoux.chat.answers import AnswerReader
from ventoux.chat.calls import CallBegins, Content, Piece
from ventoux.engine import Event, Finished, PromptLogprobs, Token, Usage
from ventoux.tokenizer import Tokenizer

_LOWEST = -9999.0  # stands for the logarithm of nothing, which JSON cannot say


def usage_of(finished: Sequence[Finished], choices: int) -> dict[str, Any]:
    """Of several answers to one prompt, `choices` in a row, the prompt counts once."""
    usages: list[Usage] = [each.usage for each in finished]
    prompt = sum(usage.prompt_tokens for usage in usages[::choices])
    cached = sum(usage.cached_tokens for usage in usages[::choices])
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Written:
    """What both kinds of object have in common: id, time, model, usage."""

    def __init__(self, *, model: str, prefix: str, kind: str, answers: int, choices: int, wants_usage: bool) -> None:
        self._head = {"id": f"{prefix}-{token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
        self._finished: list[Finished | None] = [None] * answers
        self._choices = choices
        self._wants_usage = wants_usage

    @property
    def id(self) -> str:
        return str(self._head["id"])

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice]}

    def end(self) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [], "usage": self.usage()}] if self._wants_usage else []

    def usage(self) -> dict[str, Any]:
        return usage_of([each for each in self._finished if each is not None], self._choices)


def logprob_of(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """{"token": " Par", "logprob": -0.1, "bytes": [32, 80, 97, 114]}"""
    shown = tokenizer.token_bytes(token_id)
    text = shown.decode("utf-8", "replace") or name_of(tokenizer, token_id)
    return {"token": text, "logprob": max(float(logprob), _LOWEST), "bytes": [*shown]}


def name_of(tokenizer: Tokenizer, token_id: int) -> str:
    """A control token's own name, which is no text: "<s>"."""
    return next((name for name, other in tokenizer.control_tokens().items() if other == token_id), "")


def content_logprob(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    assert token.logprob is not None
    top = [logprob_of(tokenizer, *pair) for pair in token.top_logprobs]
    return {**logprob_of(tokenizer, token.id, token.logprob), "top_logprobs": top}


def deltas(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """What an answer's pieces add to its message."""
    found: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, Content):
            found.append({"content": piece.text})
        elif isinstance(piece, CallBegins):
            call = {"index": piece.index, "id": piece.id, "type": "function"}
            found.append({"tool_calls": [{**call, "function": {"name": piece.name, "arguments": ""}}]})
        else:
            more = {"name": "", "arguments": piece.text}  # Mistral's client wants a name in each; others add them up
            found.append({"tool_calls": [{"index": piece.index, "function": more}]})
    return found


class ChatForm(Written):
    """chat.completion, and chat.completion.chunk. `readers` tell content from calls of tools, one for each answer."""

    def __init__(
        self, readers: Sequence[AnswerReader], *, tokenizer: Tokenizer, logprobs: bool, streams: bool, **more: Any
    ) -> None:
        kind = "chat.completion.chunk" if streams else "chat.completion"
        super().__init__(prefix="chatcmpl", kind=kind, answers=len(readers), **more)
        self._readers = readers
        self._tokenizer = tokenizer
        self._logprobs: list[list[dict[str, Any]]] | None = [[] for _ in readers] if logprobs else None
        self._texts = ["" for _ in readers]
        self._calls: list[list[dict[str, Any]]] = [[] for _ in readers]

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._readers))]

    def take(self, index: int, event: Event) -> list[dict[str, Any]]:
        chunks, told = [], None
        if self._logprobs is not None and isinstance(event, Token):
            entry = content_logprob(self._tokenizer, event)
            self._logprobs[index].append(entry)
            told = {"content": [entry], "refusal": None}
        for delta in deltas(self._read(index, event)) or ([{"content": ""}] if told else []):
            self._keep(index, delta)
            chunks.append(self._chunk(index, delta, logprobs=told))
            told = None
        if isinstance(event, Finished):
            self._finished[index] = event
            chunks.append(self._chunk(index, {}, reason=self._reason(index, event)))
        return chunks

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, finished in enumerate(self._finished):
            assert finished is not None
            calls = [{key: value for key, value in call.items() if key != "index"} for call in self._calls[index]]
            message: dict[str, Any] = {"role": "assistant", "content": self._texts[index], "refusal": None}
            if calls:
                message |= {"content": self._texts[index] or None, "tool_calls": calls}
            logprobs = {"content": self._logprobs[index], "refusal": None} if self._logprobs is not None else None
            reason = self._reason(index, finished)
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return {**self._head, "choices": choices, "usage": self.usage()}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return self.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _read(self, index: int, event: Event) -> Sequence[Piece]:
        if isinstance(event, Token):
            return self._readers[index].push(event.id, event.text)
        return self._readers[index].finish(event.text) if isinstance(event, Finished) else []

    def _keep(self, index: int, delta: dict[str, Any]) -> None:
        """Chunks say what is added; the whole is their sum."""
        self._texts[index] += delta.get("content") or ""
        calls = self._calls[index]
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({**part, "function": {"name": "", "arguments": "", **part["function"]}})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"].get("arguments", "")

    def _reason(self, index: int, finished: Finished) -> str:
        """An answer that calls tools says so, unless it was cut."""
        return "tool_calls" if self._calls[index] and finished.reason == "stop" else finished.reason


class TextForm(Written):
    """text_completion, of prompts, ids each, which the answers begin with if they are to `echo` them."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], *, echo: bool, tokenizer: Tokenizer, logprobs: bool, **more: Any
    ) -> None:
        super().__init__(prefix="cmpl", kind="text_completion", answers=len(prompts), **more)
        self._prompts = prompts
        self._texts = [tokenizer.decode(prompt) if echo else "" for prompt in prompts]
        self._logprobs = [_TextLogprobs(tokenizer) for _ in prompts] if logprobs else None

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(index, text) for index, text in enumerate(self._texts) if text]

    def take(self, index: int, event: Event) -> list[dict[str, Any]]:
        told = self._told(index, event) if self._logprobs is not None else None
        self._texts[index] += event.text
        if isinstance(event, Finished):
            self._finished[index] = event
            return [self._chunk(index, event.text, reason=event.reason)]
        return [self._chunk(index, event.text, logprobs=told)] if event.text or told else []

    def _told(self, index: int, event: Event) -> dict[str, list[Any]] | None:
        """The entries of what came, a prompt's all at once."""
        assert self._logprobs is not None
        if isinstance(event, Token):
            return self._logprobs[index].add([event.id], [event.logprob], [event.top_logprobs])
        if isinstance(event, PromptLogprobs):
            return self._logprobs[index].add(self._prompts[index], event.logprobs, event.top_logprobs)
        return None

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, finished in enumerate(self._finished):
            assert finished is not None
            logprobs = self._logprobs[index].all if self._logprobs is not None else None
            text = {"index": index, "text": self._texts[index], "logprobs": logprobs}
            choices.append({**text, "finish_reason": finished.reason})
        return {**self._head, "choices": choices, "usage": self.usage()}

    def _chunk(self, index: int, text: str, *, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return self.chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})


class _TextLogprobs:
    """The older API's columns: one entry a token in each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0
        self.all: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(
        self, ids: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Sequence[tuple[int, float]]]
    ) -> dict[str, list[Any]]:
        """More tokens -> their own columns."""
        added: dict[str, list[Any]] = {name: [] for name in self.all}
        for token_id, logprob, top in zip(ids, logprobs, tops, strict=True):
            text = self._text(token_id)
            added["tokens"].append(text)
            added["token_logprobs"].append(None if logprob is None else max(float(logprob), _LOWEST))
            likely = {self._text(each): max(float(value), _LOWEST) for each, value in top}
            added["top_logprobs"].append(likely if top else None)
            added["text_offset"].append(self._offset)
            self._offset += len(text)
        for name, values in added.items():
            self.all[name] += values
        return added

    def _text(self, token_id: int) -> str:
        shown = self._tokenizer.token_bytes(token_id)
        return shown.decode("utf-8", "replace") or name_of(self._tokenizer, token_id)
