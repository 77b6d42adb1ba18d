"""What only a process of its own shows: signals, pipes, terminals, exit statuses, what gets imported."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ventoux.checkpoint import pull
from ventoux.cli.chat import history

READY = r"\x1b\[\?2004h"  # prompt_toolkit wants pastes to be marked: it reads keys now
COMMAND = [sys.executable, "-m", "ventoux"]


@pytest.fixture(scope="module")
def talkative(folder, tmp_path_factory):
    """The same model with a context that takes seconds to fill: whoever interrupts its answer is in time."""
    path = shutil.copytree(folder, tmp_path_factory.mktemp("talkative"), dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))
    return path


def test_demo_runs_as_a_module(folder):
    done = subprocess.run([*COMMAND, "demo", folder, "--max_tokens", "2"], capture_output=True, text=True, check=True)
    assert done.stdout.count("=" * 21 + "\n") == 3
    assert done.stderr == ""


def test_a_closed_pipe_is_quiet(talkative):
    process = subprocess.Popen(
        [*COMMAND, "generate", "Hello", "-m", talkative, "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 1


@pytest.mark.parametrize(
    ("shell", "status", "error"),
    [
        (r"printf 'a\xff' | {ventoux} generate -m {folder}", 1, "expected text, found the byte 0xff at character 1"),
        (r"printf 'a\xff\n' | {ventoux} chat -m {folder}", 1, "expected text, found the byte 0xff at character"),
        (r"printf 'a\xff\n' | {ventoux} interactive {folder}", 1, "expected text, found the byte 0xff at character 1"),
        ("{ventoux} tokenize hi -m {folder} >&-", 1, "standard output is closed"),
        ("{ventoux} tokenize hi -m {folder} >/dev/full", 1, "No space left on device"),
        ("{ventoux} generate -m {folder}/nothing <&-", 1, "there is no such file or folder"),
        ("{ventoux} chat -m {folder} <&-", 0, None),
        ("{ventoux} info nothing 2>&-", 1, None),
        ("PYTHONIOENCODING=ascii {ventoux} tokenize é -m {folder}", 0, None),
        ("VENTOUX_ISA=sse9 {ventoux} info {folder}", 1, "VENTOUX_ISA is 'sse9', but this machine runs"),
        ("VENTOUX_CACHE=/dev/null {ventoux} info", 1, "cannot write .* to /dev/null: .*; set VENTOUX_CACHE"),
    ],
)
def test_streams_and_surroundings_that_are_broken_are_one_line_at_most(folder, shell, status, error):
    command = shell.format(ventoux=f"{sys.executable} -m ventoux", folder=folder)
    env = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # what a terminal of any UTF-8 locale has
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == status
    assert re.fullmatch(rf"ventoux: error: .*{error}.*\n" if error else "", done.stderr)
    assert "error" not in done.stdout


def test_ctrl_c_ends_generate_quietly(talkative):
    process = subprocess.Popen(
        [*COMMAND, "generate", "Hello", "-m", talkative, "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert err == b""
    assert out.endswith(b"\n")
    assert process.returncode == 130


def test_ctrl_c_ends_interactive_with_its_line(folder):
    process = subprocess.Popen(
        [*COMMAND, "interactive", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(len("Prompt: "))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (out, err) == (b"\n", b"")
    assert process.returncode == 130


def test_ctrl_c_stops_the_answer_and_not_the_program(talkative):
    process = subprocess.Popen(
        [*COMMAND, "chat", "-m", talkative, "--ignore-eos"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"Hello\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/help\n", timeout=30)
    assert err == b""
    assert b"\n(stopped)\nEnter sends" in out
    assert process.returncode == 0


def test_a_chat_without_a_cache_folder_has_a_history_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("VENTOUX_CACHE", os.devnull)
    history().append_string("hello")
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path / "cache"))
    history().append_string("hello")
    assert list(history().load_history_strings()) == ["hello"]


class Terminal:
    """`ventoux` in a terminal of its own: type, and wait for what appears."""

    def __init__(self, *arguments, env):
        self.terminal, theirs = pty.openpty()
        command = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern):
        """Until the pattern appears after what was waited for before -> all that came meanwhile."""
        deadline = time.monotonic() + 30
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            chunk = os.read(self.terminal, 65536).decode(errors="replace")
            if "\x1b[6n" in chunk:  # prompt_toolkit asks where the cursor is
                self.type("\x1b[1;1R")
            self.seen += chunk
        came, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return came

    def end(self):
        """The exit status."""
        status = self.process.wait(30)
        os.close(self.terminal)
        return status


def test_chat_in_a_terminal(folder, tmp_path):
    env = {**os.environ, "VENTOUX_CACHE": str(tmp_path), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    terminal = Terminal("chat", "-m", folder, "--max-tokens", 5, env=env)
    for typed, shown in (
        ("two\x1b\rlines\r", "5 tokens, [0-9]+ a second"),
        ("x" * 3000 + "\r", "error: the prompt has [0-9]+ tokens"),  # more than the context of 512 holds
        ("unsent\x03", "unsent"),
        ("/help\r", "Enter sends, Alt-Enter"),
        ("again\r", "5 tokens, [0-9]+ a second"),
        ("\x04", "$"),
    ):
        terminal.wait_for(READY)
        terminal.type(typed)
        assert "Traceback" not in terminal.wait_for(shown)
    assert terminal.end() == 0
    assert "+two\n+lines\n" in (tmp_path / "chat-history").read_text()


def test_ctrl_c_in_a_terminal_draws_nothing_twice(talkative, tmp_path):
    env = {**os.environ, "VENTOUX_CACHE": str(tmp_path), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    terminal = Terminal("chat", "-m", talkative, "--ignore-eos", "--logit-bias", "400=100", env=env)
    terminal.wait_for(READY)
    terminal.type("Hello\r")
    terminal.wait_for(r"\x1b\[\?2004l")  # prompt_toolkit gives the terminal back
    answer = terminal.wait_for("he he he")
    terminal.type("\x03")  # first, as in life: the terminal throws away what it has not shown yet, then echoes
    answer += terminal.wait_for(r"\^C")
    terminal.process.send_signal(signal.SIGINT)  # it is not the session's leader, so the key alone sends none
    answer += terminal.wait_for(r"\(stopped\)")
    assert not re.search(r"\x1b\[\d*[A-HJK]", answer[answer.index("he he") :]), "the cursor only goes on"
    terminal.wait_for(READY)
    terminal.type("\x04")
    terminal.wait_for("$")
    assert terminal.end() == 0


def test_generating_imports_nothing_that_it_does_not_need(folder):
    code = (
        "import sys; from ventoux.cli import main\n"
        f"sys.argv = ['ventoux', 'generate', 'x', '-m', {str(folder)!r}, '--max-tokens', '1']\n"
        "main()\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "huggingface_hub", "rich", "prompt_toolkit", "pydantic", "jinja2", "requests"}
    assert not heavy & set(done.stdout.splitlines()[-1].split())


def test_the_default_model_knows_the_capital_of_france():
    if pull.DEFAULT_MODEL.cached_in(pull.cache_folder()) is None:
        pytest.skip("the default model is not in the cache")
    ask = [*COMMAND, "chat", "--message", "What is the capital of France?", "--temperature", "0", "--max-tokens", "20"]
    done = subprocess.run(ask, capture_output=True, text=True, check=True)
    assert done.stdout == "The capital of France is Paris.\n"
