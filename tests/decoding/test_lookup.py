"""Guesses from the text itself, and the ledger that says whether they pay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventoux.decoding import MAX_DRAFT, Ledger, PromptLookup

ids = st.lists(st.integers(0, 3), max_size=40)


def test_the_docstrings_example():
    assert PromptLookup([0, 1, 2, 3, 0, 1]).draft(2) == [2, 3]


def test_a_run_that_reaches_the_end_repeats_itself():
    assert PromptLookup([7, 0, 1, 0, 1]).draft(3) == [0, 1, 0]


def test_nothing_is_guessed_from_text_that_holds_no_run_twice():
    assert PromptLookup(range(50)).draft(8) == []
    assert PromptLookup([]).draft(8) == PromptLookup([5]).draft(8) == PromptLookup([5, 5, 5]).draft(0) == []


@given(ids, st.integers(0, 20))
def test_a_guess_is_what_followed_the_longest_run_where_it_stood_last(ids: list[int], limit: int):
    lookup = PromptLookup()
    for token_id in ids:
        lookup.add(token_id)
    draft = lookup.draft(limit)
    assert len(draft) <= min(limit, MAX_DRAFT)
    for n in (4, 3, 2):
        stood = [i for i in range(n, len(ids)) if ids[i - n : i] == ids[-n:]]
        if stood:
            at = stood[-1]
            period = len(ids) - at
            expected = [ids[at + i % period] for i in range(len(draft))]
            assert draft == expected
            assert draft or not limit
            return
    assert draft == []


def test_right_guesses_make_more_and_wrong_ones_fewer():
    lookup, widths = PromptLookup([0, 1] * 30), []
    for _ in range(5):
        widths.append(len(lookup.draft(99)))
        lookup.tell(widths[-1], widths[-1])
    assert widths == [3, 7, 11, MAX_DRAFT, MAX_DRAFT]
    lookup.tell(MAX_DRAFT, MAX_DRAFT - 1)
    assert len(lookup.draft(99)) == 1
    lookup.tell(1, 1)
    assert len(lookup.draft(99)) == 3


def test_after_wrong_guesses_it_rests_longer_each_time():
    """While the text never goes on as it did before."""
    ids = [0, 1, 1, 0, 0] * 10
    lookup, rests = PromptLookup(ids), []
    for _ in range(8):
        lookup.tell(2, 0)
        rests.append(0)
        while not lookup.draft(4):
            ids.append(1 - PromptLookup(ids).draft(1)[0])
            lookup.add(ids[-1])
            rests[-1] += 1
    assert rests == [0, 1, 3, 7, 15, 31, 32, 32]
    lookup.tell(2, 1)
    assert lookup.draft(4)


def test_a_rest_ends_when_four_tokens_came_as_they_would_have_been_guessed():
    ids = [*range(50), 0, 1, 2]
    lookup = PromptLookup(ids)
    for _ in range(6):
        lookup.tell(1, 0)
    for token_id in (3, 4, 5, 99, 20, 21, 22, 23, 24):  # 22 is the first behind 99 that a run foretells
        assert not lookup.draft(1)
        lookup.add(token_id)
    assert not lookup.draft(1)
    lookup.add(25)
    assert lookup.draft(9) == [26]


def test_the_ledger_wants_to_know_a_plain_step_of_as_many_streams_first():
    ledger = Ledger()
    assert not ledger.allows(1)
    ledger.plain(1, 0.1)
    assert ledger.allows(1)
    assert not ledger.allows(2)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.5, 6), st.integers(0, 15)), max_size=200), st.integers(1, 4))
def test_guessing_costs_no_more_than_its_share_and_one_step(steps: list[tuple[bool, float, int]], streams: int):
    """However slow the steps with guesses are, and whether they were right or not; a plain step takes 1 s."""
    ledger, lost, total, worst = Ledger(share=0.03), 0.0, 0.0, 0.0
    ledger.plain(streams, 1.0)
    for wants, seconds, right in steps:
        if wants and ledger.allows(streams):
            ledger.checked(streams, seconds, right)
            lost += max(0.0, seconds - 1.0) - right / streams
            worst, total = max(worst, seconds), total + seconds
        else:
            ledger.plain(streams, 1.0)
            total += 1.0
        assert lost <= 0.03 * (total + 1) + worst + 1e-9


@given(st.lists(st.tuples(st.booleans(), st.floats(1, 2)), max_size=300), st.sampled_from([0.02, 0.03]))
def test_guesses_that_are_never_right_are_paid_ahead(steps: list[tuple[bool, float]], share: float):
    """But for the first, and what each costs more than the one before."""
    ledger, lost, total, last, dearer = Ledger(share=share), 0.0, 1.0, 0.0, 0.0
    ledger.plain(1, 1.0)
    for wants, seconds in steps:
        if wants and ledger.allows(1):
            ledger.checked(1, seconds, 0)
            dearer = max(dearer, seconds - 1 - last)
            last, lost, total = seconds - 1, lost + seconds - 1, total + seconds
        else:
            ledger.plain(1, 1.0)
            total += 1.0
        assert lost <= share * total + dearer + 1e-9


def plain_steps_until_allowed(ledger: Ledger, streams: int, seconds: float) -> int:
    waited = 0
    while not ledger.allows(streams):
        ledger.plain(streams, seconds)
        waited += 1
    return waited


def test_no_more_than_a_step_is_paid_ahead():
    """Whatever it was that took so long: ten steps are paid back, and one is saved up."""
    ledger = Ledger(share=0.1)
    ledger.plain(1, 1.0)
    ledger.checked(1, 11.0, 0)
    assert plain_steps_until_allowed(ledger, 1, 1.0) == pytest.approx((10 + 1) / 0.1 - 12, abs=1)


def test_what_is_paid_ahead_is_a_step_of_as_many_streams():
    ledger = Ledger(share=0.1)
    ledger.plain(1, 1.0)
    ledger.plain(16, 8.0)
    ledger.checked(16, 14.0, 0)
    assert plain_steps_until_allowed(ledger, 1, 1.0) == pytest.approx((6 + 6 / 8) / 0.1 - 23, abs=1)


def test_nothing_is_paid_ahead_behind_a_guess_that_was_right():
    ledger = Ledger(share=0.1)
    ledger.plain(1, 1.0)
    ledger.checked(1, 1.5, 0)
    assert plain_steps_until_allowed(ledger, 1, 1.0) > 0
    ledger.checked(1, 3.0, 1)
    while ledger.allowance < 0:
        assert not ledger.allows(1)
        ledger.plain(1, 1.0)
    assert ledger.allows(1)


def test_what_was_just_saved_pays_for_a_miss_however_short_the_time():
    """A text that is copied with changes: guesses are right, then all of them are wrong, then right again."""
    ledger = Ledger()
    ledger.plain(1, 1.0)
    ledger.checked(1, 1.8, 4)
    ledger.checked(1, 2.5, 8)
    ledger.checked(1, 3.9, 0)
    assert ledger.allows(1)
    ledger.checked(1, 3.9, 0)
    ledger.checked(1, 3.9, 0)
    assert not ledger.allows(1)


def test_what_was_saved_long_ago_does_not_pay_for_ever():
    ledger = Ledger()
    ledger.plain(1, 1.0)
    for _ in range(60):
        ledger.checked(1, 1.0, 15)
    ledger.plain(1, 1.0)
    wrong = 0
    while ledger.allows(1):
        ledger.checked(1, 2.0, 0)
        wrong += 1
        if wrong % 50 == 0:
            ledger.plain(1, 1.0)
    assert wrong < 40


def test_a_plain_step_is_asked_for_now_and_then():
    ledger = Ledger()
    ledger.plain(1, 1.0)
    for _ in range(64):
        assert ledger.allows(1)
        ledger.checked(1, 1.0, 1)
    assert not ledger.allows(1)
    ledger.plain(1, 1.0)
    assert ledger.allows(1)
