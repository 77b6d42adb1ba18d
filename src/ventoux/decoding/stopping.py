"""Stop strings in streamed text."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may still become one.

    The stop string that is complete first ends the text, whatever pieces the text comes in; of several that are
    complete at the same character, the one that began first. What stands before it comes out, the stop string does not.

    >>> stops = StopStrings(["###"])
    >>> stops.push("a#"), stops.push("#b#"), stops.push("##c"), stops.stopped
    ('a', '##b', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """More text in, the text that is certain now out; "" for ever after a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        start = max(0, len(text) - self._longest)
        while not any(stop.startswith(text[start:]) for stop in self._stops) and start < len(text):
            start += 1
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        """The text is over: what was held back and became no stop string."""
        held, self._held = self._held, ""
        return held
