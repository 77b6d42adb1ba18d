"""The reader of torch.save's files: equal to torch.load, and never running what a pickle asks for."""

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ventoux import quant
from ventoux.checkpoint import pickled, torchfile
from ventoux.errors import CheckpointError


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def as_zip(path: Path, program: bytes, *, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A torch file with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def test_equals_torch(tmp_path: Path) -> None:
    base = torch.arange(48.0).reshape(8, 6)
    values = {
        "float32": base,
        "float16": base.half() + 1,
        "bfloat16": base.bfloat16() - 3,
        "vector": torch.arange(5.0),
        "scalar": torch.tensor(3.5),
        "part of a storage": base[2:5],
        "parameter": torch.nn.Parameter(base * 2),
        "one row": torch.randn(6, 4).T[:, 2:3].contiguous()[:1],
    }
    path = save(tmp_path / "m.pth", values)
    theirs = torch.load(path, weights_only=True)
    ours = {tensor.name: tensor for tensor in torchfile.read(path)}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == tuple(theirs[name].shape)
        numbers = quant.dequantize(tensor.data, tensor.format).reshape(tensor.shape)
        np.testing.assert_array_equal(numbers, theirs[name].detach().float().numpy())


def test_a_modules_state_dict_with_its_metadata(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    path = save(tmp_path / "m.pth", module.state_dict())
    assert {tensor.name for tensor in torchfile.read(path)} == {"weight", "bias"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"w": torch.arange(3)}, "LongStorage"),
        ({"w": torch.arange(12.0).reshape(3, 4).T}, "one after the other"),
        ({"model": {"w": torch.ones(2)}}, r"save model\.state_dict\(\) itself"),
        ([torch.ones(2)], "EMPTY_LIST"),
        ({"w": 1.5}, "BINFLOAT"),
        ({3: torch.ones(2)}, "key is no string"),
        (torch.ones(2), r"save model\.state_dict\(\) itself"),
    ],
)
def test_what_is_no_dict_of_plain_tensors(value: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.pth: .*{reason}"):
        torchfile.read(save(tmp_path / "m.pth", value))


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class New(Calls):
    """Pickles through __newobj__ and a state, other opcodes for the same harm."""

    def __reduce_ex__(self, protocol: int) -> Any:
        return Calls, (print,), {"call": Calls(*self.call[:1], *self.call[1])}


ATTACKS: dict[str, Callable[[str], Any]] = {
    "system": lambda command: Calls(os.system, command),
    "eval": lambda command: Calls(eval, f"__import__('os').system({command!r})"),
    "exec": lambda command: Calls(exec, f"import os; os.system({command!r})"),
    "in a dict": lambda command: {"w": Calls(os.system, command)},
    "in a tensor's arguments": lambda command: {
        "w": Calls(torch._utils._rebuild_tensor_v2, Calls(os.system, command), 0, (1,), (1,), False, None)
    },
    "in an ordered dict": lambda command: Calls(dict, [("w", Calls(os.system, command))]),
    "in a state": lambda command: New(os.system, command),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_an_attack_is_read_and_not_run(attack: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    program = pickle.dumps(ATTACKS[attack](f"touch {mark}"), protocol)
    with contextlib.suppress(Exception):  # what comes after the harm is of no interest
        pickle.loads(program)
    assert mark.exists(), "the attack must work where pickles are run"
    mark.unlink()
    for path in (as_zip(tmp_path / "m.pth", program), as_zip(tmp_path / "n.pth", program, byteorder=b"little")):
        with pytest.raises(CheckpointError, match=r"its pickle is not one of plain tensors"):
            torchfile.read(path)
    assert not mark.exists()


def test_a_whole_malicious_torch_file(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    path = save(tmp_path / "m.pth", {"w": torch.ones(2), "evil": Calls(os.system, f"touch {mark}")})
    with pytest.raises(CheckpointError, match=r"wants to call '(posix|nt) system'.*nothing was run"):
        torchfile.read(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02}}.", None),  # an empty dict over another: no tensors, no harm
        (b"\x80\x02t.", "empty stack"),
        (b"\x80\x02h\x07.", "remembers nothing under 7"),
        (b"\x80\x02q\x07.", "empty stack"),
        (b"\x80\x02)R.", "empty stack"),
        (b"\x80\x02))R.", "wants to call a tuple"),
        (b"\x80\x02)(X\x01\x00\x00\x00aNu.", "no dict"),
        (b"\x80\x02}(X\x01\x00\x00\x00au.", "key without a value"),
        (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "stands twice"),
        (b"\x80\x02}))s.", "no string"),
        (b"\x80\x02NQ.", "storage in an unknown way"),
        (b"\x80\x02" + TENSOR + b")R.", "unknown way"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "unknown way"),
        (b"cos\nsystem\n.", r"save model\.state_dict"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02" + b"0" * 300_000 + b".", "opcode POP"),
        (b"\x80\x02" + b"N" * 300_000 + b".", "more than 200000 steps"),
        (bytes(1 << 22) + b".", "more than the 4194304"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\xff.", "damaged"),
    ],
)
def test_programs_that_make_no_sense(program: bytes, reason: str | None) -> None:
    if reason is None:
        assert pickled.tensors(Path("m.pth"), program) == {}
    else:
        with pytest.raises(CheckpointError, match=rf"m\.pth: .*{reason}"):
            pickled.tensors(Path("m.pth"), program)


def test_nested_tuples_that_double_take_no_time() -> None:
    doubling = b"\x80\x02}N" + b"q\x01h\x01\x86" * 60  # a tuple of two of the last one, sixty times
    for end in (b"Ns.", b"Q.", b")R.", b"R.", b"."):
        with pytest.raises(CheckpointError) as raised:
            pickled.tensors(Path("m.pth"), doubling + end)
        assert len(str(raised.value)) < 300


def number(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor_program(
    *,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    numel: int = 6,
    key: str = "0",
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
    rebuilt = TENSOR + b"(" + storage + number(offset) + sizes + b"\x89" + b"ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + rebuilt + b"s."


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"shape": (1, 6), "strides": (99, 1)}, None),  # the stride of a single row says nothing
        ({"shape": (3, 2), "strides": (1, 3)}, "one after the other"),
        ({"shape": (1 << 40, 1 << 40)}, "one after the other"),
        ({"shape": (1 << 40, 3)}, "does not lie in its storage"),
        ({"shape": (-2, 3)}, "impossible shape"),
        ({"shape": (0, 3)}, "impossible shape"),
        ({"strides": (1,)}, "impossible shape"),
        ({"offset": 1}, "does not lie in its storage"),
        ({"offset": -1}, "does not lie in its storage"),
        ({"offset": 1, "numel": 7}, r"'w': it needs bytes 4 to 28, but there are 24"),
        ({"shape": (3, 3), "numel": 9}, r"'w': it needs bytes 0 to 36, but there are 24"),
        ({"numel": -6}, "storage as|storage in an unknown way|stores numbers"),
        ({"key": "1"}, r"'w': its storage '1' is not in the archive"),
        ({"key": "../data.pkl"}, "is not in the archive"),
    ],
)
def test_tensors_stay_in_their_storage(changes: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    path = as_zip(tmp_path / "m.pth", tensor_program(**changes), data__0=np.arange(6, dtype="<f4").tobytes())
    if reason is None:
        [tensor] = torchfile.read(path)
        np.testing.assert_array_equal(tensor.data.view("<f4").ravel(), np.arange(6))
    else:
        with pytest.raises(CheckpointError, match=rf"m\.pth: .*({reason})"):
            torchfile.read(path)


def test_archives_that_torch_never_writes(tmp_path: Path) -> None:
    good, numbers = tensor_program(), bytes(24)
    path = tmp_path / "m.pth"
    cases: list[tuple[bytes, str]] = []
    as_zip(path, good, compression=zipfile.ZIP_DEFLATED, data__0=numbers)
    cases.append((path.read_bytes(), "compressed or encrypted"))
    as_zip(path, good, byteorder=b"big", data__0=numbers)
    cases.append((path.read_bytes(), "not little-endian"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    cases.append((path.read_bytes(), r"expected one data\.pkl"))
    whole = as_zip(path, good, data__0=numbers).read_bytes()
    cases += [
        (whole[:-22], "directory is missing"),
        (whole[:-5], "does not lie in"),
        (whole.replace(b"PK\1\2", b"PK\1\3"), "expected the zip record"),
        (whole[:4] + whole[4:].replace(b"PK\3\4", b"PK\3\5"), "expected the zip record"),
        (whole[:-6] + b"\xff\xff\xff\x7f" + whole[-2:], "is impossible here"),
        (whole[:-12] + b"\xff\xff" + whole[-10:], "zip record"),
        (pickle.dumps({}, 2), "not a zip archive"),
    ]
    for content, reason in cases:
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"m\.pth: .*{reason}"):
            torchfile.read(path)


def test_the_format_of_old_torch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a zip archive"):
        torchfile.read(path)


def test_archives_of_64_bit_sizes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("archive/data.pkl", tensor_program()), ("archive/data/0", bytes(24))):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    path = tmp_path / "m.pth"
    path.write_bytes(buffer.getvalue())
    assert [tensor.name for tensor in torchfile.read(path)] == ["w"]
