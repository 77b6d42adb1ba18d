"""The table: what is run (works), and which figures of it are compared with whose (rows)."""

from dataclasses import dataclass
from statistics import median

OURS, LLAMA, TRANSFORMERS, VLLM = "Ventoux", "llama.cpp", "transformers", "vLLM"
NEAR, OWN, TUNED, MACHINE = "Ventoux, depth 4,096", "Ventoux without guesses", "llama.cpp, -c 512", "the machine"
M = "M: Mistral-7B-shaped, 8 of 32 layers, random weights"

# What an engine found in one run: prefill_tok_s, decode_tok_s, resident_mb, first_token_s, ...
Measured = dict[str, float]


@dataclass(frozen=True)
class Work:
    """One thing that all engines do in turns.

    kind    "speed": each engine's driver reads `prompt` ids in each of `streams` sequences at `depth`, then decodes
            `new` steps; "start": commands from the shell; "guesses": our own text, with and without
    model   a file that setup.py makes, or "S" for the default model
    window  ours alone: llama.cpp reads every key
    fresh   a process for each run; False for one that waits while others run, so that a pair's runs follow each other:
            where filling a cache takes longer than what is measured, and where memory is the limit, whose speed drifts
    """

    model: str
    engines: tuple[str, ...] = (OURS, LLAMA)
    kind: str = "speed"
    prompt: int = 512
    new: int = 32
    depth: int = 0
    streams: int = 1
    window: int | None = None
    fresh: bool = True


WORKS = {
    "q4_0": Work("Q4_0", fresh=False),
    "streams-8": Work("Q4_0", prompt=16, streams=8),
    "streams-16": Work("Q4_0", prompt=16, streams=16),
    "q4_k_m": Work("Q4_K_M", fresh=False),
    "q8_0": Work("Q8_0", fresh=False),
    "bf16": Work("BF16", (OURS, LLAMA, TRANSFORMERS, VLLM), new=12, fresh=False),
    "window": Work("Q4_0", (OURS, NEAR, LLAMA), new=12, depth=12288, window=4096, fresh=False),
    "small": Work("S", new=64),
    "start": Work("S", (OURS, LLAMA, TUNED), kind="start"),
    "guesses": Work("S", (OURS, OWN), kind="guesses"),
    "full": Work("Q4_0-32", prompt=256, new=16, fresh=False),
}
ON_REQUEST = ("full",)  # the file is 4.1 GB


@dataclass(frozen=True)
class Row:
    """A figure of ours next to the best of `against`; `target` is the ratio to be reached, None where there is none."""

    work: str
    text: str
    figure: str
    against: tuple[str, ...] = (LLAMA,)
    target: float | None = None

    @property
    def less_is_better(self) -> bool:
        return self.figure in ("resident_mb", "first_token_s")

    @property
    def unit(self) -> str:
        return {"resident_mb": "MB", "first_token_s": "s", "decode_gb_s": "GB/s"}.get(self.figure, "tokens/s")

    def ratio(self, ours: float, peer: float) -> float:
        """How many times as good ours is: 2.0 for twice the speed, or for half of the memory."""
        return peer / ours if self.less_is_better else ours / peer


PREFILL, DECODE, MEMORY, FIRST = "prefill_tok_s", "decode_tok_s", "resident_mb", "first_token_s"
ROWS = (
    Row("q4_0", "M Q4_0, prefill 512", PREFILL, target=2.0),
    Row("q4_0", "M Q4_0, decode", DECODE, target=1.0),
    Row("q4_0", "M Q4_0, decode, bytes read", "decode_gb_s", (MACHINE,), 0.9),
    Row("q4_0", "M Q4_0, resident memory while decoding", MEMORY, target=1.0),
    Row("streams-8", "M Q4_0, decode, 8 streams together", DECODE, target=1.8),
    Row("streams-16", "M Q4_0, decode, 16 streams together", DECODE, target=2.0),
    Row("q4_k_m", "M Q4_K_M, prefill 512", PREFILL, target=1.5),
    Row("q4_k_m", "M Q4_K_M, decode", DECODE, target=1.0),
    Row("q8_0", "M Q8_0, prefill 512", PREFILL, target=1.5),
    Row("q8_0", "M Q8_0, decode", DECODE, target=1.0),
    Row("bf16", "M bf16, prefill 512", PREFILL, (LLAMA, TRANSFORMERS, VLLM), 1.0),
    Row("bf16", "M bf16, decode", DECODE, (TRANSFORMERS,), 1.2),
    Row("bf16", "M bf16, decode", DECODE, (LLAMA, VLLM)),
    Row("window", "M Q4_0, window 4096, at depth 12,288: prefill 512", PREFILL, target=3.5),
    Row("window", "the same, next to our own at depth 4,096", PREFILL, (NEAR,), 0.95),
    Row("window", "M Q4_0, window 4096, at depth 12,288: decode", DECODE, target=4.0),
    Row("window", "the same, next to our own at depth 4,096", DECODE, (NEAR,), 0.95),
    Row("small", "S, prefill 512", PREFILL, target=2.0),
    Row("small", "S, decode", DECODE, target=1.5),
    Row("small", "S, resident memory while decoding", MEMORY, target=1.0),
    Row("start", "S, from the shell to the first token", FIRST, target=1.0),
    Row("start", "the same, told to make room for 512 positions", FIRST, (TUNED,)),
    Row("guesses", "S, goes on with a passage of the prompt", "copy_tok_s", (OWN,), 2.0),
    Row("guesses", "S, repeats a passage with a word changed", "edit_tok_s", (OWN,), 2.0),
    Row("full", "all 32 layers Q4_0, prefill 256", PREFILL),
    Row("full", "all 32 layers Q4_0, decode", DECODE),
)


@dataclass(frozen=True)
class Outcome:
    """A row's figures of all runs, and the ratios pair by pair."""

    row: Row
    peer: str
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [self.row.ratio(a, b) for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """By the median ratio; None without a target."""
        return None if self.row.target is None else self.ratio >= self.row.target


def outcome(row: Row, pairs: list[dict[str, Measured]]) -> Outcome | None:
    """What became of a row: next to the best of its peers, by medians, among the runs in which both were measured.

    None where no run has both.
    """
    found = []
    for peer in row.against:
        both = [(pair[OURS][row.figure], pair[peer][row.figure]) for pair in pairs if measured(pair, row.figure, peer)]
        if both:
            found.append(Outcome(row, peer, [ours for ours, _ in both], [theirs for _, theirs in both]))
    return min(found, key=lambda o: o.ratio, default=None)


def measured(pair: dict[str, Measured], figure: str, peer: str) -> bool:
    return all(figure in pair.get(engine, {}) for engine in (OURS, peer))
