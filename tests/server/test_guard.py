"""What stands before the routes: hosts, origins, keys, sizes, request ids, the log."""

import base64
import http.client
import json
import logging
import socket
import time

import pytest
from served import Served, served

from ventoux.model import Mistral
from ventoux.server import hosts_for
from ventoux.server.guard import host_of, known

TEXT = {"prompt": "Call me", "max_tokens": 2}
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/fim/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("GET", "/nothing"),
]


@pytest.fixture(scope="module")
def locked(tiny: Mistral):
    with served(lambda: tiny, api_keys=("open-sesame", "swordfish"), max_body_bytes=5000) as found:
        yield found


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_every_route_wants_a_key(locked: Served, method: str, route: str):
    with locked.client() as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"X-Api-Key": "open-sesam"},
        ):
            answer = client.request(method, route, headers=headers)
            assert answer.status_code == 401, headers
            assert answer.json()["error"]["type"] == "authentication_error"
        assert client.request(method, route, headers={"Authorization": "Bearer swordfish"}).status_code != 401


def test_no_page_runs_scripts_of_another_host(server: Served):
    with server.client() as client:
        assert [client.get(page).status_code for page in ("/docs", "/redoc")] == [404, 404]
        assert "http" not in client.get("/").text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_load_balancer_needs_none(locked: Served):
    with locked.client() as client:
        assert [client.get(route).status_code for route in ("/health", "/ready")] == [200, 200]
        assert client.get("/health/").status_code == 401, "no other spelling gets in"


def test_keys_come_in_three_ways():
    keys = ("open-sesame", "swordfish")
    basic = "Basic " + base64.b64encode(b"anyone:swordfish").decode()
    assert known("Bearer open-sesame", "", keys)
    assert known("", "swordfish", keys)
    assert known(basic, "", keys)
    for wrong in ("Basic ???", "Basic " + base64.b64encode(b"swordfish").decode(), "bearer", "Bearer \xe9", "swordfis"):
        assert not known(wrong, "", keys)


def test_other_names_are_not_answered_to(server: Served):
    """A page elsewhere can point a name of its own at 127.0.0.1: DNS rebinding, CVE-2024-28224."""
    port = server.url.rpartition(":")[2]
    with server.client() as client:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403, host
        for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_which_names_are_a_servers_own():
    assert host_of("[::1]:8000") == "::1"
    assert host_of("Example.org") == "example.org"
    assert "gpu.local" in (hosts_for("127.0.0.1", ("gpu.local",)) or ())
    assert hosts_for("0.0.0.0", ()) is None
    assert hosts_for("0.0.0.0", ("gpu.local",)) == ("gpu.local",)


def test_pages_elsewhere_may_not_ask(server: Served, tiny: Mistral):
    body = json.dumps(TEXT)
    with server.client() as client:
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            answer = client.post("/v1/completions", content=body, headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        own = {"Origin": server.url, "Content-Type": "application/json"}
        assert client.post("/v1/completions", content=body, headers=own).status_code == 200
    with served(lambda: tiny, origins=("https://app.example",)) as open_to_one, open_to_one.client() as client:
        allowed = client.post("/v1/completions", json=TEXT, headers={"Origin": "https://app.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/completions", headers=asked).status_code == 200
        assert client.post("/v1/completions", json=TEXT, headers={"Origin": "https://b.example"}).status_code == 403


def test_bodies_have_an_end(locked: Served):
    headers = {"Authorization": "Bearer swordfish", "Content-Type": "application/json"}
    body = json.dumps({**TEXT, "prompt": "a" * 6000}).encode()
    with locked.client(headers=headers) as client:
        whole = client.post("/v1/completions", content=body)
        in_pieces = client.post("/v1/completions", content=(body[i : i + 100] for i in range(0, len(body), 100)))
    assert (whole.status_code, in_pieces.status_code) == (413, 413)
    assert whole.json()["error"]["type"] == "invalid_request_error"


def test_headers_have_an_end(server: Served):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(200):
                raw.sendall(b"X-Long: " + b"a" * 1000 + b"\r\n")
            answer = raw.recv(100)
        except ConnectionError:
            answer = b""
    assert answer == b"" or b" 400 " in answer or b" 431 " in answer
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_requests_have_ids(server: Served):
    with server.client() as client:
        assert client.get("/v1/models", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
        made = client.get("/v1/models", headers={"X-Request-Id": 'a"\\{}'}).headers["x-request-id"]
        assert made.isalnum()
        assert client.get("/nothing").headers["x-request-id"] != made


def test_the_log_holds_no_prompt(server: Served, caplog: pytest.LogCaptureFixture):
    secret = "the treasure is under the oak"
    with caplog.at_level(logging.INFO, "ventoux.server"), server.client() as client:
        client.post("/v1/completions", json={**TEXT, "prompt": secret}, headers={"X-Request-Id": "dig-here"})
        client.post("/v1/completions", json={**TEXT, "prompt": secret, "top_p": 7})
        server.until(lambda: len(caplog.records) >= 2)
    lines = [json.loads(record.message) for record in caplog.records]
    assert secret not in caplog.text
    assert lines[0]["request_id"] == "dig-here"
    assert [line["status"] for line in lines] == [200, 400]
    assert lines[0]["prompt_tokens"] > 0


def test_loading_is_told(tiny: Mistral):
    import threading

    go = threading.Event()

    def load() -> Mistral:
        go.wait(20)
        return tiny

    with served(load, wait=False) as slow, slow.client() as client:
        assert client.get("/health").status_code == 503
        assert client.get("/ready").json() == {"status": "loading"}
        early = client.post("/v1/completions", json=TEXT)
        assert (early.status_code, early.json()["error"]["code"]) == (503, "loading")
        assert "retry-after" in early.headers
        go.set()
        slow.until(lambda: client.get("/health").status_code == 200)
        assert client.post("/v1/completions", json=TEXT).status_code == 200


def test_a_full_queue_says_when_to_come_back(tiny: Mistral):
    with served(lambda: tiny, max_running=1, max_waiting=1) as small, small.client() as client:
        long = {"prompt": "Call me", "max_tokens": 400, "ignore_eos": True, "stream": True}
        host, port = small.url.removeprefix("http://").split(":")
        connections = [http.client.HTTPConnection(host, int(port)) for _ in range(2)]
        for connection in connections:
            connection.request("POST", "/v1/completions", json.dumps(long), {"Content-Type": "application/json"})
            small.until(lambda: small.service.worker.alive > 0)
            time.sleep(0.02)
        refused = client.post("/v1/completions", json=TEXT)
        together = client.post("/v1/completions", json={**TEXT, "n": 3})
        for connection in connections:
            connection.close()
        small.until(lambda: small.service.worker.alive == 0)
        assert client.post("/v1/completions", json=TEXT).status_code == 200
    assert refused.status_code == together.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1


def test_an_answer_may_take_so_long(tiny: Mistral):
    with served(lambda: tiny, timeout_s=0.005) as hasty, hasty.client() as client:  # 12 us for each of 400 tokens
        long = {"prompt": "Call me", "max_tokens": 400, "ignore_eos": True}
        answer = client.post("/v1/completions", json=long)
        stream = client.post("/v1/completions", json={**long, "stream": True})
        hasty.until(lambda: hasty.service.worker.alive == 0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert '"code":"timeout"' in stream.text
    assert "[DONE]" not in stream.text
