"""What was computed for a conversation goes into a file, and comes back to another server of the same model."""

from pathlib import Path

from served import served

from ventoux.model import Mistral

ADMIN = {"Authorization": "Bearer master"}
TALK = [{"role": "user", "content": "It was a dark and stormy night in the harbour of New Bedford, and cold."}]


def test_a_conversation_goes_on_elsewhere(tiny_wide: Mistral, tmp_path: Path):
    ask = {"temperature": 0, "max_tokens": 12}
    settings = {"sessions_folder": tmp_path, "admin_keys": ("master",)}
    with served(lambda: tiny_wide, **settings) as first, first.client() as client:
        said = client.post("/v1/chat/completions", json={"messages": TALK, **ask}).json()["choices"][0]["message"]
        whole = [*TALK, {"role": "assistant", "content": said["content"]}]
        saved = client.post("/admin/sessions/save", json={"name": "night", "messages": whole}, headers=ADMIN)
        assert saved.status_code == 200, saved.text
        assert saved.json()["tokens"] >= 16
        unknown = {"name": "other", "prompt": "Nobody has asked for this text, ever, in this place."}
        assert client.post("/admin/sessions/save", json=unknown, headers=ADMIN).status_code == 400
        assert [file.name for file in tmp_path.iterdir()] == ["night"]
        after = [*whole, {"role": "user", "content": "And then?"}]
        expected = client.post("/v1/chat/completions", json={"messages": after, **ask}).json()
    with served(lambda: tiny_wide, **settings) as second, second.client() as client:
        restored = client.post("/admin/sessions/restore", json={"name": "night"}, headers=ADMIN)
        assert restored.json() == saved.json()
        found = client.post("/v1/chat/completions", json={"messages": after, **ask}).json()
        assert found["choices"] == expected["choices"]
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == saved.json()["tokens"]
        (tmp_path / "broken").write_bytes((tmp_path / "night").read_bytes()[:-9])
        for name, status in (("nobody", 404), ("broken", 400), ("../night", 400)):
            answer = client.post("/admin/sessions/restore", json={"name": name}, headers=ADMIN)
            assert answer.status_code == status, answer.text
        assert client.post("/admin/sessions/restore", json={"name": "night"}).status_code == 401
