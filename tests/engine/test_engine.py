"""The engine on a toy model: what comes out does not depend on who else is there."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import BOS, EOS, VOCAB, ByteTokenizer, ToyBackend, hashed, saying

from ventoux.batch import Float32
from ventoux.decoding import SamplingParams
from ventoux.engine import Engine, Event, Finished, Request, Token
from ventoux.errors import GenerationError, OutOfMemoryError, PromptTooLongError, RequestError

Events = dict[int, list[Event]]
letters = st.lists(st.integers(ord("a"), ord("e")), min_size=1, max_size=20)


def run(engine: Engine, arrivals: dict[int, list[Request]], *, steps: int = 1000) -> Events:
    """Add requests before the given steps, and step until all is done -> events by the order of adding."""
    events: Events = defaultdict(list)
    for step in range(steps):
        for request in arrivals.get(step, []):
            engine.add(request)
        if not engine.busy and step > max(arrivals):
            return events
        for key, event in engine.step():
            events[key].append(event)
    raise AssertionError(f"still busy after {steps} steps")


def alone(request: Request, backend: ToyBackend | None = None, *, budget: int = 512) -> list[Event]:
    return run(Engine(backend or ToyBackend(), ByteTokenizer(), budget=budget), {0: [request]})[0]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def ids(events: list[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def end(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def outcome(events: list[Event]) -> tuple[object, ...]:
    """All that must not depend on timing."""
    finished = end(events)
    return *events[:-1], finished.reason, finished.usage, finished.text


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 6))
def test_together_is_as_alone(data: st.DataObject, budget: int, max_sequences: int) -> None:
    """Any budget, any arrivals, greedy and seeded, with stop strings and penalties."""
    requests = data.draw(st.lists(st.builds(Request, letters, params(), st.booleans()), min_size=1, max_size=6))
    arrivals = defaultdict(list)
    order = []
    for step, request in sorted(((data.draw(st.integers(0, 12)), r) for r in requests), key=lambda pair: pair[0]):
        arrivals[step].append(request)
        order.append(request)
    backend = ToyBackend()
    together = run(Engine(backend, ByteTokenizer(), budget=budget, max_sequences=max_sequences), arrivals)
    for key, request in enumerate(order):
        assert outcome(together[key]) == outcome(alone(request))
    assert backend.cache.nbytes == 0
    assert max(len(batch) for batch in backend.batches) <= budget


def params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 0.7, 2.0]),
        top_p=st.sampled_from([0.8, 1.0]),
        seed=st.integers(0, 3),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        max_tokens=st.integers(1, 12),
        stop=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2).map(tuple),
        logprobs=st.sampled_from([None, 2]),
    )


def test_a_seed_is_a_text_and_no_seed_is_another_each_time() -> None:
    def answers(seed: int | None) -> list[list[int]]:
        request = Request(list(b"abc"), SamplingParams(temperature=2, seed=seed, max_tokens=30, ignore_eos=True))
        return [ids(events) for events in run(Engine(ToyBackend()), {0: [request] * 3}).values()]

    first, *others = answers(11)
    assert others == [first, first]
    assert len(set(map(tuple, answers(None)))) == 3


@settings(deadline=None, max_examples=60)
@given(letters)
def test_facts_18_nothing_comes_after_the_end(prompt: list[int]) -> None:
    """The answer is the model's own greedy text up to its EOS, which is not part of it."""
    expected = list(prompt)
    while len(expected) < 64 and (following := int(np.argmax(hashed(expected)))) != EOS:
        expected.append(following)
    engine = Engine(ToyBackend(), ByteTokenizer())
    neighbour = Request(list(b"dd"), SamplingParams(temperature=0, ignore_eos=True))
    events = run(engine, {0: [Request(prompt, SamplingParams(temperature=0)), neighbour]})
    assert ids(events[0]) == expected[len(prompt) :]
    assert [type(event) for event in events[0]] == [Token] * (len(expected) - len(prompt)) + [Finished]
    assert end(events[0]).reason == ("length" if len(expected) == 64 else "stop")
    assert end(events[0]).usage.completion_tokens == len(ids(events[0]))


def test_ends_of_the_tokenizer_count_too_and_can_be_ignored() -> None:
    class OtherEos(ByteTokenizer):
        end_ids = frozenset({ord("!")})

    def said(**params: object) -> str:
        request = Request([BOS], SamplingParams(temperature=0, max_tokens=6, **params))  # type: ignore[arg-type]
        return text(run(Engine(ToyBackend(saying("one! two")), OtherEos()), {0: [request]})[0])

    assert said() == "one"
    assert said(ignore_eos=True) == "one! t"
    assert said(ignore_eos=True, stop_ids=[ord("e")]) == "on"


