"""Stop strings: whatever pieces a text comes in, what comes out is the text cut once, as a whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ventoux.decoding import StopStrings


def cut(text: str, stops: list[str]) -> str:
    """The text up to the stop string that is complete first, found by reading it one character at a time."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@settings(max_examples=1000)
@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_facts_25_pieces_equal_the_whole_cut_once(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    filtered = StopStrings(stops)
    given_out = ""
    for piece in pieces:
        given_out += filtered.push(piece)
        assert cut(whole, stops).startswith(given_out)  # nothing that would have to be taken back
    given_out += filtered.finish()
    assert given_out == cut(whole, stops)
    assert filtered.stopped == any(stop in whole for stop in stops)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_facts_25_nothing_is_held_back_without_need(text: str, stops: list[str]) -> None:
    """What is held back is the longest ending that some stop string begins with, never more."""
    filtered = StopStrings(stops)
    given_out = filtered.push(text)
    if not filtered.stopped:
        held = text[len(given_out) :]
        endings = [text[i:] for i in range(len(text) + 1)]
        assert held == next(end for end in endings if not end or any(stop.startswith(end) for stop in stops))


def test_facts_25_nothing_after_the_stop_string() -> None:
    stops = StopStrings(["</s>", "\n\n"])
    assert [stops.push(piece) for piece in ("One.\n", "Two.\n", "\nThree", "four")] == ["One.", "\nTwo.", "", ""]
    assert stops.stopped
    assert stops.finish() == ""
