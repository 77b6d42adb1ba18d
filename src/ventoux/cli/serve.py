"""`serve`: flags and files become settings; the server does the rest."""

import argparse
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ventoux.cli.options import UsageError, load, positive
from ventoux.errors import MissingExtraError, VentouxError

KEYS, ADMIN_KEYS = "VENTOUX_API_KEY", "VENTOUX_ADMIN_KEY"


def serve_flags(flags: ArgumentParser) -> None:
    """The flags of `ventoux serve` beside those of the model."""
    where = flags.add_argument_group("where it listens")
    where.add_argument("--host", default="127.0.0.1", metavar="NAME", help="default: 127.0.0.1, this machine alone")
    where.add_argument("--port", type=port, default=8000, metavar="N", help="default: 8000; 0 takes any that is free")
    where.add_argument("--tls-cert", metavar="FILE", help="certificate (PEM), for https")
    where.add_argument("--tls-key", metavar="FILE", help="its key (PEM)")
    names = flags.add_argument_group("names and keys")
    names.add_argument(
        "--alias",
        action="append",
        metavar="NAME",
        help="what requests may call the model; repeatable (default: its file)",
    )
    names.add_argument(
        "--api-key-file", metavar="FILE", help=f"keys that requests have to bring, one a line (or ${KEYS}, with commas)"
    )
    names.add_argument(
        "--admin-key-file", metavar="FILE", help=f"keys for the routes under /admin, off without (or ${ADMIN_KEYS})"
    )
    names.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a Host header to answer to; repeatable"
    )
    names.add_argument(
        "--cors-origin", action="append", default=[], metavar="URL", help="an origin whose pages may ask; repeatable"
    )
    work = flags.add_argument_group("how much at once")
    work.add_argument("--max-running", type=positive, default=32, metavar="N", help="requests in a step (default: 32)")
    work.add_argument(
        "--max-waiting",
        type=positive,
        default=128,
        metavar="N",
        help="requests that wait; more get a 429 (default: 128)",
    )
    work.add_argument(
        "--token-budget",
        type=positive,
        default=256,
        metavar="N",
        help="tokens of a step: fewer, and answers stall less while long prompts are read (default: 256)",
    )
    work.add_argument(
        "--timeout", type=positive, default=600, metavar="SECONDS", help="for a request, to its end (default: 600)"
    )
    work.add_argument(
        "--prefix-cache-mb",
        type=int,
        default=1024,
        metavar="N",
        help="memory for keys and values of ended texts, for those that begin alike (default: 1024; 0 is off)",
    )
    adapters = flags.add_argument_group("LoRA adapters")
    adapters.add_argument(
        "--adapter",
        action="append",
        type=adapter,
        default=[],
        dest="adapters",
        metavar="NAME=FOLDER",
        help="an adapter as PEFT saves it, which requests call as a model by this name; repeatable",
    )
    adapters.add_argument("--adapters-folder", metavar="FOLDER", help="where /admin/adapters may find others, by name")
    flags.add_argument(
        "--sessions-folder", metavar="FOLDER", help="where /admin/sessions keeps what was computed for conversations"
    )
    flags.add_argument(
        "--log-prompts", action="store_true", help="have the log hold what is asked, which it does not otherwise"
    )


def adapter(text: str) -> tuple[str, str]:
    """poet=/adapters/poet -> ("poet", "/adapters/poet")"""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, found {text!r}")
    return name, folder


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {text!r}")
    return int(text)


def serve(args: Namespace) -> None:
    try:
        from ventoux.server import Settings, hosts_for
        from ventoux.server.guard import JsonLines
        from ventoux.server.running import say
        from ventoux.server.running import serve as run
        from ventoux.server.service import Service
    except ImportError as error:
        raise MissingExtraError("ventoux serve", "server", error) from error
    if bool(args.tls_cert) != bool(args.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together; give both")
    if args.prefix_cache_mb < 0:
        raise UsageError(f"--prefix-cache-mb must be at least 0, found {args.prefix_cache_mb}")
    adapters = dict(args.adapters)
    if len(adapters) < len(args.adapters) or any(alias in adapters for alias in args.alias or ()):
        raise UsageError("--adapter: two models have the same name; give each its own")
    settings = Settings(
        aliases=tuple(args.alias or [name_of(args.name or args.model)]),
        api_keys=keys(args.api_key_file, KEYS),
        admin_keys=keys(args.admin_key_file, ADMIN_KEYS),
        allowed_hosts=hosts_for(args.host, tuple(args.allowed_host)),
        origins=tuple(args.cors_origin),
        max_running=args.max_running,
        max_waiting=args.max_waiting,
        token_budget=args.token_budget,
        timeout_s=args.timeout,
        prefix_bytes=args.prefix_cache_mb << 20,
        adapters_folder=folder(args.adapters_folder),
        sessions_folder=folder(args.sessions_folder),
        log_prompts=args.log_prompts,
    )
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines())
    logging.basicConfig(handlers=[lines])
    logging.getLogger("ventoux.server").setLevel(logging.INFO)
    if settings.allowed_hosts is None and not settings.api_keys:
        say(f"warning: anyone who reaches {args.host} may ask; --api-key-file or ${KEYS} has them bring a key")
    tls = {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key} if args.tls_cert else {}
    run(
        Service(settings, lambda: load(args, name=args.name, adapters=adapters)),
        host=args.host,
        port=args.port,
        tls=tls,
    )


def folder(name: str | None) -> Path | None:
    """A folder that has to be there; None where none is named."""
    if name is not None and not Path(name).is_dir():
        raise VentouxError(f"{name}: expected a folder, found none; make it first")
    return None if name is None else Path(name)


def name_of(model: str | None) -> str:
    """What requests call a model when nothing was said: /models/mistral-7b.Q4_0.gguf -> mistral-7b.Q4_0"""
    return "smollm2-135m-instruct" if model is None else Path(model).name.removesuffix(".gguf") or "model"


def keys(file: str | None, variable: str) -> tuple[str, ...]:
    """Keys of a file, one a line, and of the environment, with commas between."""
    found = os.environ.get(variable, "").split(",")
    if file is not None:
        try:
            found += Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VentouxError(
                f"{file}: expected keys, one a line, found a file that cannot be read: {error}"
            ) from error
    kept = tuple(key.strip() for key in found if key.strip())
    if file is not None and not kept:
        raise VentouxError(f"{file}: expected keys, one a line, found none")
    if any(not key.isascii() for key in kept):
        raise VentouxError(f"{file or '$' + variable}: expected keys of plain ASCII, which headers carry, found others")
    return kept
