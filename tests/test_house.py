"""The rules of DESIGN.md that a machine can read: imports run one way, and `import ventoux` brings nothing heavy."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ventoux"

# Lower never imports higher; rooms of one row do not import each other.
FLOORS = [
    ["errors"],
    ["mapped", "config"],
    ["gguf", "batch"],
    ["tokenizer", "quant"],
    ["chat", "checkpoint"],
    ["cpu", "pytorch"],
    ["decoding"],
    ["engine"],
    ["backends", "vocabulary"],
    ["model", "conversion"],
    ["loading"],
    ["server"],
    ["cli"],
    ["__main__", "convert_mistral_weights_to_hf"],
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "transformers", "fastapi", "mistral_common", "huggingface_hub", "typer", "rich", "prompt_toolkit"}


def imports(file: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which room they enter"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str | None:
    """ventoux.quant.formats.FORMATS -> quant; names that the package itself defines (load, __version__) -> None."""
    parts = name.split(".")
    return parts[1] if parts[0] == "ventoux" and len(parts) > 1 and parts[1] in FLOOR else None


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_run_one_way(file):
    own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the public face opens every door, lazily
    assert own in FLOOR, f"{own} is a new room: give it a floor here and a line in DESIGN.md"
    for name in imports(file):
        room = room_of(name)
        if room and room != own:
            assert FLOOR[room] < FLOOR[own], f"{own} may not import {name}: its floor is not below"


def test_every_room_is_in_the_design():
    design = (ROOT / "DESIGN.md").read_text()
    for room in FLOOR:
        assert re.search(rf"\b{room}(\.py|/|\b)", design), f"DESIGN.md does not mention {room}"


def test_import_ventoux_is_light():
    code = "import sys, ventoux, ventoux.model; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(out.split())
    code = "import sys, ventoux; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


# rooms and files whose libraries come with an extra
EXTRAS = {"pytorch": "torch", "server": "server", "server/tracing.py": "otel", "decoding/grammar.py": "grammar"}
NOT_IMPORTED = {"accelerate"}  # transformers needs it, for device maps and training
OURS = "ventoux"  # an extra may hold another
# one name to import, several packages
PACKAGED = {"opentelemetry": {f"opentelemetry_{part}" for part in ("api", "sdk", "exporter_otlp_proto_http")}}


def test_the_package_names_what_it_imports():
    """Every third-party import of a room is a dependency or in the room's extra, and the other way round."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = names(project["dependencies"])
    used: dict[str | None, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        third_party = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - {"ventoux"}
        own = file.relative_to(SOURCE)
        used.setdefault(EXTRAS.get(own.as_posix()) or EXTRAS.get(own.parts[0]), set()).update(third_party)
    assert used.pop(None) == base
    for extra, third_party in used.items():
        packages = set().union(*(PACKAGED.get(name, {name}) for name in third_party - base))
        assert packages == names(project["optional-dependencies"][extra]) - NOT_IMPORTED - {OURS}, extra


def names(lines: list[str]) -> set[str]:
    """numpy>=1.26 -> numpy"""
    return {re.split(r"[>=\[; ]", line)[0].replace("-", "_").lower() for line in lines}


def test_files_can_be_held_in_mind():
    long = {str(f.relative_to(ROOT)): n for f in SOURCE.rglob("*") if f.is_file() and (n := lines(f)) > 350}
    assert not long


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.suffix in (".py", ".h", ".cpp", ".pyi") else 0
