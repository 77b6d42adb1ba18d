"""What the model said of a prompt: as its logits have it, whatever the budget and the neighbours."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import ByteTokenizer, ToyBackend, hashed

from ventoux import checkpoint
from ventoux.cpu import Backend
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Finished, PromptLogprobs, Request, Token
from ventoux.errors import GenerationError, PromptTooLongError, RequestError
from ventoux.model import Mistral

GREEDY = SamplingParams(temperature=0, max_tokens=4, logprobs=1, ignore_eos=True)
NOTHING = SamplingParams(max_tokens=0)


def run(engine, *requests):
    events = {engine.add(request): [] for request in requests}
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
    return list(events.values())


def log_softmax(row):
    row = np.asarray(row, np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(97, 101), min_size=1, max_size=30), st.sampled_from([1, 2, 7, 512]), st.integers(0, 4))
def test_each_token_has_what_the_row_before_it_says(prompt, budget, k):
    engine = Engine(ToyBackend(), ByteTokenizer(), budget=budget, max_sequences=4)
    neighbour = Request(list(b"abcabc"), GREEDY)
    scored = Request(prompt, GREEDY, prompt_logprobs=k)
    events, others, unscored = run(engine, scored, neighbour, Request(prompt, GREEDY))
    said = events[0]
    assert isinstance(said, PromptLogprobs)
    assert [type(event) for event in events[1:]] == [Token] * 4 + [Finished]
    assert events[1:-1] == unscored[:-1]
    assert others[:-1] == run(Engine(ToyBackend(), ByteTokenizer()), neighbour)[0][:-1]
    assert (said.logprobs[0], said.top_logprobs[0], said.text) == (None, (), "")
    assert len(said.logprobs) == len(said.top_logprobs) == len(prompt)
    for i in range(1, len(prompt)):
        row = log_softmax(hashed(prompt[:i]))
        assert said.logprobs[i] == pytest.approx(row[prompt[i]], abs=1e-5)
        assert [p for _, p in said.top_logprobs[i]] == pytest.approx(np.sort(row)[::-1][:k], abs=1e-5)


@pytest.mark.parametrize("budget", [1, 5, 512])
def test_max_tokens_0_ends_after_the_prompt(budget):
    backend = ToyBackend()
    engine = Engine(backend, ByteTokenizer(), budget=budget, prefix_bytes=100)
    [[said, finished]] = run(engine, Request([97] * 20, NOTHING, prompt_logprobs=0))
    assert len(said.logprobs) == 20
    assert (finished.reason, finished.usage.completion_tokens, finished.text) == ("length", 0, "")
    [[full, _]] = run(engine, Request([97] * 64, NOTHING, prompt_logprobs=0))  # all of the context
    assert len(full.logprobs) == 64
    assert str(Completion([said, finished])) == ""
    assert Completion([said, finished]).prompt_logprobs is said
    with pytest.raises(PromptTooLongError, match="65"):
        engine.add(Request([97] * 65, NOTHING, prompt_logprobs=0))


def test_cached_positions_are_not_taken_since_they_have_no_logits():
    engine = Engine(ToyBackend(), ByteTokenizer(), prefix_bytes=1000)
    request = Request([97, 98, 99] * 10, GREEDY, prompt_logprobs=1)
    [first], [second] = (run(engine, request) for _ in range(2))
    assert second[-1].usage.cached_tokens == 0
    assert first[:-1] == second[:-1]
    [[*_, finished]] = run(engine, Request(request.prompt, GREEDY))  # others may take what it has read
    assert finished.usage.cached_tokens == 29


@pytest.mark.parametrize("window", [4, None])
def test_a_model_s_own_logits_say_the_same(tmp_path, window):
    found = checkpoint.read(tiny.save_hf(tiny.tiny_model(1, sliding_window=window), tmp_path))
    backend = Backend(found.config, found.tensors, threads=1)
    ids = np.random.default_rng(0).integers(3, 96, 50).tolist()
    rows = Mistral(backend).logits(ids)
    for budget in (7, 512):
        [[said, _]] = run(Engine(backend, budget=budget), Request(ids, NOTHING, prompt_logprobs=2))
        for i in range(1, len(ids)):
            row = log_softmax(rows[i - 1])
            assert said.logprobs[i] == pytest.approx(row[ids[i]], abs=1e-4)
            assert said.top_logprobs[i][0] == (int(row.argmax()), pytest.approx(row.max(), abs=1e-4))


def test_numbers_that_are_none_within_the_prompt_end_the_request():
    backend = ToyBackend(lambda ids: hashed(ids) * (np.nan if len(ids) == 5 and ids[0] == 97 else 1))
    engine = Engine(backend, ByteTokenizer(), prefix_bytes=1000)
    scored, other = run(engine, Request([97] * 20, NOTHING, prompt_logprobs=0), Request([98] * 20, GREEDY))
    assert (scored[-1].reason, type(scored[-1].error)) == ("error", GenerationError)
    assert other[-1].reason == "length"
    engine.clear_prefixes()
    assert backend.cache.nbytes == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs must be a whole number from 0 to 20, found -1"),
        ({"prompt_logprobs": 21}, "found 21"),
        ({"prompt_logprobs": True}, "found True"),
        ({"prompt_logprobs": "all"}, "found 'all'"),
        ({"params": NOTHING}, "max_tokens must be a whole number of at least 1, found 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        Request([97], **settings)
