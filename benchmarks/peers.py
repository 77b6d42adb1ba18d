#!/usr/bin/env python3
"""Ventoux and its peers on the same weights, in turns, over one table: how fast, and how near to the machine's limits.

    python benchmarks/peers.py --out /tmp/peers

Everything is made first where it is not there yet: an environment for each peer (llama.cpp is built for this machine),
and files with random weights in Mistral 7B's shapes. Then each row's engines run A B B A, each in a process of its own,
so that a machine that slows down slows all, and no engine is always the first; ratios are taken pair by pair. Each run
of ours measures the machine's limits as well. After every row OUT has peers.json, peers.md, roofline.svg and
ratios.svg; rows that are run again replace theirs. An engine that fails is left out of its row, with its reason.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

from cold_start import once
from comparison import report
from comparison.engines import EngineError, Session, from_the_shell, guesses, speeds
from comparison.setup import PACKAGES, Places, SetupError, cpu_model, say
from comparison.table import MACHINE, ON_REQUEST, OURS, WORKS, Measured, Work

from ventoux.cpu import physical_cores

Pair = dict[str, Measured]
Results = dict[str, Any]


class Run:
    """One work, pair by pair; what each engine said last, and why one was left out."""

    def __init__(self, work: Work, *, places: Places, threads: int) -> None:
        self.work, self.places, self.threads = work, places, threads
        self.left_out: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def pairs(self, count: int) -> list[Pair]:
        """The works' figures, `count` times each, in turns."""
        with ExitStack() as stack:
            kept = {} if self.work.fresh else {e: s for e in self.work.engines if (s := self.session(e, stack))}
            return [
                self.pair(kept, f"pair {i + 1} of {count}", self.work.engines[:: -1 if i % 2 else 1])
                for i in range(count)
            ]

    def session(self, engine: str, stack: ExitStack) -> Session | None:
        try:
            session = Session(engine, self.work, places=self.places, threads=self.threads)
        except (SetupError, EngineError) as error:
            self.leave_out(engine, error)
            return None
        return stack.enter_context(closing(session))

    def pair(self, kept: dict[str, Session], label: str, turns: tuple[str, ...]) -> Pair:
        pair: Pair = {}
        ways: dict[str, Callable[..., None]] = {"speed": self.speed, "start": self.start, "guesses": self.guess}
        for engine in turns:
            if engine in self.left_out or engine in pair:
                continue
            try:
                ways[self.work.kind](engine, pair, kept)
            except (SetupError, EngineError) as error:
                self.leave_out(engine, error)
        figures = ((e, {k: v for k, v in found.items() if k[-2:] == "_s"}) for e, found in pair.items() if e != MACHINE)
        say(f"  {label}: " + "; ".join(f"{e} {' '.join(f'{v:.4g}' for v in f.values())}" for e, f in figures))
        return pair

    def speed(self, engine: str, pair: Pair, kept: dict[str, Session]) -> None:
        with ExitStack() as stack:
            session = kept.get(engine) or self.session(engine, stack)
            if session:
                pair[engine], limits, self.versions[engine] = speeds(session.measure())
                if engine == OURS:
                    pair[MACHINE] = limits

    def start(self, engine: str, pair: Pair, kept: dict[str, Session]) -> None:
        command = from_the_shell(engine, self.work, places=self.places, threads=self.threads)
        if engine not in self.versions:
            self.versions[engine] = Path(command[0]).name
            tried(command)  # brings the files into the page cache
        pair[engine] = {"first_token_s": tried(command)}

    def guess(self, engine: str, pair: Pair, kept: dict[str, Session]) -> None:
        pair |= guesses(self.work, places=self.places)

    def leave_out(self, engine: str, error: Exception) -> None:
        self.left_out[engine] = str(error)
        say(f"  {engine} is left out: {error}")


def tried(command: list[str]) -> float:
    try:
        return once(command, quiet=True)[0]
    except SystemExit as error:
        raise EngineError(str(error)) from None


def host(threads: int) -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": physical_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def named(text: str) -> tuple[str, Path]:
    """NAME=PATH"""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, found {text!r}")
    return name, Path(path).absolute()


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ventoux" / "peers"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in WORKS if name not in ON_REQUEST]
    parser.add_argument(
        "--rows", nargs="+", choices=list(WORKS), default=usual, metavar="ROW",
        help=f"of {', '.join(WORKS)} (default: all but {', '.join(ON_REQUEST)})",
    )  # fmt: skip
    parser.add_argument("--pairs", type=count, default=3, metavar="N", help="A B B A ... (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("peers"), metavar="DIR", help="of the report (default: ./peers)"
    )
    parser.add_argument(
        "--venvs", type=Path, default=cache, metavar="DIR", help=f"peers' environments (default: {cache})"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="random files, 12 GB (default: VENVS/models)")
    parser.add_argument(
        "--python", type=named, nargs="+", default=[], metavar="ENGINE=PATH",
        help="interpreters that have a peer already: llama.cpp=/tmp/peers/bin/python",
    )  # fmt: skip
    parser.add_argument(
        "--file", type=named, nargs="+", default=[], metavar="MODEL=PATH", help="as Q4_0=my.gguf, S=s.gguf"
    )
    parser.add_argument("--threads", type=count, default=physical_cores(), metavar="N", help="default: physical cores")
    parser.add_argument("--report", action="store_true", help="run nothing: write the report of OUT/peers.json again")
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="put the report between the marks of this page, too"
    )
    args = parser.parse_args()
    for kind, given, known in (
        ("--python", args.python, list(PACKAGES)),
        ("--file", args.file, sorted({work.model for work in WORKS.values()})),
    ):
        if unknown := {name for name, _ in given} - set(known):
            parser.error(f"{kind} knows {', '.join(known)}; found {', '.join(sorted(unknown))}")
    if args.page:
        try:
            report.parts(args.page)  # now, and not after the first row
        except (OSError, ValueError) as error:
            parser.error(f"--page: {error}")
    return args


def publish(results: Results, args: argparse.Namespace) -> None:
    report.write(results, args.out)
    if args.page:
        report.write_into(args.page, results)


def main() -> None:
    args = arguments()
    store = args.out / "peers.json"
    results: Results = json.loads(store.read_text()) if store.exists() else {"works": {}}
    if args.report:
        if not store.exists():
            sys.exit(f"there is no {store} to report; run without --report first")
        publish(results, args)
        return
    results["host"] = host(args.threads)
    places = Places(args.venvs, args.models or args.venvs / "models", dict(args.python), dict(args.file))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.rows:
        say(name)
        begun = datetime.now()
        run = Run(WORKS[name], places=places, threads=args.threads)
        try:
            pairs = run.pairs(args.pairs)
        except SetupError as error:
            say(f"  {name} is left out: {error}")
            continue
        results["works"][name] = {
            "date": begun.isoformat(timespec="seconds"),
            "seconds": round((datetime.now() - begun).total_seconds()),
            "pairs": pairs,
            "left_out": run.left_out,
            "versions": run.versions,
        }
        store.write_text(json.dumps(results, indent=1))
        publish(results, args)
    say(f"written: {args.out}/peers.md")


if __name__ == "__main__":
    main()
