"""A draft model changes nothing but the number of passes, whatever it guesses, and wherever it fails."""

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import BOS, EOS, VOCAB, ByteTokenizer, Row, ToyBackend, ToyCache, hashed

from ventoux.batch import Batch, Float32
from ventoux.checkpoint import read
from ventoux.cpu import Backend
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Event, Request
from ventoux.errors import VentouxWarning

# a draft that breaks down would pass most of these tests, since texts are the same without it
pytestmark = pytest.mark.filterwarnings("error::ventoux.errors.VentouxWarning")


class Clock:
    """Time that passes when a backend computes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedToy(ToyBackend):
    same_bits = True

    def __init__(self, row: Row, clock: Clock, *, step: float = 0.0, token: float = 0.0, context: int = 100) -> None:
        super().__init__(row, context_length=context)
        self.clock, self.step, self.token = clock, step, token

    def forward(self, batch: Batch, cache: ToyCache) -> Float32:
        self.clock.now += self.step + self.token * len(batch)
        return super().forward(batch, cache)


def engine(row: Row, draft: Row | ToyBackend | None, **limits: int) -> tuple[Engine, ToyBackend, ToyBackend | None]:
    """A clock that stands still: guessing never seems to cost anything."""
    clock = Clock()
    backend = TimedToy(row, clock)
    drafting = draft if draft is None or isinstance(draft, ToyBackend) else TimedToy(draft, clock)
    return Engine(backend, ByteTokenizer(), draft=drafting, clock=clock, **limits), backend, drafting


def run(loop: Engine, requests: list[Request]) -> list[Completion]:
    events: dict[int, list[Event]] = {loop.add(request): [] for request in requests}
    while loop.busy:
        for key, event in loop.step():
            events[key].append(event)
    assert loop.kv_bytes == 0
    return [Completion(each) for each in events.values()]


def seen(completion: Completion) -> tuple[object, ...]:
    return str(completion), completion.ids, completion.logprobs, completion.reason, completion.usage


def letters(width: int, seed: int = 0, *, sharpness: float = 2.0) -> Row:
    """Text of so many different bytes, by all that came before."""

    def row(ids: list[int]) -> Float32:
        rng = np.random.default_rng([seed, *ids])
        logits = np.full(VOCAB, -30, np.float32)
        logits[20 : 20 + width] = rng.normal(size=width) * sharpness
        logits[EOS] = -2
        return logits

    return row


def endless(row: Row) -> Row:
    def without_end(ids: list[int]) -> Float32:
        logits = row(ids)
        logits[EOS] = -30
        return logits

    return without_end


parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 2.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 99),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(1, 60),
    stop=st.sampled_from([(), ("\x14\x15",), ("\x16",)]),
    logprobs=st.sampled_from([None, 2]),
)
prompts = st.lists(st.integers(20, 25), max_size=30).map(lambda ids: [BOS, *ids])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(prompts, parameters), min_size=1, max_size=4),
    st.integers(2, 6),
    st.integers(0, 1),
    st.sampled_from([1, 20, 40, 100]),
    st.sampled_from([3, 20, 512]),
)
def test_the_same_with_and_without(drawn, width, seed, context, budget):
    """Also with a draft whose context ends before the text does."""
    requests = [Request(prompt, params) for prompt, params in drawn]
    draft = TimedToy(letters(width, seed), Clock(), context=context)
    assisted, alone = (
        run(engine(letters(width), each, budget=budget, max_sequences=3)[0], requests) for each in (draft, None)
    )
    assert [*map(seen, assisted)] == [*map(seen, alone)]
    assert all(each.guesses.right <= each.guesses.checked for each in assisted)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_model_that_drafts_for_itself_is_always_right(temperature):
    """Also when it samples: the draft has the same random numbers."""
    params = SamplingParams(
        temperature=temperature, seed=3, repetition_penalty=1.2, presence_penalty=0.3, max_tokens=90, logprobs=1
    )
    row = endless(letters(200))
    loop, backend, draft = engine(row, row)
    [completion] = run(loop, [Request([BOS, 20, 21], params)])
    assert completion.guesses.checked == completion.guesses.right > 70
    assert len(completion.ids) == 90
    assert len(backend.batches) < 20
    assert draft is not None
    assert sum(map(len, draft.batches)) < 3 + 90 + len(backend.batches)  # each position is run once, or nearly


def test_a_draft_that_is_always_wrong_hardly_guesses():
    loop, backend, _ = engine(endless(letters(200)), endless(letters(50, 1, sharpness=9)))
    [completion] = run(loop, [Request([BOS, 20, 21], SamplingParams(temperature=0, max_tokens=90))])
    assert completion.guesses.right < 5
    assert completion.guesses.checked < 60
    assert len(backend.batches) >= 85


def test_several_streams_draft_in_one_pass_each():
    row = endless(letters(200))
    loop, backend, draft = engine(row, row)
    requests = [Request([BOS, 30 + i], SamplingParams(temperature=1, seed=i, max_tokens=40)) for i in range(3)]
    completions = run(loop, requests)
    assert all(each.guesses.right > 25 for each in completions)
    assert draft is not None
    assert max(len(batch.slots) for batch in draft.batches) == 3
    assert len(backend.batches) < 20


def test_drawn_tokens_have_the_models_own_distribution():
    """The second and the third token are guessed by another model, and are distributed as if nobody had guessed.

    Chi-square over 9 pairs, with fixed seeds; it exceeds 26.1 once in a thousand times.
    """
    row, draft = endless(letters(3, sharpness=1)), endless(letters(3, 1, sharpness=1))

    def probabilities(ids: list[int]) -> dict[int, float]:
        weights = np.exp(row(ids).astype(np.float64))
        return {i: weights[i] / weights.sum() for i in (20, 21, 22)}

    expected: Counter[tuple[int, int]] = Counter()
    for a, b, c in itertools.product((20, 21, 22), repeat=3):
        chance = probabilities([BOS])[a] * probabilities([BOS, a])[b] * probabilities([BOS, a, b])[c]
        expected[b, c] += chance  # type: ignore[assignment]
    loop, *_ = engine(row, draft)
    n, found, guessed, right = 3000, Counter[tuple[int, int]](), 0, 0
    for seed in range(n):
        [completion] = run(loop, [Request([BOS], SamplingParams(temperature=1, seed=seed, max_tokens=3))])
        found[completion.ids[1], completion.ids[2]] += 1
        guessed, right = guessed + completion.guesses.checked, right + completion.guesses.right
    assert 0.2 * n < right < guessed
    assert sum((found[pair] - n * p) ** 2 / (n * p) for pair, p in expected.items()) < 26.1


def test_what_would_end_the_text_is_no_guess():
    row, guessed = letters(200), 0
    for seed in range(20):
        loop, *_ = engine(row, row)
        params = SamplingParams(temperature=1, seed=seed, stop_ids=tuple(range(20, 50)))
        [completion] = run(loop, [Request([BOS], params)])
        assert completion.reason == "stop"
        assert completion.guesses.checked == completion.guesses.right
        guessed += completion.guesses.checked
    assert guessed > 20


def test_a_long_prompt_is_read_from_its_end_and_whole_once_that_has_paid():
    """In parts, none of which takes longer than a step or two, while the text goes on."""
    clock = Clock()

    def row(ids: list[int]) -> Float32:
        return endless(letters(200))(ids[-4:])

    backend = TimedToy(row, clock, step=1.0, token=0.05, context=600)
    draft = TimedToy(row, clock, step=0.05, token=0.005, context=600)
    loop = Engine(backend, ByteTokenizer(), draft=draft, clock=clock)
    prompt = [BOS, *np.random.default_rng(0).integers(20, 220, 400).tolist()]
    [completion] = run(loop, [Request(prompt, SamplingParams(temperature=0, max_tokens=150))])
    reading = [batch for batch in draft.batches if len(batch.logit_rows) == 0]
    assert len(draft.batches[0]) == 16
    assert sum(batch.positions[0] == 0 for batch in draft.batches) == 2
    assert any(batch.positions[-1] >= 400 for batch in reading)
    assert all(0.05 + 0.005 * len(batch) < 1.5 for batch in reading)  # seconds; a step takes 1.05
    assert completion.guesses.right > 100


def test_a_text_that_outgrows_the_draft_is_read_on_from_its_end():
    def row(ids: list[int]) -> Float32:
        return endless(letters(200))(ids[-4:])

    draft = TimedToy(row, Clock(), context=40)
    loop, *_ = engine(row, draft)
    [completion] = run(loop, [Request([BOS, 20, 21], SamplingParams(temperature=0, max_tokens=95))])
    assert completion.guesses.right > 70


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("cost", [0.02, 0.1, 0.5, 1.0])
def test_a_draft_that_does_not_help_costs_less_than_five_percent(cost, temperature):
    """By a clock that counts passes: each costs a step and, for each token, a tenth of one."""
    requests = [
        Request([BOS, *range(20, 20 + n)], SamplingParams(temperature=temperature, seed=n, max_tokens=120))
        for n in (5, 60)
    ]
    seconds = {}
    for drafts in (False, True):
        clock = Clock()
        backend = TimedToy(endless(letters(200)), clock, step=1.0, token=0.1, context=400)
        draft = TimedToy(endless(letters(100, 1)), clock, step=cost, token=0.1 * cost, context=400)
        loop = Engine(backend, ByteTokenizer(), draft=draft if drafts else None, clock=clock)
        run(loop, requests[:1])
        run(loop, requests[1:])
        seconds[drafts] = clock.now
    assert seconds[True] < 1.05 * seconds[False]


@pytest.mark.parametrize("cost", [0.05, 0.25])
@pytest.mark.parametrize("early", [40, 60, 80, 120])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_draft_does_not_keep_a_text_from_guessing_what_it_repeats(early, seed, cost):
    """Guesses from the text cost nothing to make: after misses they come back, also while the draft does well."""

    def row(ids: list[int]) -> Float32:
        if len(ids) < early:  # of three letters: what has been there before misleads
            return endless(letters(3, seed, sharpness=9))(ids)
        logits = np.full(VOCAB, -30, np.float32)
        logits[ids[-30]] = 0
        return logits

    seconds = {}
    for drafts in (False, True):
        clock = Clock()
        backend = TimedToy(row, clock, step=1.0, token=0.25, context=500)
        draft = TimedToy(row, clock, step=cost, token=0.25 * cost, context=500)
        loop = Engine(backend, ByteTokenizer(), draft=draft if drafts else None, clock=clock)
        run(loop, [Request([BOS, *range(20, 50)], SamplingParams(temperature=0, max_tokens=300))])
        seconds[drafts] = clock.now
    assert seconds[True] < 1.05 * seconds[False]


@pytest.mark.parametrize(
    ("prompt", "knows", "right", "at_most"),
    [
        (3, 400, 1.0, 0.4),
        (3, 400, 0.8, 0.65),
        (3, 400, 0.5, 0.95),
        (150, 400, 1.0, 0.6),  # right only when it has read all of the prompt, for which it saves
        (150, 400, 0.8, 0.75),
        (150, 4, 1.0, 0.4),  # right from the beginning
        (150, 4, 0.8, 0.65),
        (150, 4, 0.5, 0.95),
    ],
)
def test_a_draft_that_is_mostly_right_saves_most_of_the_time(prompt, knows, right, at_most):
    """Both go by the last ids, so many at most."""

    def row(ids: list[int]) -> Float32:
        return endless(letters(200, sharpness=5))(ids[-knows:])

    def similar(ids: list[int]) -> Float32:
        likely = np.random.default_rng([5, *ids[-knows:]]).random() < right
        return row(ids) if likely else endless(letters(200, 1))(ids)

    seconds = {}
    for drafts in (False, True):
        clock = Clock()
        backend = TimedToy(row, clock, step=1.0, token=0.05, context=400)
        draft = TimedToy(similar, clock, step=0.05, token=0.0025, context=400)
        loop = Engine(backend, ByteTokenizer(), draft=draft if drafts else None, clock=clock)
        ids = np.random.default_rng(0).integers(20, 220, prompt).tolist()
        run(loop, [Request(ids, SamplingParams(temperature=0, max_tokens=200))])
        seconds[drafts] = clock.now
    assert seconds[True] < at_most * seconds[False]


def breaking(after: int, error: Callable[[], BaseException] | None) -> ToyBackend:
    """A draft that is right until its n-th pass, which raises, or returns what is not a number."""
    row = endless(letters(200))

    class Breaking(TimedToy):
        def forward(self, batch: Batch, cache: ToyCache) -> Float32:
            logits = super().forward(batch, cache)
            if len(self.batches) == after:
                if error is None:
                    return np.full_like(logits, np.nan)
                raise error()
            return logits

    return Breaking(row, Clock())


@pytest.mark.parametrize("after", [1, 2, 9])
@pytest.mark.parametrize("error", [None, RuntimeError, MemoryError])
def test_a_draft_that_fails_says_so_once_and_the_text_goes_on(after, error):
    requests = [Request([BOS, 20, i], SamplingParams(temperature=0, max_tokens=60)) for i in (21, 22)]
    row = endless(letters(200))
    alone = run(engine(row, None)[0], requests)
    draft = breaking(after, error)
    loop, *_ = engine(row, draft)
    with pytest.warns(VentouxWarning, match="the draft model guesses no more") as told:
        assisted = run(loop, requests)
    assert len(told) == 1
    assert [*map(seen, assisted)] == [*map(seen, alone)]
    assert len(draft.batches) == after


def test_a_draft_without_room_for_a_text_does_not_guess_at_it():
    row = endless(letters(200))
    draft = TimedToy(row, Clock())
    draft.cache.room = 30
    loop, *_ = engine(row, draft)
    requests = [Request([BOS, 20], SamplingParams(temperature=0, max_tokens=n)) for n in (60, 20)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [large], [small] = (run(loop, [request]) for request in requests)
    assert seen(large) == seen(*run(engine(row, None)[0], requests[:1]))
    assert small.guesses.right > 0


@pytest.mark.parametrize("after", range(1, 12, 2))
def test_ctrl_c_while_the_draft_writes_leaves_the_others_right(after):
    row = endless(letters(200))
    params = SamplingParams(temperature=1, seed=2, max_tokens=60)
    [alone] = run(engine(row, None)[0], [Request([BOS, 20], params)])
    loop, *_ = engine(row, breaking(after, KeyboardInterrupt))
    loop.add(Request([BOS, 20], params))
    other = loop.add(Request([BOS, 20, 21], params))
    events: list[Event] = []
    interrupted = 0
    while loop.busy:
        try:
            events += [event for key, event in loop.step() if key == 0]
        except KeyboardInterrupt:
            interrupted += 1
            loop.cancel(other)
    assert interrupted == 1
    assert seen(Completion(events)) == seen(alone)
    assert Completion(events).guesses.right > 0
    assert loop.kv_bytes == 0


def test_cancelling_frees_the_draft_too():
    row = endless(letters(200))
    loop, _, draft = engine(row, row)
    key = loop.add(Request([BOS, 20], SamplingParams(temperature=0, max_tokens=60)))
    for _ in range(5):
        loop.step()
    assert draft is not None
    assert draft.cache.nbytes == 62
    loop.cancel(key)
    assert draft.cache.nbytes == loop.kv_bytes == 0


def test_when_every_token_is_forbidden_the_models_own_error_comes():
    params = SamplingParams(temperature=0, max_tokens=20, logit_bias=dict.fromkeys(range(VOCAB), -np.inf))
    loop, *_ = engine(hashed, hashed)
    [completion] = run(loop, [Request([BOS], params)])
    assert completion.reason == "error"
    assert "no token is left" in str(completion.finished.error)


@pytest.mark.parametrize("window", [16, 128, None])
@pytest.mark.parametrize("seed", [3, 4])
def test_real_kernels_give_the_same_with_and_without(tmp_path: Path, window: int | None, seed: int):
    """A draft that is the model itself, or another one; with a narrow window it stops where it cannot go back."""
    found = [
        read(tiny.save_hf(tiny.tiny_model(sliding_window=width, vocab_size=40, seed=number), tmp_path / name))
        for name, width, number in (("model", 128, 3), ("draft", window, seed))
    ]
    model, draft = (Backend(each.config, each.tensors, threads=2) for each in found)
    requests = [
        Request([1, 2, 3 + i, 4], SamplingParams(temperature=t, seed=i, max_tokens=70, ignore_eos=True, logprobs=2))
        for i, t in enumerate((0, 0.5, 1.0))
    ]
    loops = [Engine(model, draft=each, clock=lambda: 0.0) for each in (draft, None)]
    assisted, alone = (run(loop, requests) for loop in loops)
    assert [*map(seen, assisted)] == [*map(seen, alone)]
    if seed == 3 and window == 128:
        assert all(each.guesses.right > 40 for each in assisted)
