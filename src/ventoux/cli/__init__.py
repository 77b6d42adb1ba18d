"""The command line: parse, call, print. Every error is one line on standard error; `--debug` adds the traceback."""

import os
import sys

from ventoux.errors import VentouxError


def main() -> None:
    """Run `ventoux` with the arguments of this process; exits 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        from ventoux.cli.app import run

        run(arguments or ["--help"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `ventoux ... | head`: nobody reads on, and the interpreter must not try once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        known = str(error) if isinstance(error, VentouxError) else f"unexpected {type(error).__name__}: {error}"
        advice = "" if isinstance(error, VentouxError) else "; run it again with --debug and report what it prints"
        print(f"ventoux: error: {' '.join(known.split())}{advice}", file=sys.stderr)
        sys.exit(1)
