"""`ventoux serve` as a process: what it says, how it begins and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

TEXT = "/v1/completions"
SECRET = "the whale swims at midnight"
PATIENCE = 60  # seconds that a machine full of other tests may take for anything


class Process:
    """A server of its own process, and what it has written to standard error."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VENTOUX_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ventoux", "serve", "--port", "0", *map(str, arguments)],
            env={**kept, "VENTOUX_PACKED_GB": "0", **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=_interruptible,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, self.lines
            time.sleep(0.01)

    @property
    def url(self) -> str:
        """Where it says that it listens."""
        self.until(lambda: any("listening on" in line for line in self.lines) or self.process.poll() is not None)
        found = [match[0] for line in self.lines if (match := re.search(r"https?://\S+", line))]
        assert found, self.lines
        return found[0]

    def client(self, **settings: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **settings)  # type: ignore[arg-type]

    def ready(self) -> "Process":
        assert self.url
        self.until(lambda: any(line.startswith("ventoux: ready") for line in self.lines))
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal -> the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.lines if not line.startswith("ventoux: ")]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _interruptible() -> None:
    """A job in the background inherits an ignored Ctrl-C from its shell; a server started by hand does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[Process]:
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        process.close()


def long(tokens: int) -> dict:
    return {"prompt": "Call me", "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}


def waits_for_ever(folder: Path, copy: Path) -> Path:
    """Copy a model so that loading it waits until somebody writes generation_config.json, a pipe -> its path."""
    shutil.copytree(folder, copy)
    gate = copy / "generation_config.json"
    gate.unlink()
    os.mkfifo(gate)
    return gate


def test_it_listens_before_the_model_is_loaded(tiny_folder: Path, tmp_path: Path):
    text = (tiny_folder / "generation_config.json").read_text()
    gate = waits_for_ever(tiny_folder, tmp_path / "slow")
    with running("-m", tmp_path / "slow") as process, process.client() as client:
        assert [client.get(route).status_code for route in ("/health", "/ready", "/metrics")] == [503, 503, 200]
        refused = client.post(TEXT, json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) > 0
        gate.write_text(text)
        process.ready()
        assert [client.get(route).status_code for route in ("/health", "/ready")] == [200, 200]
        assert client.post(TEXT, json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert process.end() == 0


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(long_folder: Path):
    streams, tokens = 4, 2000
    begun = threading.Barrier(streams + 1)

    def read(process: Process) -> list[str]:
        with process.client() as client, client.stream("POST", TEXT, json=long(tokens)) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            begun.wait(PATIENCE)
            return [line for line in [first, *lines] if line]

    with running("-m", long_folder) as process, ThreadPoolExecutor(streams) as pool, process.client() as client:
        process.ready()
        reading = [pool.submit(read, process) for _ in range(streams)]
        begun.wait(PATIENCE)
        process.process.send_signal(signal.SIGTERM)
        process.until(lambda: any(line.startswith("ventoux: ending") for line in process.lines))
        process.until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/health").json() == {"status": "draining"}
        refused = client.post(TEXT, json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert not all(each.done() for each in reading), "the streams ended before the refusal; give them more tokens"
        answers = [each.result() for each in reading]
        assert process.wait() == 0
    for lines in answers:
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert len({"".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]) for lines in answers}) == 1


def test_a_second_ctrl_c_does_not_wait(long_folder: Path):
    with running("-m", long_folder) as process:
        process.ready()
        with process.client() as client, client.stream("POST", TEXT, json=long(32000)) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.process.send_signal(signal.SIGINT)
            process.until(lambda: any(line.startswith("ventoux: ending") for line in process.lines))
            for _ in range(20):  # it goes on
                next(lines)
            process.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert process.wait() == 0
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "cancelled"
    assert [line["status"] for line in process.log()] == [200], "and no traceback"


def test_a_second_ctrl_c_does_not_wait_for_the_model_either(tiny_folder: Path, tmp_path: Path):
    waits_for_ever(tiny_folder, tmp_path / "slow")
    with running("-m", tmp_path / "slow") as process, process.client() as client:
        assert client.get("/health").status_code == 503
        process.process.send_signal(signal.SIGINT)
        process.until(lambda: any(line.startswith("ventoux: ending") for line in process.lines))
        assert process.end(signal.SIGINT) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_ends_when_nothing_runs(tiny_folder: Path, number: signal.Signals):
    """Connections that are kept open and say nothing do not keep it, nor does one with half a request."""
    with running("-m", tiny_folder) as process, process.client() as idle:
        process.ready()
        assert idle.get("/health").status_code == 200
        address = process.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-")
            assert process.end(number) == 0


def test_what_keeps_it_from_starting_is_one_line(tiny_folder: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            f"cannot listen on 127.0.0.1 port {port}": ("-m", tiny_folder, "--port", port),
            "there is no such file": ("-m", tmp_path / "nothing"),
            "in PEM": ("-m", tiny_folder, "--tls-cert", tmp_path / "a", "--tls-key", tmp_path / "b"),
        }
        started = {said: Process(*arguments) for said, arguments in wrong.items()}
        for said, process in started.items():
            code = process.wait()
            process.close()
            complaints = [line for line in process.lines if "loading the model" not in line]
            assert (code, len(complaints)) == (1, 1), (said, process.lines)
            assert said in complaints[0]


@pytest.mark.slow
def test_keys_come_from_a_file_and_from_the_environment(tiny_folder: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("from-a-file\n\n second \n")
    with running("-m", tiny_folder, "--api-key-file", keys, VENTOUX_API_KEY="from-outside,last") as process:
        process.ready()
        with process.client() as client:

            def status(key: str) -> int:
                return client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

            assert [status(key) for key in ("from-a-file", "second", "from-outside", "last")] == [200] * 4
            assert [status(key) for key in ("other", "from-outside,last", "lost")] == [401] * 3
            assert client.get("/health").status_code == 200
        assert process.end() == 0


def test_the_log_is_json_and_holds_no_text(tiny_folder: Path):
    with running("-m", tiny_folder) as process, process.client() as client:
        process.ready()
        chat = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "user": SECRET}
        answers = [
            client.post(TEXT, json={"prompt": SECRET, "max_tokens": 4}, headers={"X-Request-Id": "mine-1"}),
            client.post("/v1/chat/completions", json={**chat, "stream": True}),
            client.post(TEXT, json={"prompt": SECRET, SECRET: 1}),
            client.post("/tokenize", json={"content": SECRET}),
        ]
        address = process.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as stranger:
            stranger.sendall(SECRET.encode() + b"\r\n\r\n")
            assert b"400" in stranger.recv(1000)
        assert process.end() == 0
    assert any(line["event"] == "warning" for line in process.log()), "uvicorn's own lines are JSON too"
    lines = [line for line in process.log() if line["event"] == "request"]
    assert [line["request_id"] for line in lines] == [each.headers["x-request-id"] for each in answers]
    assert lines[0]["request_id"] == "mine-1"
    assert [line["status"] for line in lines] == [200, 200, 400, 200]
    assert all(line["seconds"] >= 0 and line["time"] > 0 for line in lines)
    assert SECRET.split()[1] not in "\n".join(process.lines)


@pytest.mark.slow
def test_tls(tiny_folder: Path, tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *where], check=True, capture_output=True)
    with running("-m", tiny_folder, "--tls-cert", certificate, "--tls-key", key) as process:
        process.ready()
        assert process.url.startswith("https://")
        import ssl

        with process.client(verify=ssl.create_default_context(cafile=str(certificate))) as client:
            assert client.post(TEXT, json={"prompt": "a", "max_tokens": 2}).status_code == 200
        with pytest.raises(httpx.ConnectError), process.client() as stranger:
            stranger.get("/health")
        assert process.end() == 0


def test_help_names_what_a_stranger_looks_for():
    command = [sys.executable, "-m", "ventoux", "serve", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--host", "--port", "--api-key-file", "--alias", "--max-waiting", "--tls-cert", "--model"):
        assert flag in said
    assert "127.0.0.1" in said
