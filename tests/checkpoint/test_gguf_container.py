"""The GGUF container: equal to the gguf package, and refusing what does not hold together."""

import struct
from pathlib import Path
from typing import Any

import gguf as oracle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventoux import checkpoint, gguf
from ventoux.errors import CheckpointError

U32, I64, BOOL, STRING, ARRAY = 4, 11, 7, 8, 9


def test_metadata_and_tensors_equal_the_package(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = oracle.GGUFWriter(path, "llama")
    values: dict[str, Any] = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 1 << 31,
        "int32": -(1 << 31),
        "uint64": 1 << 63,
        "int64": -(1 << 63),
        "float32": 0.5,
        "float64": 1e-300,
        "bool": True,
        "string": "Ventoux 🌬 \n",
    }
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.strings", ["", "a", "Ġthe", "🌬" * 100])
    writer.add_array("x.floats", [0.5, -2.25])
    writer.add_array("x.bools", [True, False])
    writer.add_array("x.ints", list(range(-5, 5)))
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(4, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, reader = gguf.read(path), oracle.GGUFReader(path)
    ours = {key: value for key, value in found.metadata.items() if not key.startswith("general.")}
    theirs = {key: field.contents() for key, field in reader.fields.items() if key.startswith("x.")}
    assert ours == theirs
    assert values == {key.removeprefix("x."): value for key, value in ours.items() if key[2:] in values}
    assert ours["x.ints"] == list(range(-5, 5))
    for mine, other in zip(found.tensors, reader.tensors, strict=True):
        assert (mine.name, mine.ggml_type) == (other.name, other.tensor_type)
        assert mine.shape == tuple(other.shape.tolist()[::-1])
        assert mine.offset == other.data_offset


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(
    *pairs: bytes,
    tensors: tuple[bytes, ...] = (),
    body: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + body


SMALL = tensor(b"t", (2, 2))


@pytest.mark.parametrize("version", [2, 3])
def test_the_smallest_file(version: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file(pair(b"k", I64, struct.pack("<q", -1)), tensors=(SMALL,), body=bytes(16), version=version))
    found = gguf.read(path)
    assert found.metadata == {"k": -1}
    assert found.tensors[0].shape == (2, 2)


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file(pair(b"k", STRING, string(b"a\xff\xc3"))))
    assert gguf.read(path).metadata["k"].encode("utf-8", "surrogateescape") == b"a\xff\xc3"


U64_MAX = (1 << 64) - 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GGU", "not a GGUF file"),
        (b"GGML" + bytes(40), "not a GGUF file: .*'GGML'"),
        (file(version=1), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (file(counts=(0, U64_MAX)), "announces 18446744073709551615 metadata keys"),
        (file(counts=(U64_MAX, 0)), "announces .* tensors"),
        (file(counts=(1, 0)), ".* bytes are needed"),
        (file(pair(b"k", 99, b"")), "'k': unknown value type 99"),
        (file(pair(b"k", BOOL, b"\2")), "'k': expected a boolean"),
        (file(pair(b"k", STRING, struct.pack("<Q", U64_MAX))), "'k': 18446744073709551615 bytes are needed"),
        (file(pair(b"k", ARRAY, struct.pack("<IQ", U32, U64_MAX))), "'k': it announces .* array items"),
        (file(pair(b"k", ARRAY, struct.pack("<IQ", U32, 1 << 22))), "'k': 16777216 bytes are needed"),
        (file(pair(b"k", ARRAY, struct.pack("<IQ", STRING, 1 << 22))), "'k': a string (begins|ends) past"),
        (file(pair(b"k", ARRAY, struct.pack("<IQQ", STRING, 1, U64_MAX))), "'k': a string ends past"),
        (file(pair(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1))), "'k': unknown or nested array type 9"),
        (file(pair(b"k", ARRAY, struct.pack("<IQB", BOOL, 1, 3))), "'k': expected a boolean"),
        (file(pair(b"k", BOOL, b"\1"), pair(b"k", BOOL, b"\1")), "'k': it stands twice"),
        (file(pair(b"general.alignment", U32, struct.pack("<I", 24))), "power of two"),
        (file(pair(b"general.alignment", U32, struct.pack("<I", 0))), "power of two"),
        (file(pair(b"general.alignment", STRING, string(b"32"))), "power of two"),
        (file(tensors=(tensor(b"t", ()),)), "'t': expected 1 to 4 dimensions, found 0"),
        (file(tensors=(tensor(b"t", (1,) * 5),)), "'t': expected 1 to 4 dimensions, found 5"),
        (file(tensors=(tensor(b"t", (0, 4)),)), "'t': impossible shape"),
        (file(tensors=(tensor(b"t", (1 << 40, 1 << 40)),)), "'t': impossible shape"),
        (file(tensors=(tensor(b"t", (U64_MAX, 2)),)), "'t': impossible shape"),
        (file(tensors=(tensor(b"t", (2, 2), offset=8),), body=bytes(64)), "'t': its offset 8 is not a multiple"),
        (file(tensors=(tensor(b"t", (2, 2), offset=1 << 62),)), "'t': it begins at byte"),
        (file(tensors=(SMALL, tensor(b"t", (2, 2), offset=32)), body=bytes(64)), "a tensor stands twice"),
    ],
)
def test_a_bad_container_names_its_fault(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{reason}"):
        gguf.read(path)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((SMALL,), "'t': it needs bytes .* cut off"),
        ((tensor(b"t", (8,)), tensor(b"u", (4,))), "'u': it overlaps 't'|'t': it overlaps 'u'"),
        ((tensor(b"t", (2, 2), kind=16),), "'t': number format 16 of ggml is not supported"),
        ((tensor(b"t", (2, 2), kind=2),), "'t': rows of 2 weights do not fill Q4_0's blocks of 32"),
        ((tensor(b"t", (4,)),), r"'token_embd\.weight': it is missing"),
    ],
)
def test_bad_tensors_are_named(tensors: tuple[bytes, ...], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file(tensors=tensors, body=bytes(48) if "cut off" not in reason else bytes(12)))
    with pytest.raises(CheckpointError, match=rf"m\.gguf: tensor ({reason})"):
        checkpoint.read(path)


