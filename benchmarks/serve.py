#!/usr/bin/env python3
"""`ventoux serve` and llama.cpp's server under the same load, on the same file, in turns; and our engine alone.

    python benchmarks/serve.py --out /tmp/serve

8 and 32 clients ask one thing after another (closed loop), and requests arrive at random times at a rate that neither
serves at once (open loop, Poisson). Prompts are passages of a novel, answers have 64 to 128 tokens, greedy, the end of
text ignored. Each server is a process of its own, started anew for each run, so nothing is cached; llama.cpp's has a
slot for each client, its continuous batching, and as many threads. The first requests warm it up and are not counted.
OUT gets serve.json and serve.md. Run it on a quiet machine: llama.cpp's threads wait for each other in a loop, and
other work makes them hundreds of times slower.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from comparison import load, report
from comparison.engines import DRIVERS
from comparison.setup import say
from comparison.table import LLAMA, OURS
from peers import count, host

from ventoux.checkpoint import pull
from ventoux.cpu import physical_cores

BARE = "Ventoux without a server"
PLAIN = "Ventoux without guesses"  # answers that go on past their ends repeat themselves, and repetitions are guessed
CONTEXT = 1024  # positions of a slot of llama.cpp's: the longest prompt and its answer
BEGIN, END = (f"<!-- {word}: written by benchmarks/serve.py -->\n" for word in ("begin", "end"))
LOADS = {  # name -> clients, requests, arrivals a second (None: closed loop), engines
    "8 clients": (8, 24, None, (OURS, LLAMA, PLAIN, BARE)),
    "32 clients": (32, 48, None, (OURS, LLAMA, PLAIN, BARE)),
    "arrivals, 0.8 a second": (32, 16, 0.8, (OURS, LLAMA)),
}
# figure, what it is, unit, 1 where more is better and -1 where less is, the target against llama.cpp
ROWS = (
    ("tok_s", "tokens of answers a second", "", 1, 1.5),
    ("first_p50_s", "first token, median", "s", -1, None),
    ("first_p95_s", "first token, 95th percentile", "s", -1, 1.0),
    ("first_p99_s", "first token, 99th percentile", "s", -1, None),
    ("next_p50_s", "between tokens, median", "ms", -1, None),
    ("next_p95_s", "between tokens, 95th percentile", "ms", -1, None),
    ("next_p99_s", "between tokens, 99th percentile", "ms", -1, None),
    ("whole_p50_s", "whole answer, median", "s", -1, None),
    ("whole_p95_s", "whole answer, 95th percentile", "s", -1, None),
)


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryFile("w+") as complaints:
        found = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, bufsize=1
        )
        try:
            yield found
        except RuntimeError as error:
            complaints.seek(0)
            raise SystemExit(f"{error}\n{complaints.read()[-1000:]}") from error
        finally:
            found.terminate()
            found.wait()


@contextmanager
def ours(args: argparse.Namespace, clients: int, *flags: str) -> Iterator[str]:
    """The address of `ventoux serve` with its own defaults, but for `flags`."""
    command = [sys.executable, "-m", "ventoux", "serve", "-m", str(args.model), "--threads", str(args.threads), *flags]
    with tempfile.NamedTemporaryFile("r") as log:
        with open(log.name, "w") as told:
            server = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.DEVNULL, stderr=told)
        try:
            said = ""
            while "ventoux: ready" not in said:
                if server.poll() is not None:
                    raise SystemExit(f"ventoux serve ended: {said}{log.read()}")
                said += log.readline()
            found = re.search(r"http://\S+", said)
            assert found
            yield found[0]
        finally:
            server.terminate()
            server.wait()


def plain(args: argparse.Namespace, clients: int) -> AbstractContextManager[str]:
    return ours(args, clients, "--no-speculation")


@contextmanager
def llama(args: argparse.Namespace, clients: int) -> Iterator[str]:
    command = [str(args.peer_python), str(DRIVERS / "llama_server_driver.py"), str(args.model)]
    settings = ["--slots", str(clients), "--context", str(CONTEXT), "--threads", str(args.threads)]
    with process([*command, *settings]) as server:
        assert server.stdout is not None
        yield address(server.stdout.readline())


def address(line: str) -> str:
    if not line.startswith("http"):
        raise RuntimeError("llama.cpp's server did not start")
    return line.strip()


def measured(
    server: Callable[..., Any], args: argparse.Namespace, clients: int, asked: list[Any], rate: float | None, seed: int
) -> dict[str, float]:
    async def run(url: str) -> list[load.Asked]:
        await load.closed(url, load.bodies(2, seed=-1), 2)
        used.append(load.cpu_seconds())
        if rate is None:
            return await load.closed(url, asked, clients)
        return await load.arriving(url, asked, rate, seed=seed)

    used: list[float] = []
    with server(args, clients) as url:
        found = load.figures(asyncio.run(run(url)))
    return {**found, "asking_cpu_s": load.cpu_seconds() - used[0]}


def bare(args: argparse.Namespace, clients: int, asked: list[Any]) -> dict[str, float]:
    command = [sys.executable, str(DRIVERS / "engine_driver.py"), str(args.model), "--threads", str(args.threads)]
    with process(command) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        for bodies in (load.bodies(2, seed=-1), asked):
            driver.stdin.write(json.dumps({"bodies": bodies, "clients": clients}) + "\n")
            line = driver.stdout.readline()
            if not line:
                raise RuntimeError("the engine did not answer")
        return load.figures([load.Asked(**each) for each in json.loads(line)])


SERVERS = {OURS: ours, PLAIN: plain, LLAMA: llama}


def pair(name: str, args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    clients, requests, rate, engines = LOADS[name]
    asked, found = load.bodies(requests, seed=seed), {}
    for engine in engines if seed % 2 else engines[::-1]:
        if engine == BARE:
            found[engine] = bare(args, clients, asked)
        else:
            found[engine] = measured(SERVERS[engine], args, clients, asked, rate, seed)
        say(f"  {engine}: {found[engine]['tok_s']:.0f} tokens/s, first {found[engine]['first_p95_s']:.2f} s")
    return found


def markdown(results: dict[str, Any]) -> str:
    machine, asking = results["host"], []
    lines = [
        f"Measured on {results['date'][:10]}: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads;"
        f" {results['model']}. Medians (ranges) of {results['pairs']} runs in turns, the ratio taken run by run: how"
        " many times as good ours is.",
        "",
        "| load | figure | Ventoux | peer | ratio | target | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in results["loads"].items():
        for figure, text, unit, sign, target in ROWS:
            goal = None if figure == "tok_s" and LOADS[name][2] else target  # who is not asked for more cannot do more
            lines.append(row(name, text, unit, pairs, figure, sign, LLAMA, goal))
        if PLAIN in pairs[0]:
            lines.append(row(name, f"{ROWS[0][1]}, without guesses", "", pairs, "tok_s", 1, LLAMA, 1.5, engine=PLAIN))
        if BARE in pairs[0]:
            lines.append(row(name, ROWS[0][1], "", pairs, "tok_s", 1, BARE, 0.95))
        asking += [each[OURS]["asking_cpu_s"] / each[OURS]["wall_s"] for each in pairs]
    return "\n".join([*lines, "", f"Asking itself took {max(asking):.0%} of one core at most, beside our server.", ""])


def row(
    name: str,
    text: str,
    unit: str,
    pairs: list[Any],
    figure: str,
    sign: int,
    peer: str,
    target: float | None,
    *,
    engine: str = OURS,
) -> str:
    scale = 1000 if unit == "ms" else 1
    a, b = ([each[name][figure] * scale for each in pairs] for name in (engine, peer))
    ratios = [(x / y) ** sign for x, y in zip(a, b, strict=True)]
    reached = "" if target is None else "yes" if median(ratios) >= target else "**no**"
    goal = "" if target is None else f"{target:g}"
    cells = (name, text, f"{report.span(a)} {unit}".strip(), f"{peer} {report.span(b)}", report.span(ratios), goal)
    return f"| {' | '.join(cells)} | {reached} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, metavar="FILE.gguf", help="default: the default model")
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS), metavar="LOAD")
    parser.add_argument("--pairs", type=count, default=2, metavar="N", help="A B, B A, ... (default: 2)")
    parser.add_argument("--threads", type=count, default=physical_cores(), metavar="N", help="default: physical cores")
    parser.add_argument("--out", type=Path, default=Path("serve"), metavar="DIR", help="default: ./serve")
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="put the table between the marks of this page, too"
    )
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), metavar="PATH", help="has xllamacpp")
    args = parser.parse_args()
    if args.page:
        try:
            report.parts(args.page, BEGIN, END)  # now, and not after minutes
        except (OSError, ValueError) as error:
            parser.error(f"--page: {error}")
    args.model = args.model or pull.resolve()
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": datetime.now().isoformat(timespec="seconds"), "host": host(args.threads)}
    results |= {"model": args.model.name, "pairs": args.pairs, "loads": {}}
    for name in args.loads:
        say(name)
        results["loads"][name] = [pair(name, args, seed) for seed in range(1, args.pairs + 1)]
        (args.out / "serve.json").write_text(json.dumps(results, indent=1))
        (args.out / "serve.md").write_text(markdown(results))
    if args.page:
        before, begin, _, end, after = report.parts(args.page, BEGIN, END)
        args.page.write_text(before + begin + markdown(results) + end + after)
    say(f"written: {args.out}/serve.md")


if __name__ == "__main__":
    main()
