"""`chat`: a conversation in the terminal, or one question and its answer."""

import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.cli.options import counted
from ventoux.engine import Finished
from ventoux.errors import VentouxError
from ventoux.model import Mistral

if TYPE_CHECKING:
    from prompt_toolkit.history import History

HELP = """\
Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer, Ctrl-D ends.
/reset        forget the conversation
/system TEXT  set the system prompt (without TEXT: take it away) and start anew
/save FILE    write the conversation as JSON
/help         this list
/quit         end"""


class Conversation:
    """The messages so far, and how they are to be answered."""

    def __init__(self, model: Mistral, *, system: str | None, safe_prompt: bool, sampling: dict[str, Any]) -> None:
        self._model = model
        self._safe_prompt = safe_prompt
        self._sampling = sampling
        self.finished: Finished | None = None  # how the last answer ended
        self.messages: list[dict[str, str]] = []
        self.start(system)

    def start(self, system: str | None) -> None:
        """Begin anew under a system prompt."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def reset(self) -> None:
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def reply(self, text: str) -> Generator[str]:
        """Pieces of the answer. What was said stays, however it ends; a message that got no answer does not."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        self.finished, said = None, ""
        try:
            for event in self._model.stream_chat(self.messages, safe_prompt=self._safe_prompt, **self._sampling):
                if isinstance(event, Finished):
                    self.finished = event
                said += event.text
                yield event.text
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages = before


def one_shot(conversation: Conversation, message: str) -> None:
    with closing(conversation.reply(message)) as pieces:
        show(pieces)


def talk(conversation: Conversation) -> None:
    """Answer message after message, until the input ends. Piped input: each line is a message."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        print("Ask something; /help shows what else there is.")
    for message in typed() if terminal else (line.rstrip("\n") for line in sys.stdin):
        if message.strip() == "/quit":
            return
        try:
            if message.startswith("/"):
                print(command(conversation, message))
            elif message.strip():
                with closing(conversation.reply(message)) as pieces:
                    show(pieces)
                if terminal:
                    print(f"\033[2m{summary(conversation)}\033[0m")
        except KeyboardInterrupt:
            print("(stopped)")
        except VentouxError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def command(conversation: Conversation, line: str) -> str:
    """Obey a /command -> what to say about it."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset()
        return "forgotten"
    if name == "/system":
        conversation.start(rest or None)
        return f"system prompt: {rest or 'none'}"
    if name == "/save":
        if not rest:
            return "/save needs a file name"
        path = Path(rest).expanduser()
        try:
            path.write_text(json.dumps(conversation.messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            return f"cannot write {path}: {error.strerror}"
        return f"saved {len(conversation.messages)} messages to {path}"
    return f"unknown command {name}; /help lists them"


def summary(conversation: Conversation) -> str:
    finished = conversation.finished
    if finished is None:
        return ""
    ended = "; the context or --max-tokens is full" if finished.reason == "length" else ""
    return f"{counted(finished.usage.completion_tokens)}, {finished.decode_tok_s:.0f} a second{ended}"


def typed() -> Iterator[str]:
    """Messages from the terminal, with history, until Ctrl-D. Ctrl-C clears the line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=keys, history=history())
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def history() -> "History":
    """What was typed in earlier chats; only in this one where the cache folder cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from ventoux.checkpoint.pull import cache_folder

    file = cache_folder() / "chat-history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)


def show(pieces: Iterable[str]) -> None:
    """Print an answer as it comes: as markdown on a terminal, as it is elsewhere. Ends its line, however it ends."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from ventoux.cli.markdown import Writer

        with closing(Writer()) as writer:
            for piece in pieces:
                writer.write(piece)
        return
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