def test_a_file_cut_anywhere_is_refused(layouts: dict[str, Path], tmp_path: Path) -> None:
    whole = layouts["gguf"].read_bytes()
    path = tmp_path / "m.gguf"
    for length in [*range(0, 2000, 37), len(whole) // 2, len(whole) - 40]:
        path.unlink(missing_ok=True)  # a new file each time: an earlier one may still be mapped
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


SHORT = st.binary(min_size=1, max_size=255)
ANY = st.one_of(SHORT, st.binary(max_size=9), st.binary(min_size=256, max_size=600), st.just(bytes(20)))


@given(st.one_of(st.lists(SHORT), st.lists(ANY)), st.binary(max_size=40))
def test_strings_are_read_at_once_as_one_by_one(strings: list[bytes], behind: bytes) -> None:
    data = np.frombuffer(b"".join(map(string, strings)) + behind, np.uint8)
    at_once, one_by_one = (gguf._Cursor(Path("x"), data) for _ in range(2))
    one_by_one.short_strings = lambda count: None  # type: ignore[method-assign]
    found = at_once.strings(len(strings))
    assert found == one_by_one.strings(len(strings))
    assert at_once.position == one_by_one.position
    assert [text.encode("utf-8", "surrogateescape") for text in found] == strings


@given(st.lists(SHORT, min_size=1, max_size=9), st.data())
def test_damaged_strings_are_read_at_once_as_one_by_one(strings: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(b"".join(map(string, strings)))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    results = []
    for at_once in (True, False):
        cursor = gguf._Cursor(Path("x"), np.frombuffer(damaged, np.uint8))
        if not at_once:
            cursor.short_strings = lambda count: None  # type: ignore[method-assign]
        try:
            results.append((cursor.strings(len(strings)), cursor.position))
        except CheckpointError as error:
            results.append((str(error), 0))
    assert results[0] == results[1]


def test_short_strings_need_no_loop() -> None:
    data = np.frombuffer(b"".join(map(string, [b"ab", b"c" * 255, "Ġ€".encode()])), np.uint8)
    assert gguf._Cursor(Path("x"), data).short_strings(3) == ["ab", "c" * 255, "Ġ€"]
