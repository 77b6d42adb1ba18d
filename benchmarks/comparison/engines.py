"""How each engine is run: a driver that measures once for each line it is given, or a command from the shell."""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

from comparison.setup import Places
from comparison.table import LLAMA, NEAR, OURS, OWN, TRANSFORMERS, TUNED, VLLM, Measured, Work

DRIVERS = Path(__file__).with_name("drivers")
DRIVER = {
    OURS: "ventoux_driver.py",
    NEAR: "ventoux_driver.py",
    LLAMA: "llama_cpp_driver.py",
    TRANSFORMERS: "transformers_driver.py",
    VLLM: "vllm_driver.py",
}
PATIENCE = 300  # seconds for a measurement, and for what comes before the first: loading, compiling, filling a cache
PROMPT = "The capital of France is"  # from the shell


class EngineError(Exception):
    """An engine did not run; the text is the end of what it complained of."""


class Session:
    """A driver's process. `measure` is one run of it; it is over when the session is closed."""

    def __init__(self, engine: str, work: Work, *, places: Places, threads: int) -> None:
        depth = min(work.depth, work.window or 0) if engine == NEAR else work.depth
        shape = {"prompt": work.prompt, "new": work.new, "depth": depth, "streams": work.streams, "threads": threads}
        flags = [word for name, value in shape.items() for word in (f"--{name}", str(value))]
        ours = engine in (OURS, NEAR)
        if ours and work.window:
            flags += ["--window", str(work.window)]
        # -I: nothing of this folder, nor of the user's, is found by a peer's imports
        python = [sys.executable] if ours else [str(places.python(engine)), "-I"]
        model = places.folder(work.model) if engine in (TRANSFORMERS, VLLM) else places.model(work.model)
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the session
        self.process = subprocess.Popen(
            [*python, str(DRIVERS / DRIVER[engine]), str(model), *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True,
        )  # fmt: skip
        try:
            self.answer()
        except EngineError:
            self.close()
            raise

    def measure(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(self.complaint()) from None
        found: dict[str, Any] = json.loads(self.answer())
        return found

    def answer(self) -> str:
        """The next line of the driver's; it says "ready" first, and nothing is measured while it gets there."""
        assert self.process.stdout is not None
        watch = Timer(PATIENCE, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        late = not watch.is_alive()
        watch.cancel()
        if not line:
            raise EngineError(f"did not answer within {PATIENCE} s" if late else self.complaint())
        return line

    def complaint(self) -> str:
        status = self.process.wait()
        self.complaints.seek(0)
        lines = [line.strip() for line in self.complaints if line.strip()]
        return f"ended with status {status}: {lines[-1][:300] if lines else 'said nothing'}"

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.complaints.close()


def speeds(found: dict[str, Any]) -> tuple[Measured, Measured, str]:
    """A driver's answer -> its figures, the machine's limits if it measured them, and versions."""
    figures = {name: found[name] for name in ("prefill_tok_s", "decode_tok_s")}
    if found.get("resident"):
        figures["resident_mb"] = sum(found["resident"].values()) / 1e6
        figures["anonymous_mb"] = found["resident"]["anonymous"] / 1e6
    limits: Measured = {}
    if machine := found.get("machine"):
        own = ("prefill_gmac_s", "prefill_share", "decode_gmac_s", "decode_gb_s", "decode_share", "step_gb")
        figures |= {name: machine[name] for name in own}
        limits = {name: machine[name] for name in ("read_gb_s", "int8_gmac_s", "fp32_gmac_s")}
        limits["decode_gb_s"] = machine["read_gb_s"]  # what the row of bytes read is compared with
    return figures, limits, found["version"]


def from_the_shell(engine: str, work: Work, *, places: Places, threads: int) -> list[str]:
    """The command that answers PROMPT, as a user types it."""
    if engine == OURS:
        program = [str(Path(sys.executable).with_name("ventoux")), "generate", PROMPT, "--max-tokens", "8"]
        return [*program, "--temperature", "0", "-m", str(places.model(work.model)), "--threads", str(threads)]
    options = ["-n", "8", "--temp", "0", "-t", str(threads), "-no-cnv", "--no-display-prompt"]
    if engine == TUNED:
        options += ["-c", "512", "--no-warmup"]
    return [str(places.llama_completion()), "-m", str(places.model(work.model)), "-p", PROMPT, *options]


def guesses(work: Work, *, places: Places) -> dict[str, Measured]:
    """Tokens a second of our own engine with guesses and without, by `speculation.py`."""
    script = Path(__file__).parents[1] / "speculation.py"
    command = [sys.executable, str(script), "--model", str(places.model(work.model)), "--pairs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError((done.stderr.strip().splitlines() or ["said nothing"])[-1][:300])
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    names = {OURS: "with", OWN: "without"}
    return {
        engine: {f"{text}_tok_s": speeds[name][0] for text, speeds in found.items()} for engine, name in names.items()
    }
