"""The one decode loop: `Engine.step()` is schedule, forward, sample, emit, over whatever requests are alive."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from time import perf_counter

from ventoux.batch import Backend, Batch, Float32, Segment, check_adapter
from ventoux.decoding import MAX_DRAFT
from ventoux.engine.generation import Generation
from ventoux.engine.prefix import PrefixCache
from ventoux.engine.request import Event, Finished, Reason, Request, check_ids, check_logits, check_prompt
from ventoux.engine.saving import load, save
from ventoux.engine.scheduler import Chunk, Progress, schedule
from ventoux.engine.speculation import Speculation
from ventoux.errors import GenerationError, OutOfMemoryError, PromptTooLongError, RequestError, shown
from ventoux.tokenizer.base import Tokenizer


class Engine:
    """Generates for many requests at once; they join and leave between steps.

    One step runs at most `budget` tokens, prompts and answers alike, of at most `max_sequences` requests; the others
    wait. Without a tokenizer ids flow and all text is "". Not for several threads at once.

    Several tokens are guessed and checked in one pass, while that is faster, and on backends where it changes nothing:
    where the text repeats what it holds already, and elsewhere by `draft`, a smaller model of the same vocabulary.

    Of requests that have ended, `prefix_bytes` of keys and values are kept, and what begins alike is not read again:
    the same logits as without, to the last bit where the backend has `same_bits`.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | None = None,
        *,
        budget: int = 512,
        max_sequences: int = 32,
        speculates: bool = True,
        draft: Backend | None = None,
        prefix_bytes: int = 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if budget < 1 or max_sequences < 1:
            raise RequestError(f"budget and max_sequences must be at least 1, found {budget} and {max_sequences}")
        if prefix_bytes < 0:
            raise RequestError(f"prefix_bytes must be at least 0, found {prefix_bytes}")
        assert draft is None or draft.config.vocab_size == backend.config.vocab_size
        self._backend = backend
        self._tokenizer = tokenizer
        self._budget = budget
        self._max_sequences = max_sequences
        self._cache = backend.new_cache()
        self._prefixes = PrefixCache(self._cache, prefix_bytes)
        self._speculates = speculates and backend.same_bits
        # a text that outgrows the narrowest window is not guessed at: the cache keeps W positions, and no more for that
        self._widest = min((window for window in backend.config.windows if window is not None), default=sys.maxsize)
        self._speculation = Speculation(draft, clock=clock)
        self._clock = clock
        self._eos_ids = {*backend.config.eos_ids, *(tokenizer.end_ids if tokenizer else ())}
        self._keys = count()
        self._waiting: dict[int, Generation] = {}
        self._running: dict[int, Generation] = {}
        self._events: list[tuple[int, Event]] = []  # for the next step to return

    @property
    def busy(self) -> bool:
        """Whether there is anything left to step for."""
        return bool(self._waiting or self._running or self._events)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that the running requests hold, a draft model's included."""
        return self._cache.nbytes - self._prefixes.nbytes + self._speculation.kv_bytes

    @property
    def prefix_bytes(self) -> int:
        """Bytes of keys and values that are kept of requests that have ended."""
        return self._prefixes.nbytes

    def clear_prefixes(self) -> None:
        """Keep nothing of what has ended, as when it was computed by weights that have changed."""
        self._prefixes.clear()

    def save_prefix(self, ids: Sequence[int], path: str | Path, *, salt: str = "") -> int:
        """Write keys and values of a text into a file -> of how many of its ids, from the first on.

        They are those of the longest common prefix with a text of this salt that is kept or running. Raises
        RequestError when there is none, and PrefixFileError.
        """
        check_prompt(ids, self._backend.config)
        space, running = Request(ids, salt=salt).space, self._running.values()
        return save(Path(path), self._backend, ids, lambda text: self._prefixes.export(text, space, running))

    def load_prefix(self, path: str | Path, *, salt: str = "") -> list[int]:
        """Keep what `save_prefix` wrote, for requests of this salt -> its ids.

        Raises PrefixFileError when the file is damaged, of another model, or larger than prefix_bytes, and
        OutOfMemoryError.
        """
        space = Request((), salt=salt).space
        return load(Path(path), self._backend, lambda ids, snapshot: self._prefixes.restore(snapshot, ids, space))

    def add(self, request: Request) -> int:
        """Queue a request -> the key under which its events come. Raises as `check` does, before anything is queued."""
        limit = self.check(request)
        key = next(self._keys)
        guesses = self._speculates and len(request.prompt) + limit <= self._widest
        self._waiting[key] = Generation(
            request, limit=limit, eos_ids=self._eos_ids, tokenizer=self._tokenizer, guesses=guesses
        )
        return key

    def check(self, request: Request) -> int:
        """How many tokens the request may generate.

        Raises PromptTooLongError when prompt and answer do not fit into the context (a prompt is never cut), and
        RequestError when the prompt is empty, an id is outside the vocabulary, a model without text is given stop
        strings, or there is no adapter of that name.
        """
        params, config = request.params, self._backend.config
        check_prompt(request.prompt, config)
        check_ids("logit_bias", params.logit_bias, config)
        check_ids("stop_ids", params.stop_ids, config)
        if params.stop and self._tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this model has none; use stop_ids")
        if request.adapter is not None:
            check_adapter(request.adapter, self._backend.adapters)
        n, context = len(request.prompt), config.context_length
        limit = context - n if params.max_tokens is None else params.max_tokens
        if n + limit > context or (limit < 1 and request.prompt_logprobs is None):
            raise PromptTooLongError(n, context, params.max_tokens)
        return limit

    def unload_adapter(self, name: str) -> None:
        """Have the backend forget an adapter. Raises RequestError when there is none of that name, or requests use it:
        what their caches hold went through it, and they cannot go on without."""
        used = sum(each.adapter == name for each in (*self._waiting.values(), *self._running.values()))
        if used:
            raise RequestError(f"{used} request(s) use the adapter {shown(name)}; unload it when they have finished")
        self._backend.unload_adapter(name)
        self._prefixes.clear()  # another adapter may get the name

    def cancel(self, key: int) -> None:
        """End a request and free its cache at once; its Finished("cancelled") comes with the next step's events.

        A key that has finished, or never was, is no error: the end of an answer and a wish to stop it may cross.
        """
        if key in self._waiting or key in self._running:
            self._end(key, "cancelled")

    def step(self) -> list[tuple[int, Event]]:
        """Run one batch -> events by key, in order. [] when there is nothing to do.

        What goes wrong with one request ends that request with Finished("error"), not the others.
        """
        chunks, segments = [], []
        drafts = self._drafts()
        for planned in self._plan(drafts):
            try:
                chunk = self._admit(planned) if planned.key in self._waiting else planned
            except Exception as error:
                self._end(planned.key, "error", self._no_room(planned.key, error))
                continue
            chunks.append(chunk)
            segments.append(self._segment(chunk, drafts.get(chunk.key, [])))
        if chunks:
            self._forward(chunks, segments, drafts)
        events, self._events = self._events, []
        return events

    def _drafts(self) -> dict[int, list[int]]:
        """What running requests guess to come next, while guessing pays and nobody waits for a prompt to be read."""
        decoding = all(len(each.ids) - each.done == 1 for each in self._running.values())
        if not self._speculates or self._waiting or not decoding:
            return {}
        wanting = {key: each for key, each in self._running.items() if each.guesses}
        return self._speculation.guess(wanting, len(self._running))

    def _plan(self, drafts: Mapping[int, list[int]]) -> list[Chunk]:
        running = [
            Progress(key, each.done, len(each.ids), len(drafts.get(key, ()))) for key, each in self._running.items()
        ]
        free = max(0, self._max_sequences - len(running))  # nobody else's prompt is worth looking up
        waiting = [
            Progress(key, self._prefixes.expected(each, self._running.values()), len(each.ids))
            for key, each in islice(self._waiting.items(), free)
        ]
        return schedule(waiting, running, budget=self._budget, max_sequences=self._max_sequences)

    def _admit(self, chunk: Chunk) -> Chunk:
        """Give a waiting request its place in the cache -> its chunk, which begins where the cache ends."""
        generation = self._waiting[chunk.key]
        lookahead = MAX_DRAFT if generation.guesses else 0
        generation.start(*self._prefixes.start(generation, self._running.values(), lookahead))
        self._running[chunk.key] = self._waiting.pop(chunk.key)
        count = min(chunk.count, len(generation.ids) - generation.done)
        last = generation.done + count == len(generation.ids)
        return replace(chunk, start=generation.done, count=count, last=last)

    def _segment(self, chunk: Chunk, draft: list[int]) -> Segment:
        """The ids to run, and guesses behind them."""
        generation = self._running[chunk.key]
        assert generation.slot is not None
        ids = generation.ids[chunk.start : chunk.start + chunk.count] + draft[: chunk.draft]
        wanted = 1 + chunk.draft if chunk.last else 0
        if generation.scores_prompt and chunk.start < len(generation.prompt):
            wanted = len(ids)
        return Segment(generation.slot, chunk.start, ids, logits=wanted, adapter=generation.adapter)

    def _no_room(self, key: int, cause: Exception) -> Exception:
        if not isinstance(cause, MemoryError):
            return cause
        length, window = self._waiting[key].length, self._backend.config.window
        positions = length if window is None else min(length, window)
        error = OutOfMemoryError(
            f"the keys and values of {positions} positions do not fit into memory; set max_tokens or the window lower"
        )
        error.__cause__ = cause
        return error

    def _forward(self, chunks: list[Chunk], segments: list[Segment], drafts: Mapping[int, list[int]]) -> None:
        batch = Batch.pack(segments)
        begun = self._clock()
        try:
            logits = self._backend.forward(batch, self._cache)  # [what the segments want, vocab]
        except Exception as error:
            for chunk in chunks:
                self._end(chunk.key, "error", error)
            return
        except BaseException:  # Ctrl-C within a pass: what it wrote is not counted as done, and never read
            for chunk in chunks:
                self._end(chunk.key, "cancelled")
            raise
        seconds = self._clock() - begun
        row = right = 0
        for chunk, segment in zip(chunks, segments, strict=True):
            rows = logits[row : row + segment.logits]
            row += segment.logits
            self._running[chunk.key].done += chunk.count
            right += self._accept(chunk, rows, drafts.get(chunk.key, [])[: chunk.draft])
        if guessed := sum(chunk.draft for chunk in chunks):
            self._speculation.checked(len(chunks), seconds, guessed=guessed, right=right)
        elif len(chunks) == len(batch) and all(chunk.last for chunk in chunks):
            self._speculation.plain(len(chunks), seconds)
        else:
            self._speculation.read(seconds)

    def _accept(self, chunk: Chunk, logits: Float32, draft: list[int]) -> int:
        """Choose a request's next tokens from logits [rows, vocab], until one is not what the draft said.

        The last 1 + len(draft) rows are for that. Row i of them is what the model says after the first i guesses, and
        one token is drawn from each in turn: the text is what it would be without a draft. -> how many guesses were
        right; their keys and values stay.
        """
        key, generation, right = chunk.key, self._running[chunk.key], 0
        try:
            if generation.scores_prompt and chunk.start < len(generation.prompt):
                check_logits(logits, self._backend)
                self._events += [(key, event) for event in generation.score(logits)]
            if not chunk.last:
                return 0
            if len(generation.ids) == generation.length:  # max_tokens=0
                self._end(key, "length")
                return 0
            generation.guessed += len(draft)
            for right, row in enumerate(logits[-1 - len(draft) :]):
                try:
                    events = generation.accept(row)
                except GenerationError:
                    check_logits(row, self._backend)  # if it is that, the backend knows more of it
                    raise
                self._events += [(key, event) for event in events]
                if isinstance(events[-1], Finished):
                    self._release(key, keeps=True)
                    return right
                if right == len(draft) or generation.ids[-1] != draft[right]:
                    break
                generation.right += 1
                generation.done += 1
        except Exception as error:
            self._end(key, "error", error)
            return right
        if draft:
            self._speculation.tell(generation, len(draft), right)
        return right

    def _end(self, key: int, reason: Reason, error: Exception | None = None) -> None:
        # of what failed nothing is kept, since nobody knows what is wrong with it
        self._events.append((key, self._release(key, keeps=reason != "error").finish(reason, error)))

    def _release(self, key: int, *, keeps: bool) -> Generation:
        """Forget a request; its place in the cache is free at once, but for what is kept for those that begin alike."""
        generation = self._waiting.pop(key) if key in self._waiting else self._running.pop(key)
        self._speculation.forget(generation)
        if generation.slot is not None:
            if keeps:
                self._prefixes.keep(generation)
            else:
                self._cache.free(generation.slot)
        return generation