def test_facts_22_split_emoji_is_held_back_and_spaces_are_kept() -> None:
    answer = " Ventoux \N{WIND BLOWING FACE}  et mistral é"
    events = alone(Request([BOS], SamplingParams(temperature=0)), ToyBackend(saying(answer)))
    pieces = [event.text for event in events]
    assert "".join(pieces) == answer
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    at = len(" Ventoux ")
    assert pieces[at : at + 4] == ["", "", "", "\N{WIND BLOWING FACE}"]


def test_facts_22_an_unfinished_character_comes_out_at_the_end() -> None:
    backend = ToyBackend(saying("a\N{WIND BLOWING FACE}"))
    events = alone(Request([BOS], SamplingParams(temperature=0, max_tokens=3)), backend)
    assert [event.text for event in events] == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert end(events).reason == "length"
    stopped = SamplingParams(temperature=0, max_tokens=3, stop=("\N{REPLACEMENT CHARACTER}",))
    events = alone(Request([BOS], stopped), backend)
    assert (text(events), end(events).reason) == ("a", "stop")


def test_an_answer_may_begin_within_a_character_of_the_prompt() -> None:
    whole = "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()
    events = alone(Request(whole[:-1], SamplingParams(temperature=0)), ToyBackend(saying(whole.decode())))
    assert text(events) == "\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize("length", [64, 65, 200])
def test_facts_24_a_prompt_that_does_not_fit_is_refused_with_both_numbers(length: int) -> None:
    engine = Engine(ToyBackend(context_length=64))
    with pytest.raises(PromptTooLongError, match=rf"\b{length}\b.*\b64\b") as refused:
        engine.add(Request([1] * length))
    assert (refused.value.n_prompt_tokens, refused.value.n_ctx) == (length, 64)
    assert not engine.busy


def test_facts_24_the_answer_has_to_fit_too_and_fills_the_context_when_unlimited() -> None:
    engine = Engine(ToyBackend(context_length=64))
    with pytest.raises(PromptTooLongError, match=r"60 tokens and 5 more.*64"):
        engine.add(Request([1] * 60, SamplingParams(max_tokens=5)))
    with pytest.raises(PromptTooLongError, match=r"64 tokens, but the context holds 64"):
        engine.add(Request([1] * 64, SamplingParams()))
    events = run(engine, {0: [Request([97] * 60, SamplingParams(ignore_eos=True))]})[0]
    assert len(ids(events)) == 4
    assert end(events).reason == "length"


def test_facts_25_a_stop_string_over_several_tokens_leaves_no_trace() -> None:
    request = Request([BOS], SamplingParams(temperature=0, stop=("\nUser:", "END")))
    events = alone(request, ToyBackend(saying("Yes.\nUse EN\nUser: and more")))
    assert text(events) == "Yes.\nUse EN"
    assert end(events).reason == "stop"
    assert [event.text for event in events][4:9] == ["", "", "", "", "\nUse "]  # nothing is lost that only began alike


def test_facts_25_what_was_held_back_comes_out_when_the_text_ends() -> None:
    request = Request([BOS], SamplingParams(temperature=0, stop=("END",)))
    events = alone(request, ToyBackend(saying("the EN")))
    assert [event.text for event in events[-3:]] == ["", "", "EN"]
    assert end(events).reason == "stop"


def test_cancelling_frees_the_cache_at_once() -> None:
    backend = ToyBackend()
    engine = Engine(backend, ByteTokenizer(), budget=4, max_sequences=2)
    request = Request([97] * 6, SamplingParams(max_tokens=10, ignore_eos=True))
    reading, decoding, waiting = (engine.add(request) for _ in range(3))
    engine.step()
    assert (backend.cache.nbytes, engine.kv_bytes) == (16, 16)  # 6 of the prompt and 10 of the answer
    engine.step()
    assert len(backend.cache.sequences) == 2
    for cancelled, left in ((reading, 1), (waiting, 1), (decoding, 0)):
        engine.cancel(cancelled)
        assert len(backend.cache.sequences) == left
    assert engine.busy
    ran = len(backend.batches)
    events = engine.step()
    assert [key for key, event in events if isinstance(event, Finished)] == [reading, waiting, decoding]
    assert {end([event]).reason for _, event in events if isinstance(event, Finished)} == {"cancelled"}
    assert not engine.busy
    assert len(backend.batches) == ran
    engine.cancel(reading)
    engine.cancel(12345)
    assert not engine.busy


def test_numbers_that_are_none_end_one_request_only() -> None:
    def row(ids: list[int]) -> Float32:
        return hashed(ids) * (math.nan if ids[0] == ord("x") and len(ids) > 4 else 1)

    backend = ToyBackend(row)
    healthy = Request(list(b"abc"), SamplingParams(seed=1, max_tokens=8))
    broken = Request(list(b"xyz"), SamplingParams(seed=1, max_tokens=8, ignore_eos=True))
    events = run(Engine(backend, ByteTokenizer()), {0: [healthy, broken]})
    assert outcome(events[0]) == outcome(alone(healthy))
    assert end(events[1]).reason == "error"
    assert isinstance(end(events[1]).error, GenerationError)
    assert len(ids(events[1])) == 2
    assert backend.cache.nbytes == 0


