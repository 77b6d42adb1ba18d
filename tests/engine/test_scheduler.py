"""The scheduler alone, in a simulated engine: numbers only."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ventoux.engine.scheduler import Chunk, Progress, schedule


def test_the_docstrings_example() -> None:
    running = [Progress(0, 9, 10), Progress(1, 2, 9)]
    plan = schedule([Progress(2, 0, 3)], running, budget=7, max_sequences=8)
    assert plan == [Chunk(0, 9, 1, last=True), Chunk(1, 2, 3, last=False), Chunk(2, 0, 3, last=True)]


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


def test_short_prompts_do_not_wait_until_a_long_one_is_read() -> None:
    long = Progress(0, 512, 20_000)
    short = [Progress(1, 0, 100), Progress(2, 0, 9_000), Progress(3, 0, 120)]
    plan = schedule(short, [long], budget=512, max_sequences=8)
    assert plan == [
        Chunk(0, 512, 256, last=False),
        Chunk(1, 0, 100, last=True),
        Chunk(2, 0, 36, last=False),
        Chunk(3, 0, 120, last=True),
    ]


def test_what_came_first_is_the_oldest_though_it_was_admitted_later() -> None:
    """Else prompts that are admitted before it, one after the other, could keep it waiting for ever."""
    [first, *_] = schedule([Progress(1, 0, 900)], [Progress(2, 10, 700)], budget=8, max_sequences=2)
    assert schedule([Progress(1, 0, 900)], [Progress(2, 10, 700)], budget=8, max_sequences=2) == [
        Chunk(2, 10, 4, last=False),
        Chunk(1, 0, 4, last=False),
    ]
    assert first.key == 2


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(2, 60)), min_size=1, max_size=10),
    st.integers(1, 40),
    st.integers(0, 12),
)
def test_nobody_waits_longer_than_it_takes_to_read_the_older_prompts_with_half_of_the_rest(
    drawn: list[tuple[int, int]], spare: int, decoding: int
) -> None:
    """`decoding` requests have a token in each step, and `spare` tokens are left: a bound in steps for each prompt."""
    prompts = {1000 + i: n for i, (_, n) in enumerate(sorted(drawn))}
    arrives = {1000 + i: step for i, (step, _) in enumerate(sorted(drawn))}
    budget, done, step = decoding + spare, dict.fromkeys(prompts, 0), 0
    admitted: list[int] = []
    while any(done[key] < n for key, n in prompts.items()):
        here = [key for key, at in arrives.items() if at <= step and done[key] < prompts[key]]
        running = [Progress(key, 7, 8) for key in range(decoding)]
        running += [Progress(key, done[key], prompts[key]) for key in admitted if key in here]
        waiting = [Progress(key, 0, prompts[key]) for key in here if key not in admitted]
        for chunk in schedule(waiting, running, budget=budget, max_sequences=1000):
            if chunk.key >= 1000:
                done[chunk.key] += chunk.count
                admitted += [chunk.key] * (chunk.key not in admitted)
        step += 1
        for key in here:
            older = sum(-(-prompts[other] // -(-spare // 2)) for other in prompts if other <= key)
            if step - arrives[key] >= older:
                assert done[key] == prompts[key]


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
        free = min(budget, max_sequences) - len(running)
        reading = [each.key for each in [*running, *waiting[:free]] if each.done < each.prompt]
        assert not reading or min(reading) in {chunk.key for chunk in plan}  # nor is the oldest prompt kept waiting
        assert sum(not chunk.last for chunk in plan) <= 2  # the oldest prompt, and one of those that need least
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
