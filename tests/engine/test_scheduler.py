"""The scheduler alone, in a simulated engine: numbers only."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ventoux.engine.scheduler import Chunk, Progress, schedule


def test_the_docstrings_example() -> None:
    running = [Progress(0, 9, 10), Progress(1, 2, 7)]
    plan = schedule([Progress(2, 0, 3)], running, budget=5, max_sequences=8)
    assert plan == [Chunk(0, 9, 1, last=True), Chunk(1, 2, 4, last=False)]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert schedule([], [], budget=5, max_sequences=8) == []


def test_prompts_share_what_decoding_leaves() -> None:
    running, waiting = [Progress(0, 4, 5)], [Progress(1, 0, 3), Progress(2, 0, 9)]
    assert schedule(waiting, running, budget=8, max_sequences=8) == [
        Chunk(0, 4, 1, last=True),
        Chunk(1, 0, 3, last=True),
        Chunk(2, 0, 4, last=False),
    ]


def test_who_decodes_does_not_wait_for_an_older_prompt() -> None:
    running = [Progress(0, 2, 700), Progress(1, 9, 10)]
    plan = schedule([], running, budget=5, max_sequences=8)
    assert plan == [Chunk(1, 9, 1, last=True), Chunk(0, 2, 4, last=False)]


@dataclass
class Simulated:
    key: int
    arrives: int
    prompt: int
    answer: int
    done: int = 0
    known: int = 0
    finished: bool = False

    @property
    def state(self) -> Progress:
        return Progress(self.key, self.done, self.known)


requests = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 8)), max_size=8)


@given(requests, st.integers(1, 12), st.integers(1, 5))
def test_every_request_progresses_within_the_budget(
    drawn: list[tuple[int, int, int]], budget: int, max_sequences: int
) -> None:
    everyone = [Simulated(k, *numbers) for k, numbers in enumerate(sorted(drawn))]
    for each in everyone:
        each.known = each.prompt
    running: list[Simulated] = []
    steps = 0
    while not all(each.finished for each in everyone):
        here = [each for each in everyone if each.arrives <= steps and not each.finished]
        waiting = [each for each in here if each not in running]
        plan = schedule(
            [w.state for w in waiting], [r.state for r in running], budget=budget, max_sequences=max_sequences
        )
        assert sum(chunk.count for chunk in plan) <= budget
        assert bool(plan) == bool(here)
        assert len({chunk.key for chunk in plan}) == len(plan)
        admitted = [everyone[chunk.key] for chunk in plan if everyone[chunk.key] not in running]
        assert len(running) + len(admitted) <= max_sequences

        decoding = {each.key for each in running if each.done >= each.prompt}
        assert decoding <= {chunk.key for chunk in plan}  # nobody's answer stalls
        reading = [each.key for each in running if each.done < each.prompt]
        assert set(reading[:1]) <= {chunk.key for chunk in plan}  # nor is the oldest prompt kept waiting
        for chunk in plan[:-1]:
            assert chunk.last  # only the last chunk is cut short: prompts are read one after another
        running += admitted
        for chunk in plan:
            each = everyone[chunk.key]
            assert (chunk.start, chunk.last) == (each.done, each.done + chunk.count == each.known)
            assert 1 <= chunk.count <= each.known - each.done
            each.done += chunk.count
            if chunk.last:
                each.known += 1
                each.finished = each.known - each.prompt == each.answer
        running = [each for each in running if not each.finished]
        steps += 1
        # at least one token a step, once everyone has arrived
        assert steps <= 20 + sum(each.prompt + each.answer for each in everyone)
