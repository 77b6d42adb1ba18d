"""`ventoux cache` lists and deletes what loads have kept."""

import json
import os
import re
import threading

import pytest

from ventoux.cpu import packing


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("VENTOUX_CACHE", str(tmp_path))
    monkeypatch.delenv("VENTOUX_PACKED_GB")
    monkeypatch.setattr(packing, "SMALLEST", 0)
    return tmp_path / "packed"


def loaded(ventoux, folder):
    assert ventoux("tokenize", "x", "-m", folder)[0] == 0
    for thread in threading.enumerate():
        if isinstance(thread, packing.Writer):
            thread.join()


def test_what_is_kept_is_listed_and_deleted(ventoux, folder, place):
    assert ventoux("cache") == (0, f"0.0 MB of 20,000.0 MB in {place}\n", "")
    loaded(ventoux, folder)
    (file,) = place.iterdir()
    os.utime(file, (0, 1e9))
    source = folder.resolve() / "model.safetensors"
    status, out, _ = ventoux("cache")
    assert status == 0
    assert re.match(rf" +[\d.]+ MB  2001-09-0[89] \d\d:\d\d  good +{re.escape(str(source))}\n", out)
    found = json.loads(ventoux("cache", "--json")[1])
    entry = {"path": str(file), "sources": [str(source)], "nbytes": file.stat().st_size, "used": 1e9, "fault": ""}
    assert found == {"folder": str(place), "limit_bytes": 20_000_000_000, "entries": [entry]}
    file.write_bytes(b"not ours")
    assert "it has no header " in ventoux("cache")[1]
    status, out, _ = ventoux("cache", "clear")
    assert (status, out) == (0, "deleted 1 file, 0.0 MB\n")
    assert list(place.iterdir()) == []


def test_debug_tells_why_weights_were_packed(ventoux, folder, place, caplog):
    caplog.set_level("DEBUG", "ventoux")
    loaded(ventoux, folder)
    loaded(ventoux, folder)
    assert [record.message for record in caplog.records if "No such file" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("VENTOUX_PACKED_GB", "much", "VENTOUX_PACKED_GB is 'much', expected a number of gigabytes such as 20, or 0"),
        ("VENTOUX_CACHE", "~nobody-of-this-name/x", "there is no cache folder: .*; set VENTOUX_CACHE to one"),
    ],
)
def test_wrong_settings_are_one_line(ventoux, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    status, out, err = ventoux("cache")
    assert (status, out) == (1, "")
    assert re.fullmatch(f"ventoux: error: {message}\n", err)
