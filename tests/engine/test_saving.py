"""A conversation's keys and values go to a file and come back with every bit, or are refused with the reason."""

import hashlib
import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import ByteTokenizer, ToyBackend

from ventoux import checkpoint
from ventoux.cpu import Backend
from ventoux.decoding import SamplingParams
from ventoux.engine import Completion, Engine, Request
from ventoux.errors import PrefixFileError, RequestError

IDS = np.random.default_rng(3).integers(3, 96, 40).tolist()
PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)


def ask(engine, ids, salt=""):
    key, events = engine.add(Request(ids, PARAMS, salt=salt)), []
    while engine.busy:
        events += [event for at, event in engine.step() if at == key]
    return Completion(events)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return checkpoint.read(tiny.save_hf(tiny.tiny_model(2), tmp_path_factory.mktemp("saving")))


def engine_of(found, windows=(4, 4), prefix_bytes=1 << 20, **options):
    config = replace(found.config, windows=windows)
    return Engine(Backend(config, found.tensors, threads=1, **options), prefix_bytes=prefix_bytes)


@pytest.mark.parametrize("kv_cache_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("windows", [(3, 3), (16, 16), (None, None), (None, 4)])
def test_another_process_goes_on_with_the_same_bits(found, tmp_path, windows, kv_cache_dtype):
    engine = engine_of(found, windows, kv_cache_dtype=kv_cache_dtype)
    first = ask(engine, IDS)
    turn = [*IDS, *first.ids, 7, 8]
    assert engine.save_prefix(turn, tmp_path / "chat.kv") == 45
    assert stat.S_IMODE((tmp_path / "chat.kv").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["chat.kv"]
    expected = ask(engine, turn)

    other = engine_of(found, windows, kv_cache_dtype=kv_cache_dtype)
    assert other.load_prefix(tmp_path / "chat.kv", salt="me") == turn[:45]
    assert ask(other, turn).usage.cached_tokens == 0
    answer = ask(other, turn, salt="me")
    assert answer.usage.cached_tokens == 45
    assert [(t.id, t.logprob) for t in answer.tokens] == [(t.id, t.logprob) for t in expected.tokens]
    other.clear_prefixes()
    assert other.kv_bytes == other.prefix_bytes == 0


def test_a_running_text_can_be_saved_and_a_stranger_s_cannot(tmp_path):
    engine = Engine(ToyBackend(), ByteTokenizer(), prefix_bytes=1000)
    engine.add(Request(IDS, SamplingParams(ignore_eos=True), salt="me"))
    engine.step()
    assert engine.save_prefix(IDS, tmp_path / "a", salt="me") == 40
    with pytest.raises(RequestError, match="nothing is kept of a text that begins as these 40 ids do; run them first"):
        engine.save_prefix(IDS, tmp_path / "b")
    with pytest.raises(RequestError, match="empty"):
        engine.save_prefix([], tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def saved(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "chat.kv"
    engine = engine_of(found)
    ask(engine, IDS)
    engine.save_prefix(IDS, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_dtype": "f16"}, "holds keys and values in 'f32', and this model keeps them in f16"),
        ({"windows": (4, None)}, "saved by another model, or by one that computes otherwise"),
        ({"prefix_bytes": 2000}, "holds 40 positions, which are more than prefix_bytes allow"),
        ({"prefix_bytes": 0}, "more than prefix_bytes allow"),
    ],
)
def test_files_of_others_are_refused(found, saved, tmp_path, options, message):
    (tmp_path / "chat.kv").write_bytes(saved)
    engine = engine_of(found, **options)
    with pytest.raises(PrefixFileError, match=message):
        engine.load_prefix(tmp_path / "chat.kv")
    assert engine.prefix_bytes == engine.kv_bytes == 0


def test_one_changed_weight_matrix_is_another_model(found, saved, tmp_path):
    (tmp_path / "chat.kv").write_bytes(saved)
    model = tiny.tiny_model(2)
    model.model.layers[1].mlp.down_proj.weight.data.mul_(1.001)
    other = checkpoint.read(tiny.save_hf(model, tmp_path / "other"))
    with pytest.raises(PrefixFileError, match="saved by another model"):
        engine_of(other).load_prefix(tmp_path / "chat.kv")
    assert engine_of(found).load_prefix(tmp_path / "chat.kv") == IDS


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_with_the_reason_and_leave_nothing(found, saved, tmp_path, data):
    engine = engine_of(found)
    how = data.draw(st.sampled_from(["bit", "cut", "longer"]))
    at = data.draw(st.integers(0, len(saved) - 1) | st.integers(0, 300))
    damaged = bytearray(saved)
    if how == "bit":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del damaged[at:]
    else:
        damaged += b"x" * (at + 1)
    (tmp_path / "chat.kv").write_bytes(damaged)
    with pytest.raises(PrefixFileError, match=r"chat.kv (is damaged|holds|was saved by another)"):
        engine.load_prefix(tmp_path / "chat.kv")
    assert engine.prefix_bytes == 0


def forged(saved, **changes):
    """The file with another header, and the right checksum."""
    length = int.from_bytes(saved[8:12], "little")
    header = json.loads(saved[12 : 12 + length])
    header = {key: value for key, value in (header | changes).items() if value != "none"}
    text = json.dumps(header).encode()
    body = saved[:8] + len(text).to_bytes(4, "little") + text + saved[12 + length : -32]
    return body + hashlib.blake2b(body, digest_size=32).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 10**9},
        {"length": 0},
        {"length": True},
        {"length": -1},
        {"length": [40]},
        {"length": 41},
        {"layers": [1 << 61, 1 << 61]},
        {"layers": [-1, 5]},
        {"layers": []},
        {"layers": "4096"},
        {"layers": [0, 8192]},
        {"firsts": [0]},
        {"firsts": [41, 0]},
        {"firsts": "none"},
        {"more": 1},
        {"kv_dtype": {"a": []}},
    ],
)
def test_forged_headers_are_refused(found, saved, tmp_path, changes):
    (tmp_path / "chat.kv").write_bytes(forged(saved, **changes))
    engine = engine_of(found)
    with pytest.raises(PrefixFileError):
        engine.load_prefix(tmp_path / "chat.kv")
    assert engine.prefix_bytes == 0
    (tmp_path / "chat.kv").write_bytes(forged(saved))
    assert engine.load_prefix(tmp_path / "chat.kv") == IDS


def test_paths_that_cannot_be_are_errors_for_people(found, tmp_path):
    engine = engine_of(found)
    ask(engine, IDS)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    for path, message in (
        (tmp_path / "absent", "absent cannot be read: No such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "text", "holds no saved conversation"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(PrefixFileError, match=message):
            engine.load_prefix(path)
    for path in (tmp_path / "absent" / "file", tmp_path / "text" / "file", tmp_path, "", "a\0b"):
        with pytest.raises(PrefixFileError, match="cannot be written"):
            engine.save_prefix(IDS, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "text"]
