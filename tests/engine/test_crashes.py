"""What breaks within one request ends that request, with its error; the engine goes on, and nothing stays behind."""

import pytest
from toy import ByteStream, ByteTokenizer, ToyBackend

from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Request

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
BAD = list(b"xabc" * 5)
GOOD = list(b"abcd" * 5)


class BrokenStream(ByteStream):
    """Breaks where it is told to, in a text that goes on from an x."""

    def __init__(self, where, breaks):
        super().__init__()
        self.where, self.breaks, self.pushed = where, breaks, 0

    def push(self, token_id):
        self.pushed += 1
        if self.breaks and self.where == "push" and self.pushed == 3:
            raise RuntimeError("the stream broke")
        return super().push(token_id)

    def finish(self):
        if self.breaks and self.where == "finish":
            raise RuntimeError("the stream broke")
        return super().finish()


class BrokenTokenizer(ByteTokenizer):
    def __init__(self, where):
        self.where = where

    def stream(self, after=()):
        return BrokenStream(self.where, breaks=list(after[:1]) == [ord("x")])


def run(engine, *requests):
    events = {engine.add(request): [] for request in requests}
    while engine.busy:
        for key, event in engine.step():
            events[key].append(event)
    return [Completion(each) for each in events.values()]


@pytest.mark.parametrize("where", ["push", "finish"])
def test_a_text_that_cannot_be_decoded_ends_alone(where):
    backend = ToyBackend()
    engine = Engine(backend, BrokenTokenizer(where), prefix_bytes=1000)
    bad, good = run(engine, Request(BAD, GREEDY), Request(GOOD, GREEDY))
    assert bad.reason == "error"
    assert str(bad.finished.error) == "the stream broke"
    assert len(bad.ids) == (2 if where == "push" else 12)
    [alone] = run(Engine(ToyBackend(), ByteTokenizer()), Request(GOOD, GREEDY))
    assert (str(good), good.ids, good.reason) == (str(alone), alone.ids, "length")
    engine.clear_prefixes()
    assert backend.cache.nbytes == 0


def test_cancelling_a_text_whose_end_cannot_be_decoded():
    engine = Engine(ToyBackend(), BrokenTokenizer("finish"))
    key = engine.add(Request(BAD, GREEDY))
    engine.step()
    engine.cancel(key)
    [(_, finished)] = engine.step()
    assert (finished.reason, str(finished.error)) == ("error", "the stream broke")
    assert not engine.busy


@pytest.mark.parametrize("error", [RuntimeError, ValueError, MemoryError])
def test_a_place_in_the_cache_that_cannot_be_had_ends_one(error):
    backend = ToyBackend()
    engine = Engine(backend, ByteTokenizer())
    allocate = backend.cache.allocate

    def broken(length, lookahead=0):
        if length == 21:
            raise error("no place")
        return allocate(length, lookahead)

    backend.cache.allocate = broken
    one = SamplingParams(temperature=0, max_tokens=1)
    bad, good = run(engine, Request(BAD, one), Request(GOOD, GREEDY))
    assert bad.reason == "error"
    assert "no place" in f"{bad.finished.error} {bad.finished.error.__cause__}"
    assert good.reason == "length"
    assert backend.cache.nbytes == 0
