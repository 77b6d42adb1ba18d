"""`convert`: a checkpoint in another layout or number format."""

import re
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ventoux.conversion import Converted

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """5GB, 500MB, 2GiB or a number of bytes -> bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]I?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    nbytes = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if nbytes < 1:
        raise ArgumentTypeError(f"expected a size such as 5GB or 500MB, found {text!r}")
    return nbytes


def summarize(done: "Converted") -> None:
    """One line of what was written, and a line for each thing that is not as it was."""
    formats = ", ".join(f"{count} {format}" for format, count in done.formats.items()) or "the tokenizer alone"
    print(f"{done.path}: {done.nbytes / 1e6:,.1f} MB, {formats}")
    for remark in done.remarks:
        print(f"  {remark}")
