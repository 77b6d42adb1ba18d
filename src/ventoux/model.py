"""The public face: load a model, and let it generate, stream, chat, or say its logits."""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ventoux.backends import choose, compute_with
from ventoux.batch import Backend, Batch, Float32, Segment
from ventoux.checkpoint import Checkpoint
from ventoux.config import ModelConfig
from ventoux.decoding import SamplingParams
from ventoux.engine import (
    Completion,
    Engine,
    Event,
    Finished,
    PromptLogprobs,
    Request,
    Token,
    check_logits,
    check_prompt,
)
from ventoux.errors import ChatError, OutOfMemoryError, PromptTooLongError, RequestError, TokenizerError, shown
from ventoux.tokenizer import Tokenizer
from ventoux.vocabulary import check_same_vocabulary, texts

if TYPE_CHECKING:
    from ventoux.chat import ChatFormat

Message = Mapping[str, Any]

_PARAMETERS = [field.name for field in fields(SamplingParams)]
_CHUNK = 512  # tokens of one forward pass
_MAX_THREADS = 1024
_PREFIX_BYTES = 1 << 30  # of keys and values that are kept for what begins alike: a 7B's 8,000 positions


class Mistral:
    """A model that is ready to run: a backend, perhaps a tokenizer and a chat format, and one engine around them.

    Keyword arguments of the methods that generate are the fields of `ventoux.decoding.SamplingParams`; others are a
    RequestError. All of them may be called from several threads, and streams may be read in turns: what is asked for at
    the same time runs as one batch. Of what was read and written, `prefix_bytes` of keys and values are kept (1 GiB by
    `load`), so that a text that begins alike, as a conversation's next turn does, is read from there on only.
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
        self._engine = Engine(
            backend, tokenizer, budget=_CHUNK, speculates=speculation, draft=draft, prefix_bytes=prefix_bytes
        )
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

    @overload
    def generate(self, prompt: str | list[int], **params: Any) -> Completion: ...
    @overload
    def generate(self, prompt: list[str] | list[list[int]], **params: Any) -> list[Completion]: ...
    def generate(
        self, prompt: str | list[int] | list[str] | list[list[int]], **params: Any
    ) -> Completion | list[Completion]:
        """What follows the prompt, which is not part of it. Several prompts run as one batch.

        A prompt is text, which gets the BOS that the model wants, or ids, taken as they are. Raises RequestError for a
        parameter out of range, PromptTooLongError when prompt and answer do not fit into the context, TokenizerError
        for text without a tokenizer, GenerationError when the model's logits are not numbers, OutOfMemoryError.
        """
        sampling = _sampling(params)
        many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], Integral)
        prompts: list[Any] = list(prompt) if many else [prompt]
        completions = self._complete([Request(self._ids(each), sampling) for each in prompts])
        return completions if many else completions[0]

    def stream(self, prompt: str | list[int], **params: Any) -> Iterator[Token | Finished]:
        """Like `generate`, token by token, and Finished at the end; the texts of all events are the text.

        Leaving the loop, or closing the iterator, cancels the request and frees its cache.
        """
        return self._stream(Request(self._ids(prompt), _sampling(params)))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        safe_prompt: bool = False,
        **params: Any,
    ) -> Completion:
        """The assistant's answer to messages, each `{"role": ..., "content": ...}`.

        Raises ChatError when the conversation cannot be written in the model's chat format, and as `generate` does.
        """
        return self._complete([self._conversation(messages, tools, safe_prompt, params)])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        safe_prompt: bool = False,
        **params: Any,
    ) -> Iterator[Token | Finished]:
        """Like `chat`, token by token, as `stream` does it."""
        return self._stream(self._conversation(messages, tools, safe_prompt, params))

    def logits(self, ids: Sequence[int]) -> Float32:
        """The model's logits after each of the ids, [len(ids), vocab] float32: row i predicts id i + 1.

        Raises RequestError when there are no ids, or one is outside the vocabulary; PromptTooLongError when there are
        more than the context holds; GenerationError when they are not numbers; OutOfMemoryError.
        """
        config, n = self.config, len(ids)
        check_prompt(ids, config)
        if n > config.context_length:
            raise PromptTooLongError(n, config.context_length)
        try:
            found = np.empty((n, config.vocab_size), np.float32)
            cache = self.backend.new_cache()
            slot = cache.allocate(n)
        except MemoryError as error:
            raise OutOfMemoryError(f"the logits of {n} tokens do not fit into memory; give fewer at once") from error
        try:
            for start in range(0, n, _CHUNK):
                part = ids[start : start + _CHUNK]
                batch = Batch.pack([Segment(slot, start, part, logits=len(part))])
                rows = self.backend.forward(batch, cache)
                check_logits(rows, self.backend)
                found[start : start + len(part)] = rows
        finally:
            cache.free(slot)
        return found

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
        params: dict[str, Any],
    ) -> Request:
        ids = self.chat_format.encode(messages, tokenizer=self.tokenizer, tools=tools, safe_prompt=safe_prompt)
        continues = bool(messages[-1].get("prefix"))  # an assistant's message that the model is to finish
        return Request(ids, _sampling(params), continues=continues)

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


def _sampling(params: dict[str, Any]) -> SamplingParams:
    unknown = sorted(params.keys() - set(_PARAMETERS))
    if unknown:
        raise RequestError(f"unknown parameter(s) {', '.join(unknown)}; known are {', '.join(_PARAMETERS)}")
    return SamplingParams(**params)


def load(
    path: str | Path | None = None,
    *,
    backend: Literal["cpu", "pytorch"] = "cpu",
    device: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    window: int | Literal["off"] | None = None,
    threads: int | None = None,
    compute: Literal["auto", "mixed", "int16", "f32"] = "auto",
    kv_cache_dtype: Literal["auto", "f32", "f16", "int8"] = "auto",
    chat_format: str | None = None,
    speculation: bool = True,
    draft_model: str | Path | None = None,
) -> Mistral:
    """A model from a folder (raw or Hugging Face), a .gguf file, an alias or a hub id; None is the default model.

    backend      "cpu" for our own kernels, "pytorch" for torch (the extra [torch])
    device       pytorch's: "cpu", "cuda", "cuda:1", "mps"; None is "cpu"
    dtype        pytorch's: "fp32", "bf16" or "fp16"; None is fp32 on a CPU and bf16 elsewhere
    window       keys that a query sees, "off" for all of them; None is what the checkpoint says
    threads      of the kernels, or of torch in the whole process; None is one for each physical core, or torch's choice
    compute      the kernels': activations in 8 bits and in 16 where it matters ("mixed"), in 16 ("int16"), in float32
                 ("f32"); "auto" suits the checkpoint
    kv_cache_dtype  the kernels': keys and values in "f32", "f16" or "int8"; "auto" is f32 beside f32, else f16
    chat_format  "v1", "v2", "v3", "v7", or "template"; None is what the checkpoint wants
    speculation  guess what the text repeats, and check several tokens at once where that is faster: the same text
    draft_model  a smaller model of the same vocabulary, named as `path`, which guesses the rest, while that is faster

    Raises RequestError, MissingExtraError, CheckpointError, ConfigError, TokenizerError, ChatError, DownloadError or
    OutOfMemoryError, which say what was found and what to do. A checkpoint without a tokenizer loads: ids and logits
    work, text is a TokenizerError.
    """
    from ventoux import checkpoint
    from ventoux.checkpoint import pull

    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MAX_THREADS):
        raise RequestError(f"threads must be a whole number from 1 to {_MAX_THREADS}, found {threads!r}")
    if compute not in ("auto", "mixed", "int16", "f32"):
        raise RequestError(f"compute must be auto, mixed, int16 or f32, found {shown(compute)}")
    if kv_cache_dtype not in ("auto", "f32", "f16", "int8"):
        raise RequestError(f"kv_cache_dtype must be auto, f32, f16 or int8, found {shown(kv_cache_dtype)}")
    if draft_model is not None and (backend != "cpu" or not speculation):
        raise RequestError("draft_model needs the cpu backend and speculation, which check what it guesses")
    kernels = {"compute": compute, "kv_cache_dtype": kv_cache_dtype}
    make = choose(backend, kernels, device=device, dtype=dtype, threads=threads)  # before anything is fetched
    found = checkpoint.read(pull.resolve(None if path is None else str(path)))
    config = found.config
    if window is not None:
        config = config.with_window(None if window == "off" else window)
    tokenizer, template = texts(found)
    draft = None
    if draft_model is not None:
        smaller = checkpoint.read(pull.resolve(str(draft_model)))
        check_same_vocabulary(smaller, found, tokenizer)  # before the weights, which take longer
        draft = compute_with(make, smaller, smaller.config)
    return Mistral(
        compute_with(make, found, config),
        tokenizer=tokenizer,
        template=template,
        chat_format=chat_format,
        checkpoint=found,
        speculation=speculation,
        draft=draft,
        prefix_bytes=_PREFIX_BYTES,
    )
