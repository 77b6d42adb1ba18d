"""Write today's instructions of kernel calls, and allocations of a decode step, into counts.json.

python tests/counting/renew.py
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from counting import RECORD, Counter, allocations, calls, compiler
from ventoux.cpu import instruction_sets


def main() -> None:
    if not compiler():
        sys.exit("this is a build with debug information or a sanitizer; its counts say nothing")
    known = json.loads(RECORD.read_text())
    others = known["instructions"] if known["compiler"] == compiler() else {}  # of instruction sets of other machines
    record = {"compiler": compiler(), "instructions": others, "allocations": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = Counter(folder)
        for isa in instruction_sets():
            record["instructions"][isa] = {name: count(call) for name, call in calls(isa).items()}
        for layers in (2, 4):
            path = folder / str(layers)
            tiny.save_hf(tiny.tiny_model(num_hidden_layers=layers), path)
            record["allocations"][str(layers)] = allocations(path, folder)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
