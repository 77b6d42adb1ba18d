"""LoRA adapters are models of their own name, and come and go while the server runs."""

from pathlib import Path

import lora
import pytest
from served import served
from tiny import tiny_model
from tiny_tokenizer import VOCAB

import ventoux

ADMIN = {"Authorization": "Bearer master"}
ASK = {"prompt": "Call me", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("poet", "sailor")):
        lora.save(tiny_model(vocab_size=VOCAB, sliding_window=16), root / name, seed=seed)
    return root


def test_each_answers_as_itself(tiny_folder: Path, folders: Path):
    model = ventoux.load(tiny_folder, threads=2)
    with served(lambda: model, adapters_folder=folders, admin_keys=("master",)) as found, found.client() as client:

        def text(name: str) -> str:
            return client.post("/v1/completions", json={**ASK, "model": name}).json()["choices"][0]["text"]

        plain = text("tiny")
        for name in ("poet", "sailor"):
            assert client.post("/v1/completions", json={**ASK, "model": name}).status_code == 404
            assert client.post("/admin/adapters", json={"name": name}, headers=ADMIN).status_code == 200
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny", "poet", "sailor"]
        assert len({plain, text("poet"), text("sailor")}) == 3
        assert text("tiny") == plain
        assert text("poet") == str(model.generate("Call me", temperature=0, max_tokens=12, adapter="poet"))
        assert client.delete("/admin/adapters/poet", headers=ADMIN).json() == {"adapters": ["sailor"]}
        assert client.post("/v1/completions", json={**ASK, "model": "poet"}).status_code == 404
        assert client.delete("/admin/adapters/poet", headers=ADMIN).status_code == 404


def test_nothing_outside_of_the_folder_is_reached(tiny, folders: Path, tmp_path: Path):
    """CVE-2024-37032, CVE-2024-45436: a name is no path."""
    (folders / "out").symlink_to(tmp_path)
    with served(lambda: tiny, adapters_folder=folders, admin_keys=("master",)) as found, found.client() as client:
        for name in ("../poet", "/etc", "poet/..", "..", ".", "", "a\x00b", "poet/", "%2e%2e"):
            assert client.post("/admin/adapters", json={"name": name}, headers=ADMIN).status_code == 400, name
        assert client.post("/admin/adapters", json={"name": "out"}, headers=ADMIN).status_code == 404
        assert client.post("/admin/adapters", json={"name": "nobody"}, headers=ADMIN).status_code == 400
        assert client.post("/admin/adapters", json={"name": "poet"}).status_code == 401
    (folders / "out").unlink()
    with served(lambda: tiny) as found, found.client() as client:
        assert client.get("/admin/adapters").status_code == 404
