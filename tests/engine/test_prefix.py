"""What begins alike is computed once: the same ids, texts and logits as without, and nothing mixed that must not be."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import BOS, ByteTokenizer, ToyBackend, hashed

from ventoux import checkpoint
from ventoux.batch import Float32
from ventoux.cpu import Backend
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Event, Request
from ventoux.errors import OutOfMemoryError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = list(b"abcde" * 8)  # 40 ids


def run(engine: Engine, *requests: Request) -> list[Completion]:
    events: dict[int, list[Event]] = defaultdict(list)
    keys = [engine.add(request) for request in requests]
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
    return [Completion(events[key]) for key in keys]


def toy(backend: ToyBackend | None = None, *, prefix_bytes: int = 1 << 20, **options: Any) -> Engine:
    return Engine(backend or ToyBackend(context_length=400), ByteTokenizer(), prefix_bytes=prefix_bytes, **options)


def cached(completion: Completion) -> int:
    return completion.usage.cached_tokens


def seen(completion: Completion) -> tuple[object, ...]:
    return str(completion), completion.ids, completion.logprobs, completion.reason


parts = st.sampled_from([LONG, LONG[:30], LONG[:16], list(b"edcba" * 5), list(b"aab"), list(b"b")])
texts = st.lists(parts, min_size=1, max_size=4).map(lambda drawn: [i for part in drawn for i in part])


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(texts, st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=8),
    st.sampled_from([0, 60, 300, 1 << 20]),
    st.sampled_from([3, 20, 512]),
    st.integers(1, 4),
    st.sampled_from([None, 20]),
)
def test_the_same_with_and_without(drawn, prefix_bytes, budget, max_sequences, window):
    """Any arrivals, budgets, cancellations; the toy complains of positions that its cache does not hold."""
    backend = ToyBackend(context_length=400)
    backend.cache.window = window
    engine = toy(backend, prefix_bytes=prefix_bytes, budget=budget, max_sequences=max_sequences)
    events, requests, step = defaultdict(list), {}, 0
    arrivals = sorted(drawn, key=lambda each: each[2])
    while arrivals or engine.busy:
        while arrivals and arrivals[0][2] <= step:
            prompt, seed, _ = arrivals.pop(0)
            request = Request(prompt, SamplingParams(seed=seed, max_tokens=1 + seed * 5, logprobs=1))
            requests[engine.add(request)] = request
        if step == 11 and requests:
            engine.cancel(min(requests))
        for key, event in engine.step():
            events[key].append(event)
        assert engine.prefix_bytes <= prefix_bytes
        step += 1
    for key, request in requests.items():
        [alone] = run(Engine(ToyBackend(context_length=400), ByteTokenizer()), request)
        completion = Completion(events[key])
        if completion.reason == "cancelled":
            assert alone.ids[: len(completion.ids)] == completion.ids
        else:
            assert seen(completion) == seen(alone)
    assert engine.kv_bytes == 0
    engine.clear_prefixes()
    assert engine.prefix_bytes == backend.cache.nbytes == 0


def test_a_conversations_next_turn_reads_only_what_is_new():
    engine = toy()
    [first] = run(engine, Request(LONG, GREEDY))
    assert cached(first) == 0
    turn = [*LONG, *first.ids, *b"edc"]
    [second] = run(engine, Request(turn, GREEDY))
    assert cached(second) == len(LONG) + 7  # the answer's last token was never run
    assert (second.usage.prompt_tokens, second.usage.completion_tokens) == (len(turn), 8)
    [third] = run(engine, Request([*turn, *second.ids, *b"a"], GREEDY))
    assert cached(third) == len(turn) + 7


def test_a_prompt_that_was_seen_runs_its_last_token_anew():
    engine = toy()
    first, again = run(engine, Request(LONG, GREEDY))[0], run(engine, Request(LONG, GREEDY))[0]
    assert cached(again) == len(LONG) - 1
    assert seen(again) == seen(first)


def test_running_texts_are_sources_too():
    backend = ToyBackend(context_length=400)
    engine = toy(backend, budget=64)
    engine.add(Request(LONG, SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)))
    engine.step()
    engine.add(Request([*LONG, *b"abc"], GREEDY))
    engine.step()
    assert len(backend.batches[-1]) == 1 + 3


def test_equal_prompts_that_come_at_once_are_read_once():
    """The younger waits for the oldest, which is read first, and takes it over."""
    backend = ToyBackend(context_length=400)
    completions = run(toy(backend, budget=16), *[Request([*LONG, i], GREEDY) for i in (97, 98, 99)])
    first, *others = map(cached, completions)
    assert first == 0
    assert min(others) >= 16
    for i, completion in zip((97, 98, 99), completions, strict=True):
        assert seen(completion) == seen(run(toy(prefix_bytes=0), Request([*LONG, i], GREEDY))[0])


def test_off_nothing_is_kept_or_shared():
    engine = toy(prefix_bytes=0)
    assert [cached(run(engine, Request(LONG, GREEDY))[0]) for _ in range(2)] == [0, 0]
    assert engine.prefix_bytes == 0
    with pytest.raises(RequestError, match="prefix_bytes must be at least 0, found -1"):
        toy(prefix_bytes=-1)


def test_salts_never_mix():
    engine = toy()
    salts = ["", "a", "b", "a", "", "b"]
    found = [cached(run(engine, Request(LONG, GREEDY, salt=salt))[0]) for salt in salts]
    assert found == [0, 0, 0, 39, 39, 39]
    engine.add(Request(LONG, SamplingParams(max_tokens=100, ignore_eos=True), salt="running"))
    engine.step()
    assert cached(run(engine, Request(LONG, GREEDY, salt="other"))[-1]) == 0
    with pytest.raises(RequestError, match="salt must be a string, found None"):
        Request(LONG, salt=None)  # type: ignore[arg-type]


def test_who_was_used_longest_ago_goes_first():
    """Room for three of 47 positions each."""
    engine = toy(prefix_bytes=150)
    one, two, three, four = ([65 + i, *LONG[1:]] for i in range(4))

    def ask(prompt):
        return cached(run(engine, Request(prompt, GREEDY))[0])

    assert [ask(each) for each in (one, two, three)] == [0, 0, 0]
    assert engine.prefix_bytes == 3 * 47
    assert ask(one) == 39  # which makes `two` the oldest
    assert ask(four) == 0
    assert engine.prefix_bytes <= 150
    assert [ask(one), ask(four)] == [39, 39]
    assert ask(two) == 0


def test_a_text_that_was_taken_over_to_its_end_is_not_kept_twice():
    engine = toy()
    prompt, held = LONG, []
    for _ in range(4):
        [answer] = run(engine, Request(prompt, GREEDY))
        held.append(engine.prefix_bytes)
        prompt = [*prompt, *answer.ids, 97]
    assert held == [47, 56, 65, 74]
    for _ in range(3):  # and the same text again is kept once
        run(engine, Request(prompt, GREEDY))
    assert engine.prefix_bytes == 83


def test_kept_texts_go_when_memory_is_short():
    backend = ToyBackend(context_length=400)
    backend.cache.room = 143
    engine = toy(backend)
    for first in range(2):
        run(engine, Request([first, *LONG[1:]], GREEDY))
    assert engine.prefix_bytes == 94
    [completion] = run(
        engine, Request(list(b"edcba" * 12), SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    )
    assert completion.usage.completion_tokens == 40
    [completion] = run(engine, Request(LONG, SamplingParams(max_tokens=200)))
    assert isinstance(completion.finished.error, OutOfMemoryError)
    assert engine.kv_bytes == 0


def test_the_source_itself_is_given_up_where_two_find_no_room():
    backend = ToyBackend(context_length=400)
    backend.cache.room = 100
    engine = toy(backend)
    [first] = run(engine, Request(LONG, GREEDY))
    assert engine.prefix_bytes == 47
    [second] = run(
        engine, Request([*LONG, *first.ids, 97], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    )
    assert (cached(second), second.usage.completion_tokens) == (0, 40)


@pytest.mark.parametrize("cancelled_after", [1, 2, 4, 8])
def test_facts_26_a_cancelled_text_is_free_at_once_and_what_it_has_read_is_kept(cancelled_after):
    backend = ToyBackend(context_length=400)
    engine = toy(backend, budget=16)
    key = engine.add(Request(LONG, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)))
    for _ in range(cancelled_after):
        engine.step()
    engine.cancel(key)
    assert engine.kv_bytes == 0
    [again] = run(engine, Request(LONG, GREEDY))
    assert cached(again) == min(16 * cancelled_after, 39)
    assert seen(again) == seen(run(toy(prefix_bytes=0), Request(LONG, GREEDY))[0])


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
def test_nothing_of_a_pass_that_failed_is_kept(error):
    """After Ctrl-C what was done before the pass; after an error nothing."""
    calls = iter(range(1000))

    def row(ids: list[int]) -> Float32:
        if next(calls) == 3:
            raise error
        return hashed(ids)

    engine = toy(ToyBackend(row, context_length=400))
    engine.add(Request(LONG, GREEDY))
    try:
        while engine.busy:
            engine.step()
    except KeyboardInterrupt:
        engine.step()
    assert engine.kv_bytes == 0
    assert engine.prefix_bytes == (42 if error is KeyboardInterrupt else 0)
    assert seen(run(engine, Request(LONG, GREEDY))[0]) == seen(run(toy(prefix_bytes=0), Request(LONG, GREEDY))[0])


def test_a_text_whose_logits_are_no_numbers_is_not_kept():
    engine = toy(ToyBackend(lambda ids: hashed(ids) * (np.nan if len(ids) == 42 else 1), context_length=400))
    assert run(engine, Request(LONG, GREEDY))[0].reason == "error"
    assert engine.prefix_bytes == 0


@pytest.fixture(scope="module", params=[3, 4, 16, None])
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = tiny.tiny_model(1, sliding_window=request.param, vocab_size=258)
    return checkpoint.read(tiny.save_hf(model, tmp_path_factory.mktemp("windowed")))


@pytest.mark.parametrize("kv_cache_dtype", ["f32", "f16", "int8"])
def test_facts_13_prefixes_are_exact_with_the_window_or_not_taken(windowed, kv_cache_dtype):
    """Turns of a conversation that outgrows the window: the bits of the log-probabilities are those without a cache."""
    backend = Backend(windowed.config, windowed.tensors, threads=1, kv_cache_dtype=kv_cache_dtype)
    params = SamplingParams(temperature=0, max_tokens=9, logprobs=3, ignore_eos=True)
    with_cache, without = Engine(backend, prefix_bytes=1 << 20, budget=32), Engine(backend, budget=32)
    rng = np.random.default_rng(0)
    prompt, found = [BOS, *rng.integers(0, 256, 40).tolist()], []
    for _ in range(4):
        other = [*prompt[:25], *rng.integers(0, 256, 9).tolist()]  # which begins as an older turn does
        for ids in (prompt, other, prompt):
            [kept], [fresh] = (run(engine, Request(ids, params)) for engine in (with_cache, without))
            assert [(t.id, t.logprob, t.top_logprobs) for t in kept.tokens] == [
                (t.id, t.logprob, t.top_logprobs) for t in fresh.tokens
            ]
            found.append((cached(kept), len(ids)))
        prompt = [*prompt, *kept.ids, *rng.integers(0, 256, 5).tolist()]
    turns = [found[i] for i in (3, 6, 9)]
    assert all(position == n - 6 for position, n in turns)  # a new turn reads what is new, and a token
    if windowed.config.window is None:
        assert all(position == 25 for position, _ in (found[4], found[7], found[10]))
        assert all(position == n - 1 for position, n in (found[2], found[5], found[8]))
    else:
        assert all(position < 25 for position, _ in (found[4], found[7], found[10]))  # those keys are gone
    with_cache.clear_prefixes()
    assert with_cache.kv_bytes == with_cache.prefix_bytes == 0


@pytest.mark.parametrize("windows", [(None, None), (40, 40)])
@pytest.mark.parametrize("drafts", [False, True])
def test_facts_12_guesses_go_on_from_what_was_taken_over(tmp_path_factory, windows, drafts):
    """A clock that stands still: guessing never seems to cost anything. Some texts outgrow the window, some do not."""
    model = tiny.tiny_model(3, vocab_size=258)
    found = checkpoint.read(tiny.save_hf(model, tmp_path_factory.mktemp("guesses")))
    backend = Backend(replace(found.config, windows=windows), found.tensors, threads=1)
    draft = Backend(replace(found.config, windows=windows), found.tensors, threads=1) if drafts else None
    guessing = Engine(backend, prefix_bytes=1 << 20, clock=lambda: 0.0, draft=draft)
    plain = Engine(backend, speculates=False)
    prompt, checked = [1, 2, 3, 4] * 5, 0
    for turn in range(5):
        for params in (GREEDY, SamplingParams(seed=turn, temperature=0.3, max_tokens=9, logprobs=1)):
            [kept], [fresh] = (run(engine, Request(prompt, params)) for engine in (guessing, plain))
            assert seen(kept) == seen(fresh)
            assert bool(cached(kept)) == (turn > 0 or params is not GREEDY)
            checked += kept.guesses.checked
        prompt = [*prompt, *kept.ids, 1, 2, 3, 4]
    assert checked > 0 or (windows[0] and not drafts)  # there nothing repeats before the window is full
    assert guessing.kv_bytes == 0
