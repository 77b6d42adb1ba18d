"""What a server is told when it is started. Requests change none of it."""

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Limits are there so that no request, and no number of requests, takes what others need.

    aliases          the names that requests may call the model by, the first of which answers carry
    api_keys         one of them has to come with each request, unless there are none
    admin_keys       for the routes under /admin, which do not exist without
    allowed_hosts    names that a Host header may hold, None for any; see `hosts_for`
    origins          of pages elsewhere that a browser may let ask (CORS)
    max_running      requests in a step at once
    max_waiting      requests that wait for their turn; the next one is told to come back later (429)
    token_budget     tokens of a step, which bounds the gap between two tokens of an answer
    timeout_s        for a request, from its arrival to its last token
    keep_alive_s     silence in a stream after which a comment is sent, so that nothing between takes it for dead
    max_body_bytes   of a request
    max_choices      answers that one request may ask for: n, times prompts
    prefix_bytes     of keys and values kept of texts that have ended, for those that begin alike
    adapters_folder  where /admin/adapters finds LoRA adapters, a folder each
    sessions_folder  where /admin/sessions keeps keys and values
    log_prompts      whether the log holds what was asked
    """

    aliases: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = LOOPBACK
    origins: tuple[str, ...] = ()
    max_running: int = 32
    max_waiting: int = 128
    token_budget: int = 256
    timeout_s: float = 600.0
    keep_alive_s: float = 15.0
    max_body_bytes: int = 4 << 20
    max_choices: int = 16
    prefix_bytes: int = 1 << 30
    adapters_folder: Path | None = None
    sessions_folder: Path | None = None
    log_prompts: bool = False


def hosts_for(bound: str, named: tuple[str, ...]) -> tuple[str, ...] | None:
    """Which Host headers are answered by a server that is bound to an address.

    On loopback only its own names, and those that were named: a page elsewhere can point a name of its own at
    127.0.0.1 and ask in it (DNS rebinding, CVE-2024-28224). Bound to other addresses: any, unless some were named.
    """
    if bound in LOOPBACK or bound.startswith("127."):
        return (*LOOPBACK, bound, *named)
    return named or None
