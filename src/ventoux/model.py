"""The public face: load a model, and let it generate, stream, chat, or say its logits."""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ventoux.batch import Backend, Float32
from ventoux.checkpoint import Checkpoint
from ventoux.config import ModelConfig
from ventoux.decoding import Grammars, SamplingParams
from ventoux.engine import Completion, Engine, Event, Finished, PromptLogprobs, Request, Token, embed, logits
from ventoux.errors import ChatError, RequestError, TokenizerError
from ventoux.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ventoux.chat import ChatFormat

Message = Mapping[str, Any]

_PARAMETERS = [field.name for field in fields(SamplingParams)]
_SHAPES = ("json_schema", "regex", "grammar")  # at most one of them, as `Grammars.one_of` takes it
_CHUNK = 512  # tokens of one forward pass


class Mistral:
    """A model that is ready to run: a backend, perhaps a tokenizer and a chat format, and one engine around them.

    Keyword arguments of the methods that generate are the fields of `ventoux.decoding.SamplingParams`, and one of
    json_schema, regex and grammar, which the text is held to (see `ventoux.decoding.Grammars`); others are a
    RequestError. All of them may be called from several threads, and streams may be read in turns: what is asked for
    at the same time runs as one batch. Of what was read and written, `prefix_bytes` of keys and values are kept (1 GiB
    by `load`), so that a text that begins alike, as a conversation's next turn does, is read from there on only.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        tokenizer: Tokenizer | None = None,
        template: str | None = None,
        chat_format: str | None = None,
        checkpoint: Checkpoint | None = None,
        speculation: bool = True,
        draft: Backend | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        if chat_format is not None:
            from ventoux.chat import VERSIONS  # here, for continuing a text needs none of it

            if chat_format not in VERSIONS:
                raise ChatError(f"chat_format must be one of {', '.join(VERSIONS)}, found {chat_format!r}")
        self.backend = backend
        self.checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._template = template
        self._wanted_format = chat_format
        self._speculation = speculation
        self._draft = draft
        self._engine = self.new_engine(budget=_CHUNK, prefix_bytes=prefix_bytes)
        self._lock = threading.Lock()  # around the engine and the mailboxes
        self._mailboxes: dict[int, deque[tuple[int, Event]]] = {}
        self._abandoned: list[int] = []  # requests whose reader has gone

    @property
    def config(self) -> ModelConfig:
        return self.backend.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when the checkpoint has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                "this checkpoint has no tokenizer, so it cannot read or write text; give token ids, or put"
                " tokenizer.model or tokenizer.json beside the weights"
            )
        return self._tokenizer

    @cached_property
    def chat_format(self) -> "ChatFormat":
        """How conversations are written. Raises ChatError when the model has no format, TokenizerError without text."""
        from ventoux.chat import ChatFormat, format_for

        wanted = self._wanted_format and ChatFormat(self._wanted_format, self._template, "as asked for")
        return wanted or format_for(self.tokenizer, template=self._template)

    def new_engine(self, **settings: Any) -> Engine:
        """An engine of its own around the model, for who steps it himself; `settings` are Engine's."""
        return Engine(self.backend, self._tokenizer, speculates=self._speculation, draft=self._draft, **settings)

    @cached_property
    def grammars(self) -> Grammars:
        """Makes constraints for `Request`. Raises MissingExtraError without the extra [grammar]."""
        return Grammars(self.tokenizer, end_ids={*self.config.eos_ids, *self.tokenizer.end_ids})

    @overload
    def generate(self, prompt: str | list[int], **params: Any) -> Completion: ...
    @overload
    def generate(self, prompt: list[str] | list[list[int]], **params: Any) -> list[Completion]: ...
    def generate(
        self, prompt: str | list[int] | list[str] | list[list[int]], *, adapter: str | None = None, **params: Any
    ) -> Completion | list[Completion]:
        """What follows the prompt, which is not part of it. Several prompts run as one batch.

        A prompt is text, which gets the BOS that the model wants, or ids, taken as they are. Raises RequestError for a
        parameter out of range, PromptTooLongError when prompt and answer do not fit into the context, TokenizerError
        for text without a tokenizer, GrammarError for what the text cannot be held to, GenerationError when the model's
        logits are not numbers, OutOfMemoryError. `adapter` names a LoRA adapter that was loaded; each call may have
        another.
        """
        request = self._request([], params, adapter=adapter)
        completions = self._complete([replace(request, prompt=ids) for ids in self._all_ids(prompt)])
        return completions if _several(prompt) else completions[0]

    def stream(
        self, prompt: str | list[int], *, adapter: str | None = None, **params: Any
    ) -> Iterator[Token | Finished]:
        """Like `generate`, token by token, and Finished at the end; the texts of all events are the text.

        Leaving the loop, or closing the iterator, cancels the request and frees its cache.
        """
        return self._stream(self._request(self._ids(prompt), params, adapter=adapter))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        safe_prompt: bool = False,
        adapter: str | None = None,
        **params: Any,
    ) -> Completion:
        """The assistant's answer to messages, each `{"role": ..., "content": ...}`.

        Raises ChatError when the conversation cannot be written in the model's chat format, and as `generate` does.
        """
        return self._complete([self._conversation(messages, tools, safe_prompt, adapter, params)])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        safe_prompt: bool = False,
        adapter: str | None = None,
        **params: Any,
    ) -> Iterator[Token | Finished]:
        """Like `chat`, token by token, as `stream` does it."""
        return self._stream(self._conversation(messages, tools, safe_prompt, adapter, params))

    def logits(self, ids: Sequence[int]) -> Float32:
        """The model's logits after each of the ids, [len(ids), vocab] float32: row i predicts id i + 1.

        Raises RequestError when there are no ids, or one is outside the vocabulary; PromptTooLongError when there are
        more than the context holds; GenerationError when they are not numbers; OutOfMemoryError.
        """
        return logits(self.backend, ids, budget=_CHUNK)

    def embed(self, prompt: str | list[int] | list[str] | list[list[int]], *, adapter: str | None = None) -> Float32:
        """Mean-pooled hidden states after the last norm, float32 [n, hidden_size]: a row for each prompt.

        Prompts are as in `generate`, so the BOS counts. Rows are not scaled to length 1: what a length says is a
        classifier's business, and cosines divide by it. Raises as `logits` does.
        """
        return embed(self.backend, self._all_ids(prompt), budget=_CHUNK, adapter=adapter)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that `adapter=` may say."""
        return tuple(self.backend.adapters)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Load a LoRA adapter, a folder as PEFT saves it, while others may be used. Raises CheckpointError for what is
        damaged, of another model or more than plain LoRA, RequestError for a name that is taken."""
        self.backend.load_adapter(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises RequestError when there is none of that name, or when requests use it."""
        with self._lock:
            self._engine.unload_adapter(name)

    def _all_ids(self, prompt: str | list[int] | list[str] | list[list[int]]) -> list[list[int]]:
        prompts: list[Any] = list(prompt) if _several(prompt) else [prompt]
        return [self._ids(each) for each in prompts]

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, bos=True)
        if not isinstance(prompt, list | tuple | np.ndarray):
            raise RequestError(f"a prompt is text or a list of token ids, found {type(prompt).__name__}")
        return prompt

    def _conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        safe_prompt: bool,
        adapter: str | None,
        params: dict[str, Any],
    ) -> Request:
        ids = self.chat_format.encode(messages, tokenizer=self.tokenizer, tools=tools, safe_prompt=safe_prompt)
        continues = bool(messages[-1].get("prefix"))  # an assistant's message that the model is to finish
        return self._request(ids, params, continues=continues, adapter=adapter)

    def _request(
        self, ids: Sequence[int], params: dict[str, Any], *, continues: bool = True, adapter: str | None
    ) -> Request:
        shape = {name: params.pop(name, None) for name in _SHAPES}
        sampling = _sampling(params)
        given = any(value is not None for value in shape.values())
        constraint = self.grammars.one_of(**shape) if given else None
        return Request(ids, sampling, continues, adapter=adapter, constraint=constraint)

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        events: list[list[Event]] = [[] for _ in requests]
        for i, event in self._run(requests):
            events[i].append(event)
        return [Completion(each) for each in events]

    def _stream(self, request: Request) -> Iterator[Token | Finished]:
        with self._lock:
            self._engine.check(request)  # now, and not when the first event is asked for
        return self._events(request)

    def _events(self, request: Request) -> Iterator[Token | Finished]:
        with closing(self._run([request])) as run:
            for _, event in run:
                assert not isinstance(event, PromptLogprobs), "nothing here asks for them"
                yield event

    def _run(self, requests: Sequence[Request]) -> Generator[tuple[int, Event]]:
        """Events by the request's index, until all have finished. Raises the error that one ended with."""
        mailbox: deque[tuple[int, Event]] = deque()
        with self._lock:
            for request in requests:  # all of them first, so that none is queued when one is refused
                self._engine.check(request)
            index = {self._engine.add(request): i for i, request in enumerate(requests)}
            self._mailboxes |= dict.fromkeys(index, mailbox)
        try:
            alive = len(requests)
            while alive:
                with self._lock:
                    if not mailbox:  # else another reader's step has brought something
                        self._step()
                while mailbox:
                    key, event = mailbox.popleft()
                    if isinstance(event, Finished):
                        alive -= 1
                        if event.error is not None:
                            raise event.error
                    yield index[key], event
        finally:
            self._leave(index)

    def _step(self) -> None:
        """One step for everybody; each reader finds its events in its mailbox."""
        for key, event in self._engine.step():
            if key in self._mailboxes:
                self._mailboxes[key].append((key, event))
        self._sweep()

    def _leave(self, keys: Iterable[int]) -> None:
        """Cancel what has not finished, and close the mailboxes.

        The garbage collector may close a generator anywhere, even within a step of the same thread: then the lock is
        held, waiting for it would last for ever, and the step sweeps up.
        """
        self._abandoned.extend(keys)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        while self._abandoned:
            key = self._abandoned.pop()
            self._engine.cancel(key)
            self._mailboxes.pop(key, None)


def _several(prompt: Any) -> bool:
    """Whether it is a list of prompts, and not of ids."""
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], Integral)


def _sampling(params: dict[str, Any]) -> SamplingParams:
    unknown = sorted(params.keys() - set(_PARAMETERS))
    if unknown:
        raise RequestError(
            f"unknown parameter(s) {', '.join(unknown)}; known are {', '.join([*_PARAMETERS, *_SHAPES])}"
        )
    return SamplingParams(**params)
