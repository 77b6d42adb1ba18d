"""Whether guessing pays, in seconds, and how many tokens to guess at once."""

from math import log

MAX_DRAFT = 15  # guesses at once; with the token before them 16 rows, which the kernels take in one tile
_LONGEST_REST = 64  # steps
_CREDIT = 8  # steps that may be saved up in however short a time: a text that is copied with changes has misses


class Ledger:
    """Whether guessing pays on this machine, for this model: what it has cost and saved, in seconds of decoding.

    A step that checks guesses is compared with recent ones without; what it took longer is its cost, and a right guess
    saves the step that it stands for. While the balance is below -`share` of all the time told, nothing is guessed, and
    behind a step of which nothing was right not before as much may be spent as that has cost, at most a step. So
    guessing costs no more than its share and one step with guesses, whatever the text, and hardly more than its share
    where guesses are cheap. The balance does not rise above a
    quarter of the time, or 8 steps where that is more.
    """

    def __init__(self, share: float = 0.03) -> None:
        self.share = share
        self._plain: dict[int, float] = {}  # streams in a step -> seconds of one, smoothed
        self._since_plain = 0
        self._balance = 0.0
        self._total = 0.0
        self._wanted = 0.0  # steps that the next one with guesses may cost, by the last one
        self.price = 0.5  # what one guess costs, in steps of its sequence, smoothed; half a step until it is known

    @property
    def allowance(self) -> float:
        """Seconds that guessing may still cost."""
        return self._balance + self.share * self._total

    def allows(self, streams: int) -> bool:
        """Whether a step of so many sequences may check guesses."""
        return (
            streams in self._plain
            and self._since_plain < 64  # the machine's speed drifts, and so does the length of the context
            and self.allowance >= self._wanted * self._plain[streams]
        )

    def step(self, streams: int) -> float:
        """Seconds of a step without guesses, of as many sequences as `allows` was asked for."""
        return self._plain[streams]

    def plain(self, streams: int, seconds: float) -> None:
        """A step without guesses: one token for each of the sequences."""
        known = self._plain.get(streams, seconds)
        self._plain[streams] = known + 0.25 * (seconds - known)
        self._since_plain = 0
        self._total += seconds

    def checked(self, streams: int, seconds: float, right: int, *, guessed: int = 0) -> None:
        """A step with `guessed` guesses, of which `right` were right in all; making them is part of its time."""
        step = self._plain[streams]
        cost = max(0.0, seconds - step)
        self._balance += step * right / streams - cost
        # not all of what was a hiccup of the machine
        self._wanted = 0.0 if right or not step else min(cost / step, 1.0)
        # What was saved long ago does not pay for ever.
        self._balance = min(self._balance, max(0.25 * self._total, _CREDIT * step))
        self._since_plain += 1
        self._total += seconds
        if guessed and step:
            self.price += 0.25 * (cost * streams / (step * guessed) - self.price)

    def spent(self, seconds: float) -> None:
        """Time that guessing took without a guess to check."""
        self._balance -= seconds
        self._total += seconds

    def other(self, seconds: float) -> None:
        """Time that has nothing to do with guessing, and that guessing's share is measured by."""
        self._total += seconds


class Pace:
    """How many tokens to guess for one sequence, when each guess costs: as long as the next is likely worth its price.

    Of guesses that are right with probability a, the i-th counts with a^i. a = 0.6 and a price of 0.2 steps: 0.6, 0.36
    and 0.216 pay, 0.13 does not, so three are made.
    """

    def __init__(self) -> None:
        self._right, self._checked = 3.0, 4.0  # a hopeful beginning, forgotten within ten checks
        self._rest = 0
        self._poor = 0  # times in a row that not even one guess was worth it

    @property
    def likely(self) -> float:
        """The probability that a guess is right, if the one before it is."""
        return min(self._right / self._checked, 0.99)

    def rests(self) -> bool:
        """Whether nothing is to be guessed in this step; to be asked once in each."""
        self._rest = max(0, self._rest - 1)
        return self._rest > 0

    def width(self, limit: int, price: float) -> int:
        """Guesses to make in this step, at least one and at most `limit`; `price` is what one costs, in steps.

        Where not even one pays, one is made now and then, ever more rarely, to see whether that is still so.
        """
        pays = int(log(min(max(price, 0.01), 1.0)) / log(self.likely)) if self.likely > 0.01 else 0
        if pays:
            self._poor = 0
        else:
            self._rest = min(_LONGEST_REST, 2 ** (1 + self._poor))
            self._poor += 1
        return min(limit, max(pays, 1), MAX_DRAFT)

    def tell(self, guessed: int, right: int) -> None:
        """How many guesses were right; of those behind the first wrong one nothing is known."""
        self._right = 0.9 * self._right + right
        self._checked = 0.9 * self._checked + min(right + 1, guessed)