def test_a_cache_without_room_ends_one_request_only() -> None:
    backend = ToyBackend()
    backend.cache.room = 20
    small, large = (Request([97] * 3, SamplingParams(seed=1, max_tokens=n)) for n in (8, 40))
    events = run(Engine(backend, ByteTokenizer()), {0: [large, small]})
    error = end(events[0]).error
    assert isinstance(error, OutOfMemoryError)
    assert "keys and values of 43 positions do not fit into memory; set max_tokens or the window lower" in str(error)
    assert outcome(events[1]) == outcome(alone(small))


def test_a_forward_pass_that_fails_ends_those_in_it_and_the_engine_goes_on() -> None:
    failing = iter([True])

    def row(ids: list[int]) -> Float32:
        if next(failing, False):
            raise RuntimeError("the backend broke")
        return hashed(ids)

    backend = ToyBackend(row)
    request = Request(list(b"abc"), SamplingParams(seed=1, max_tokens=8))
    events = run(Engine(backend, ByteTokenizer()), {0: [request, request], 1: [request]})
    assert [end(events[key]).reason for key in (0, 1)] == ["error", "error"]
    assert outcome(events[2]) == outcome(alone(request))
    assert backend.cache.nbytes == 0


def test_an_interrupt_within_a_pass_leaves_no_half_written_cache_behind() -> None:
    interrupts = iter([False, True])

    def row(ids: list[int]) -> Float32:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return hashed(ids)

    backend = ToyBackend(row)
    engine = Engine(backend, ByteTokenizer())
    key = engine.add(Request(list(b"abc"), SamplingParams(ignore_eos=True)))
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert backend.cache.nbytes == 0
    assert [(k, end([event]).reason) for k, event in engine.step()] == [(key, "cancelled")]
    assert not engine.busy


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "empty"),
        ([1, VOCAB], {}, rf"prompt holds {VOCAB}.*0 to {VOCAB - 1}"),
        ([-1], {}, "prompt holds -1"),
        ("abc", {}, "prompt holds 'a'"),
        ([1.5], {}, "prompt holds 1.5"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias holds"),
        ([1], {"stop_ids": (VOCAB,)}, "stop_ids holds"),
        ([1], {"stop": "END"}, "stop strings need a tokenizer"),
    ],
)
def test_requests_that_make_no_sense_are_refused(prompt: object, params: dict[str, object], message: str) -> None:
    engine = Engine(ToyBackend())
    with pytest.raises(RequestError, match=message):
        engine.add(Request(prompt, SamplingParams(**params)))  # type: ignore[arg-type]
    assert not engine.busy


def test_without_a_tokenizer_ids_flow_and_there_is_no_text() -> None:
    request = Request(np.array([97, 98]), SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    events = run(Engine(ToyBackend()), {0: [request]})[0]
    assert ids(events) == ids(alone(request))
    assert text(events) == ""


def test_logprobs_are_those_of_the_rows() -> None:
    events = alone(Request([97], SamplingParams(temperature=0, max_tokens=4, logprobs=2, ignore_eos=True)))
    so_far = [97]
    for token in itertools.takewhile(lambda event: isinstance(event, Token), events):
        assert isinstance(token, Token)
        row = hashed(so_far).astype(np.float64)
        assert token.logprob == pytest.approx(row[token.id] - np.log(np.exp(row).sum()), abs=1e-5)
        assert token.top_logprobs[0] == (token.id, token.logprob)
        assert len(token.top_logprobs) == 2
        so_far.append(token.id)


def test_timings_add_up_and_usage_counts() -> None:
    events = alone(Request(list(b"abcde"), SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)), budget=2)
    finished = end(events)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (5, 9)
    timings = finished.timings
    assert timings.queued_s >= 0
    assert timings.prompt_s > 0
    assert timings.decode_s > 0
    assert finished.prompt_tok_s == pytest.approx(5 / timings.prompt_s)
    assert finished.decode_tok_s == pytest.approx(8 / timings.decode_s)
    engine = Engine(ToyBackend())
    engine.cancel(engine.add(Request([1])))
    [(_, never_ran)] = engine.step()
    assert isinstance(never_ran, Finished)
    assert (never_ran.timings.prompt_s, never_ran.timings.decode_s, never_ran.prompt_tok_s) == (0, 0, 0)


@pytest.mark.parametrize("limits", [{"budget": 0}, {"max_sequences": 0}])
def test_an_engine_needs_room_for_one_token_of_one_request(limits: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="at least 1"):
        Engine(ToyBackend(), **limits)
