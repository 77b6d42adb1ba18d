"""The one decode loop: `Engine.step()` is schedule, forward, sample, emit, over whatever requests are alive."""

import sys
from collections.abc import Callable, Mapping
from itertools import count
from time import perf_counter

from ventoux.batch import Backend, Batch, Float32, Segment, check_adapter
from ventoux.decoding import MAX_DRAFT
from ventoux.engine.generation import Generation
from ventoux.engine.request import Event, Finished, Reason, Request, check_ids, check_logits, check_prompt
from ventoux.engine.scheduler import Chunk, Progress, schedule
from ventoux.engine.speculation import Speculation
from ventoux.errors import OutOfMemoryError, PromptTooLongError, RequestError, shown
from ventoux.tokenizer.base import Tokenizer


class Engine:
    """Generates for many requests at once; they join and leave between steps.

    One step runs at most `budget` tokens, prompts and answers alike, of at most `max_sequences` requests; the others
    wait. Without a tokenizer ids flow and all text is "". Not for several threads at once.

    Several tokens are guessed and checked in one pass, while that is faster, and on backends where it changes nothing:
    where the text repeats what it holds already, and elsewhere by `draft`, a smaller model of the same vocabulary.
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
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if budget < 1 or max_sequences < 1:
            raise RequestError(f"budget and max_sequences must be at least 1, found {budget} and {max_sequences}")
        assert draft is None or draft.config.vocab_size == backend.config.vocab_size
        self._backend = backend
        self._tokenizer = tokenizer
        self._budget = budget
        self._max_sequences = max_sequences
        self._cache = backend.new_cache()
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
        return self._cache.nbytes + self._speculation.kv_bytes

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
        if limit < 1 or n + limit > context:
            raise PromptTooLongError(n, context, params.max_tokens)
        return limit

    def unload_adapter(self, name: str) -> None:
        """Have the backend forget an adapter. Raises RequestError when there is none of that name, or requests use it:
        what their caches hold went through it, and they cannot go on without."""
        used = sum(each.adapter == name for each in (*self._waiting.values(), *self._running.values()))
        if used:
            raise RequestError(f"{used} request(s) use the adapter {shown(name)}; unload it when they have finished")
        self._backend.unload_adapter(name)

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
        for chunk in self._plan(drafts):
            try:
                segments.append(self._segment(chunk, drafts.get(chunk.key, [])))
                chunks.append(chunk)
            except MemoryError as error:
                self._end(chunk.key, "error", self._no_room(chunk.key, error))
        if chunks:
            self._forward(chunks, Batch.pack(segments), drafts)
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
        waiting, running = (
            [Progress(key, each.done, len(each.ids), len(drafts.get(key, ()))) for key, each in generations.items()]
            for generations in (self._waiting, self._running)
        )
        return schedule(waiting, running, budget=self._budget, max_sequences=self._max_sequences)

    def _segment(self, chunk: Chunk, draft: list[int]) -> Segment:
        """The ids to run, and guesses behind them; a request that was waiting gets its place in the cache."""
        if chunk.key in self._waiting:
            generation = self._waiting[chunk.key]
            generation.start(self._cache.allocate(generation.length, MAX_DRAFT if generation.guesses else 0))
            self._running[chunk.key] = self._waiting.pop(chunk.key)
        generation = self._running[chunk.key]
        assert generation.slot is not None
        ids = generation.ids[chunk.start : chunk.start + chunk.count] + draft[: chunk.draft]
        return Segment(
            generation.slot, chunk.start, ids, logits=1 + chunk.draft if chunk.last else 0, adapter=generation.adapter
        )

    def _no_room(self, key: int, cause: MemoryError) -> OutOfMemoryError:
        length, window = self._waiting[key].length, self._backend.config.window
        positions = length if window is None else min(length, window)
        error = OutOfMemoryError(
            f"the keys and values of {positions} positions do not fit into memory; set max_tokens or the window lower"
        )
        error.__cause__ = cause
        return error

    def _forward(self, chunks: list[Chunk], batch: Batch, drafts: Mapping[int, list[int]]) -> None:
        begun = self._clock()
        try:
            logits = self._backend.forward(batch, self._cache)  # [1 + guesses of chunks that are their last, vocab]
        except Exception as error:
            for chunk in chunks:
                self._end(chunk.key, "error", error)
            return
        except BaseException:  # Ctrl-C within a pass: these caches are half-written, nobody may go on from them
            for chunk in chunks:
                self._end(chunk.key, "cancelled")
            raise
        seconds = self._clock() - begun
        row = right = 0
        for chunk in chunks:
            self._running[chunk.key].done += chunk.count
            if chunk.last:
                draft = drafts.get(chunk.key, [])[: chunk.draft]
                right += self._accept(chunk.key, logits[row : row + 1 + len(draft)], draft)
                row += 1 + len(draft)
        if row > len(chunks):
            self._speculation.checked(len(chunks), seconds, guessed=row - len(chunks), right=right)
        elif row == len(chunks) == len(batch):
            self._speculation.plain(len(chunks), seconds)
        else:
            self._speculation.read(seconds)

    def _accept(self, key: int, logits: Float32, draft: list[int]) -> int:
        """Choose a request's next tokens from logits [1 + len(draft), vocab], until one is not what the draft said.

        Row i is what the model says after the first i guesses, and one token is drawn from each in turn: the text is
        what it would be without a draft. -> how many guesses were right; their keys and values stay.
        """
        generation = self._running[key]
        generation.guessed += len(draft)
        for right, row in enumerate(logits):
            try:
                check_logits(row, self._backend)
                events = generation.accept(row)
            except Exception as error:
                self._end(key, "error", error)
                return right
            self._events += [(key, event) for event in events]
            if isinstance(events[-1], Finished):
                self._release(key)
                return right
            if right == len(draft) or generation.ids[-1] != draft[right]:
                break
            generation.right += 1
        generation.done += right
        if draft:
            self._speculation.tell(generation, len(draft), right)
        return right

    def _end(self, key: int, reason: Reason, error: Exception | None = None) -> None:
        self._events.append((key, self._release(key).finish(reason, error)))

    def _release(self, key: int) -> Generation:
        """Forget a request; its cache is free at once."""
        generation = self._waiting.pop(key) if key in self._waiting else self._running.pop(key)
        self._speculation.forget(generation)
        if generation.slot is not None:
            self._cache.free(generation.slot)
        return generation
