"""The command line: parse, call, print. Every error is one line on standard error.

`--debug` adds the traceback, and what is done without a word otherwise.
"""

import gc
import io
import os
import sys
import warnings
from typing import Any

from ventoux.errors import VentouxError, VentouxWarning


def main() -> None:
    """Run `ventoux` with the arguments of this process; exits 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    gc.set_threshold(100_000, 20, 20)  # imports and vocabularies are no garbage: looking for it takes 8% of a start
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        settle_streams()
        if debug:
            import logging

            logging.basicConfig(format="%(name)s: %(message)s")
            logging.getLogger("ventoux").setLevel(logging.DEBUG)
        settle_warnings()
        from ventoux.cli.app import run

        run(arguments or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        if packing := sys.modules.get("ventoux.cpu.packing"):  # else nothing was packed
            packing.stop_writing()
        sys.exit(130)
    except BrokenPipeError:  # `ventoux ... | head`: nobody reads on
        drop_output()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        print(f"ventoux: error: {' '.join(explained(error).split())}", file=sys.stderr)
        try:
            if sys.stdout:  # else it was closed, which is the error
                sys.stdout.flush()
        except OSError:  # a full disk
            drop_output()
        sys.exit(1)


def drop_output() -> None:
    """What cannot be written the interpreter must not try to write once more, at its end: it would exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def settle_streams() -> None:
    """Streams as a shell may leave them: closed ones are empty, and what is no text is told by the tokenizer."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise VentouxError("standard output is closed; leave it open, or send it to a file")
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def settle_warnings() -> None:
    """Ours are for people to read, as errors are."""
    others = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, VentouxWarning):
            print(f"ventoux: warning: {message}", file=sys.stderr)
        else:
            others(message, category, *where, **more)

    warnings.showwarning = tell


def explained(error: Exception) -> str:
    """What to tell a user. An error that nobody foresaw is ours to mend, but a full disk or memory is not."""
    if isinstance(error, VentouxError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'reading or writing'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "there is not enough memory; use a smaller model, or ask for fewer tokens"
    return f"unexpected {type(error).__name__}: {error}; run it again with --debug and report what it prints"
