"""What a torch checkpoint's pickle says, read without running it.

A pickle is a program for a small stack machine, and unpickling calls whatever it names. Here the opcodes are walked
by a machine of our own that knows the few which torch.save writes for a dict of tensors, and which calls nothing: a
global is only a name, and "calling" one of the names below builds one of the inert records below. Everything else
is refused.
"""

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ventoux.errors import CheckpointError, shown

LARGEST = 1 << 22  # bytes; a model of 80 layers has 120,000
STEPS = 200_000  # opcodes; the same model has 30,000
STORAGES = {"torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16"}
CALLABLE = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the archive's member data/<key>."""

    key: str
    format: str
    numel: int


@dataclass(frozen=True)
class Strided:
    """A tensor: a contiguous piece of a storage, offset in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


def tensors(path: Path, program: bytes) -> dict[str, Strided]:
    """name -> tensor, as the pickle of a state dict says; raises CheckpointError on anything else."""
    machine = _Machine(path)
    if len(program) > LARGEST:
        machine.fail(f"it has {len(program)} bytes, more than the {LARGEST} that are allowed")
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if step > STEPS:
                machine.fail(f"it has more than {STEPS} steps")
            machine.run(opcode.name, argument)
    except (ValueError, OverflowError) as error:
        machine.fail(f"it is damaged ({shown(str(error))})")
    found = machine.pop()
    if not isinstance(found, dict) or not all(isinstance(value, Strided) for value in found.values()):
        machine.fail("expected a dict from names to tensors; save model.state_dict() itself")
    return found


class _Mark:
    """Where a tuple or a run of dict items begins on the stack."""


class _Machine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def fail(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: its pickle is not one of plain tensors: {reason}")

    def pop(self) -> Any:
        if not self.stack:
            self.fail("it takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while not isinstance(item := self.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def run(self, opcode: str, argument: Any) -> None:
        """One step. The opcodes are those of protocol 2, as torch.save writes it."""
        if opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif opcode in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                self.fail(f"it remembers nothing under {argument}")
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.stack.append(_Mark())
        elif opcode == "EMPTY_DICT":
            self.stack.append({})
        elif opcode == "TUPLE":
            self.stack.append(tuple(self.pop_to_mark()))
        elif opcode in FIXED_TUPLES:
            self.stack.append(tuple([self.pop() for _ in range(FIXED_TUPLES[opcode])][::-1]))
        elif opcode == "SETITEM":
            self.set_items([self.pop(), self.pop()][::-1])
        elif opcode == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif opcode == "GLOBAL":
            self.stack.append(Global(argument))
        elif opcode == "BINPERSID":
            self.stack.append(self.storage(self.pop()))
        elif opcode == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(self.built(function, arguments))
        elif opcode == "BUILD":  # a state dict's _metadata: attributes of the dict, which hold no weights
            self.pop()
            self.top_dict()
        elif opcode not in ("PROTO", "STOP"):
            self.fail(f"it has the opcode {opcode}")

    def top(self) -> Any:
        self.stack.append(item := self.pop())
        return item

    def top_dict(self) -> dict[str, Any]:
        if not isinstance(found := self.top(), dict):
            self.fail("it puts items into something that is no dict")
        return found

    def set_items(self, items: list[Any]) -> None:
        target = self.top_dict()
        if len(items) % 2:
            self.fail("a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # only strings: the hash of nested tuples can take forever
            if not isinstance(key, str) or key in target:
                self.fail(f"a dict's key is no string or stands twice: {shown(key)}")
            target[key] = value

    def storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Global(name), str(key), str(), int(numel)) if name in STORAGES and numel >= 0:
                return Storage(key, STORAGES[name], numel)
            case ("storage", Global(name), *_):
                self.fail(f"it stores numbers as {shown(name)}; only float32, float16 and bfloat16 are read")
        self.fail("it mentions a storage in an unknown way")

    def built(self, function: Any, arguments: Any) -> Any:
        """What calling `function` would have made, if it is one of CALLABLE."""
        if not isinstance(function, Global) or function.name not in CALLABLE:
            name = function.name if isinstance(function, Global) else function
            self.fail(f"it wants to call {shown(name)}, which is not allowed; nothing was run. Do not trust this file")
        match function.name.split()[1], arguments:
            case "OrderedDict", ():
                return {}
            case "_rebuild_parameter", (Strided() as tensor, *_):
                return tensor
            case "_rebuild_tensor_v2", (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
                return self.strided(storage, offset, shape, strides)
        self.fail(f"it calls {function.name} in an unknown way")

    def strided(self, storage: Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> Strided:
        sizes = (*shape, *strides)
        if (
            len(shape) > 8
            or len(shape) != len(strides)
            or any(type(n) is not int or not 0 < n < 1 << 48 for n in sizes)
        ):
            self.fail("a tensor has an impossible shape")
        expected = 1
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size > 1 and stride != expected:
                self.fail("a tensor's rows do not lie one after the other; save it with .contiguous()")
            expected *= size
        if offset < 0 or offset + expected > storage.numel:
            self.fail(f"a tensor of {expected} numbers at {offset} does not lie in its storage of {storage.numel}")
        return Strided(storage, offset, shape)
