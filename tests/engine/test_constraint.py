"""A constraint's way through the engine: it changes which tokens there are to choose from, and nothing else."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemas import schemas
from toy import BOS, EOS, VOCAB, ByteTokenizer, ToyBackend

import ventoux
from ventoux.batch import Float32
from ventoux.decoding import Constraint, Grammars, SamplingParams
from ventoux.engine import Completion, Engine, Event, Request

GRAMMARS = Grammars(ByteTokenizer())


def noise(ids: list[int]) -> Float32:
    """Anything at all, and the end seldom."""
    row = np.random.default_rng([len(ids), *ids[-4:]]).normal(size=VOCAB).astype(np.float32) * 3
    row[EOS] -= 3
    return row


def run(
    backend: ToyBackend, requests: list[Request], *, speculates: bool = False, draft: Any = None
) -> list[Completion]:
    backend.same_bits = speculates
    engine = Engine(backend, ByteTokenizer(), speculates=speculates, draft=draft, clock=lambda: 0.0)
    events: dict[int, list[Event]] = {engine.add(request): [] for request in requests}
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
    assert engine.kv_bytes == 0
    return [Completion(each) for each in events.values()]


def one(constraint: Constraint | None, **params: Any) -> Completion:
    request = Request([BOS, 65], SamplingParams(**params), constraint=constraint)
    return run(ToyBackend(noise, context_length=512), [request])[0]


def test_greedy_is_the_likeliest_of_what_is_allowed() -> None:
    answer = one(GRAMMARS.regex("[a-z]{5}[0-9]{2}"), temperature=0, logprobs=2)
    ids = [BOS, 65]
    for place, token in enumerate(answer.tokens):
        row = noise(ids)
        allowed = list(b"abcdefghijklmnopqrstuvwxyz" if place < 5 else b"0123456789")
        assert token.id == max(allowed, key=lambda i: row[i])
        likely = row - np.log(np.exp(row).sum())  # the model's own, whatever was allowed
        assert token.logprob == pytest.approx(likely[token.id], abs=1e-4)
        assert token.top_logprobs[0] == (row.argmax(), pytest.approx(likely.max(), abs=1e-4))
        ids.append(token.id)
    assert (len(answer), answer.reason) == (7, "stop")


def test_it_ends_when_nothing_can_follow_and_max_tokens_may_cut_it_short() -> None:
    word = GRAMMARS.regex("[a-z]{5}")
    assert one(word, ignore_eos=True).reason == "stop"
    assert one(word, max_tokens=5).reason == "stop"
    cut = one(word, max_tokens=4)
    assert (len(cut), cut.reason) == (4, "length")
    open_end = one(GRAMMARS.regex("[a-z]+"), temperature=2.0, seed=1)
    assert (open_end.reason, open_end.isalpha()) == ("stop", True)
    assert one(GRAMMARS.regex("[a-z]{5}"), stop=["a", "e", "i", "o", "u", "s", "n", "t"]).reason == "stop"
    assert one(GRAMMARS.regex("")) == ""


def test_a_constraint_is_shared_by_several_requests_and_neighbours_go_free() -> None:
    word = GRAMMARS.regex("[a-z]{5}|[0-9]{9}")
    requests = [Request([BOS, i], SamplingParams(seed=i), constraint=word) for i in range(65, 73)]
    free = Request([BOS, 65], SamplingParams(seed=1, max_tokens=9))
    together = run(ToyBackend(noise, context_length=512), [*requests, free, *requests])
    alone = [run(ToyBackend(noise, context_length=512), [each])[0] for each in [*requests, free]]
    assert together == [*alone, *alone[:-1]]
    assert all(len(text) == (5 if text.isalpha() else 9) for text in alone[:-1])


def test_what_leaves_nothing_to_choose_ends_that_request_alone() -> None:
    bias = {ord("a"): float("-inf")}
    requests = [
        Request([BOS, 65], SamplingParams(logit_bias=bias), constraint=GRAMMARS.regex("a")),
        Request([BOS, 65], SamplingParams(), constraint=GRAMMARS.regex("ab")),
    ]
    bad, good = run(ToyBackend(noise), requests)
    assert "that the grammar allows" in str(bad.finished.error)
    assert good == "ab"


parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 2.0]),
    seed=st.integers(0, 99),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    max_tokens=st.integers(1, 60),
    logprobs=st.sampled_from([None, 2]),
)
LISTS = GRAMMARS.regex(r"((ab|ba|c{1,3}),){1,12}")


@settings(deadline=None, max_examples=60)
@given(params=parameters, drafted=st.booleans())
def test_facts_12_guesses_change_nothing_under_a_constraint(params: SamplingParams, drafted: bool) -> None:
    """The text repeats itself, so that what it holds is guessed, or a draft that is nearly the same model guesses."""

    def row(ids: list[int]) -> Float32:
        found = np.random.default_rng([len(ids) // 9, *ids[-2:]]).normal(size=VOCAB).astype(np.float32) * 3
        found[EOS] = -2
        return found

    request = Request([BOS, *b"ab,ba,ab,ba,"], params, constraint=LISTS)
    plain = run(ToyBackend(row, context_length=512), [request])[0]
    small = ToyBackend(lambda ids: row(ids) + np.float32(0.1) * noise(ids), context_length=512) if drafted else None
    guessed = run(ToyBackend(row, context_length=512), [request], speculates=True, draft=small)[0]
    assert (guessed, guessed.ids, guessed.logprobs) == (plain, plain.ids, plain.logprobs)
    assert (guessed.reason, guessed.usage) == (plain.reason, plain.usage)


def test_guesses_are_made_under_a_constraint() -> None:
    request = Request([BOS, *b"ab,ba,ab,ba,"], SamplingParams(temperature=0), constraint=GRAMMARS.regex("(ab,ba,){9}"))
    backend = ToyBackend(noise, context_length=512)
    answer = run(backend, [request], speculates=True)[0]
    assert answer == "ab,ba," * 9
    assert answer.guesses.right > 20
    assert len(backend.batches) < 30


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 99), greedy=st.booleans())
def test_random_weights_write_valid_json(schema: Any, seed: int, greedy: bool) -> None:
    """A vocabulary of bytes: every character of more than one byte is a path through the grammar."""
    params = {"temperature": 0} if greedy else {"temperature": 1.5, "seed": seed}
    answer = one(GRAMMARS.json_schema(schema), max_tokens=500, **params)
    if answer.reason == "length":  # the digits of a number may have no end
        return
    jsonschema.Draft202012Validator(schema).validate(json.loads(answer))


@pytest.fixture(scope="module")
def model(default_model: Any) -> ventoux.Mistral:
    return ventoux.load(default_model, threads=2)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(batch=st.lists(schemas, min_size=8, max_size=8), seed=st.integers(0, 999))
def test_two_hundred_schemas_on_the_default_model(model: ventoux.Mistral, batch: list[Any], seed: int) -> None:
    """Eight at a time, each with a prompt of its own; what is not cut short parses, and is valid."""
    prompts = [
        model.chat_format.encode([{"role": "user", "content": f"JSON {i}"}], tokenizer=model.tokenizer)
        for i in range(8)
    ]
    params = SamplingParams(temperature=0.8, seed=seed, max_tokens=400)
    requests = [
        Request(ids, params, continues=False, constraint=model.grammars.json_schema(schema))
        for ids, schema in zip(prompts, batch, strict=True)
    ]
    for answer, schema in zip(model._complete(requests), batch, strict=True):
        if answer.reason == "length" and '"number"' in json.dumps(schema):  # whose digits may have no end
            continue
        assert answer.reason == "stop", (schema, answer)
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer))
