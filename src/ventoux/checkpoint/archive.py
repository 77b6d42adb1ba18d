"""The zip container, as far as torch.save uses it: members stored uncompressed, to be mapped where they lie.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3.7 local header, 4.3.12 central directory,
4.3.14-16 its end). The standard library's zipfile copies what it reads; weights are to stay in the file.
"""

import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ventoux.checkpoint.stored import refuse_overlaps
from ventoux.errors import CheckpointError, shown

Bytes = NDArray[np.uint8]

MEMBERS = 1 << 16
END, END_64, LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
ENTRY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
LONGEST_END = 22 + 65535  # the end record and the longest comment
IN_EXTRA = 0xFFFFFFFF  # a size or offset that stands in the 64-bit extra field instead


def members(path: Path, data: Bytes) -> dict[str, Bytes]:
    """name -> bytes of every member, as views; raises CheckpointError when the archive is not a plain one."""
    return _Archive(path, data).members()


class _Archive:
    def __init__(self, path: Path, data: Bytes) -> None:
        self.path = path
        self.data = data

    def fail(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {reason}; the archive is cut off or damaged, fetch it again")

    def fields(self, layout: str, at: int, magic: bytes) -> tuple[Any, ...]:
        """The little-endian fields of the record that must begin with `magic` at byte `at`."""
        layout = "<4s" + layout
        end = at + struct.calcsize(layout)
        if at < 0 or end > len(self.data):
            self.fail(f"a zip record at byte {at} does not lie in the file's {len(self.data)} bytes")
        found, *values = struct.unpack(layout, self.data[at:end].tobytes())
        if found != magic:
            self.fail(f"expected the zip record {magic!r} at byte {at}, found {found!r}")
        return tuple(values)

    def take(self, at: int, length: int) -> Bytes:
        if at + length > len(self.data):
            self.fail(f"{length} bytes at {at} do not lie in the file's {len(self.data)} bytes")
        return self.data[at : at + length]

    def members(self) -> dict[str, Bytes]:
        count, position, end = self.directory()
        found: dict[str, Bytes] = {}
        extents = []
        for _ in range(count):
            flags, method, packed, size, lengths, offset = self.entry(position)
            name = self.take(position + 46, lengths[0]).tobytes().decode("utf-8", "surrogateescape")
            extra = self.take(position + 46 + lengths[0], lengths[1]).tobytes()
            size, packed, offset = self.widened(extra, size, packed, offset)
            position += 46 + sum(lengths)
            if position > end:
                self.fail("the zip directory is longer than it says")
            if name in found:
                self.fail(f"member {shown(name)} stands twice")
            if flags & 1 or method != 0 or packed != size:
                self.fail(f"member {shown(name)} is compressed or encrypted, which torch.save never does")
            *_, name_length, extra_length = self.fields("5H3I2H", offset, LOCAL)
            begin = offset + 30 + name_length + extra_length
            found[name] = self.take(begin, size)
            extents.append((offset, begin + size, name))
        refuse_overlaps(self.path, extents)
        return found

    def directory(self) -> tuple[int, int, int]:
        """How many members the directory lists, and its first and last byte; from the 64-bit record if there is one."""
        tail = self.data[-LONGEST_END:].tobytes()
        at = len(self.data) - len(tail) + tail.rfind(END)
        if tail.rfind(END) < 0:
            self.fail("the zip directory is missing")
        _, _, _, count, size, offset, _ = self.fields("4H2IH", at, END)
        if at >= 20 and self.data[at - 20 : at - 16].tobytes() == LOCATOR_64:
            _, at, _ = self.fields("IQI", at - 20, LOCATOR_64)
            *_, count, size, offset = self.fields("Q2H2I4Q", at, END_64)
        if count > MEMBERS or offset + size > at:
            self.fail(f"a zip directory of {count} members at byte {offset} is impossible here")
        return count, offset, offset + size

    def entry(self, at: int) -> tuple[int, int, int, int, tuple[int, int, int], int]:
        """flags, method, packed size, size, lengths of name, extra field and comment, offset of the local header."""
        _, _, flags, method, _, _, _, packed, size, *lengths, _, _, _, offset = self.fields("6H3I5H2I", at, ENTRY)
        return flags, method, packed, size, (lengths[0], lengths[1], lengths[2]), offset

    def widened(self, extra: bytes, *numbers: int) -> list[int]:
        """size, packed size and offset, those that are IN_EXTRA taken in this order from extra field 1."""
        wide = b""
        while len(extra) >= 4:
            kind, length = struct.unpack("<2H", extra[:4])
            if kind == 1:
                wide = extra[4 : 4 + length]
            extra = extra[4 + length :]
        found = []
        for number in numbers:
            if number == IN_EXTRA:
                if len(wide) < 8:
                    self.fail("a 64-bit size is missing")
                number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
            found.append(number)
        return found
