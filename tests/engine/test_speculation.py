"""Guesses change nothing but the number of steps: the text, the ids and the log-probabilities are the same."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import BOS, EOS, VOCAB, ByteTokenizer, Row, ToyBackend, saying

from ventoux.batch import Float32
from ventoux.checkpoint import read
from ventoux.cpu import Backend
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Event, Request


def run(engine: Engine, requests: list[Request]) -> list[Completion]:
    events: dict[int, list[Event]] = {engine.add(request): [] for request in requests}
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
    return [Completion(each) for each in events.values()]


def engine(backend: ToyBackend | Backend, *, speculates: bool, **settings: int) -> Engine:
    """A clock that stands still: guessing never seems to cost anything."""
    tokenizer = None
    if isinstance(backend, ToyBackend):
        backend.same_bits, tokenizer = True, ByteTokenizer()
    return Engine(backend, tokenizer, speculates=speculates, clock=lambda: 0.0, **settings)


def few(width: int) -> Row:
    """Text of few letters, which repeats itself often but not always."""

    def row(ids: list[int]) -> Float32:
        rng = np.random.default_rng([len(ids) // 7, *ids[-2:]])
        logits = np.full(VOCAB, -20, np.float32)
        logits[ord("a") : ord("a") + width] = rng.normal(size=width) * 3
        logits[EOS] = -4
        return logits

    return row


def seen(completion: Completion) -> tuple[object, ...]:
    return str(completion), completion.ids, completion.logprobs, completion.reason, completion.usage


parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 2.0]),
    seed=st.integers(0, 99),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(1, 60),
    stop=st.sampled_from([(), ("aab",), ("ba", "cc")]),
    logprobs=st.sampled_from([None, 2]),
)
prompts = st.text("abc", max_size=30).map(lambda text: [BOS, *text.encode()])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(prompts, parameters), min_size=1, max_size=4), st.integers(2, 4), st.sampled_from([3, 20, 512])
)
def test_the_same_with_and_without(drawn, width, budget):
    requests = [Request(prompt, params) for prompt, params in drawn]
    with_guesses, without = (
        run(engine(ToyBackend(few(width), context_length=100), speculates=each, budget=budget), requests)
        for each in (True, False)
    )
    assert [*map(seen, with_guesses)] == [*map(seen, without)]


def test_a_copied_text_takes_a_fraction_of_the_steps():
    poem = "Two roads diverged in a yellow wood, and sorry I could not travel both. "
    steps = {}
    for speculates in (False, True):
        backend = ToyBackend(saying(poem + poem), context_length=200)
        [completion] = run(
            engine(backend, speculates=speculates), [Request([BOS, *poem.encode()], SamplingParams(temperature=0))]
        )
        assert str(completion) == poem
        steps[speculates] = len(backend.batches)
    assert steps[True] < steps[False] / 4


def test_the_cache_never_gets_positions_that_it_was_not_promised():
    """The toy's cache asserts it: the answer may fill the context to its last position."""
    backend = ToyBackend(few(2), context_length=48)
    request = Request([BOS, *b"abababab"], SamplingParams(temperature=0, ignore_eos=True))
    [completion] = run(engine(backend, speculates=True), [request])
    assert completion.reason == "length"
    assert completion.usage.completion_tokens == 48 - 9


def test_an_error_in_a_row_keeps_the_tokens_before_it():
    def broken(ids: list[int]) -> Float32:
        logits = np.zeros(VOCAB, np.float32)
        logits[ord("ab"[len(ids) % 2])] = 9
        return logits if len(ids) < 20 else np.full(VOCAB, np.nan, np.float32)

    for speculates in (True, False):
        [completion] = run(
            engine(ToyBackend(broken), speculates=speculates), [Request([BOS], SamplingParams(temperature=0))]
        )
        assert completion.reason == "error"
        assert len(completion.ids) == 19


def test_nobody_guesses_while_a_prompt_is_read():
    backend = ToyBackend(few(2), context_length=400)
    loop = engine(backend, speculates=True, budget=8)
    loop.add(Request([BOS, *b"abababababab"], SamplingParams(temperature=0, max_tokens=40)))
    for _ in range(6):
        loop.step()
    loop.add(Request([BOS] * 100, SamplingParams(temperature=0, max_tokens=4)))
    begun = len(backend.batches)
    while loop.busy:
        loop.step()
    reading = [batch for batch in backend.batches[begun:] if len(batch.slots) == 2 and len(batch) == 8]
    assert reading
    for batch in reading:
        assert batch.counts[0] == 1  # the one that decodes has its one token


def test_a_backend_whose_bits_depend_on_the_batch_is_not_given_guesses():
    backend = ToyBackend(saying("abababababababababab"))
    loop = Engine(backend, ByteTokenizer(), clock=lambda: 0.0)
    run(loop, [Request([BOS], SamplingParams(temperature=0))])
    assert {len(batch) for batch in backend.batches} == {1}


@pytest.mark.parametrize("window", [4, 16, 128, None])
def test_facts_12_speculation_past_the_window_equals_greedy(tmp_path, window):
    """Real kernels: drafts are taken back where the text fits into the window, and not made where it does not."""
    model = tiny.tiny_model(sliding_window=window, vocab_size=8, seed=3)
    found = read(tiny.save_hf(model, tmp_path))
    backend = Backend(found.config, found.tensors, threads=2)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2, 3, 4, 5, 4, 5]
    requests = [
        Request(prompt, SamplingParams(temperature=t, seed=1, max_tokens=80, ignore_eos=True, logprobs=2))
        for t in (0, 0.5)
    ]
    outcomes = {}
    for speculates in (True, False):
        loop = engine(backend, speculates=speculates)
        outcomes[speculates] = [*map(seen, run(loop, requests))]
        assert loop.kv_bytes == 0
    assert outcomes[True] == outcomes[False]
