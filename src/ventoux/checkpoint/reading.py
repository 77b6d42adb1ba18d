"""Reading a checkpoint, whatever its layout: config, names and shapes checked, every weight a view of its file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ventoux import config, gguf
from ventoux.checkpoint import ggml, names, shards, strict_json
from ventoux.checkpoint.stored import Stored, damaged
from ventoux.checkpoint.tensor import Tensor
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError, shown

ADAPTER = "adapter_config.json"  # beside what PEFT saves
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model's description and its weights, still packed.

    kind      "raw" (mistral-src's params.json and consolidated files), "huggingface" or "gguf"
    tensors   by Hugging Face's names without the `model.` prefix; no lm_head.weight when the embeddings are tied
    metadata  the key/values of a GGUF file, {} for others
    """

    path: Path
    kind: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are packed in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read(path: str | Path, *, prefer_raw: bool = False) -> Checkpoint:
    """The checkpoint in a folder (raw or Hugging Face) or a .gguf file.

    A folder that holds both layouts is read as Hugging Face's, or as raw with `prefer_raw`: the two are never mixed.
    Nothing is copied but tensors that were split over several raw files. Raises CheckpointError or ConfigError.
    """
    path = Path(path)
    if path.is_file():
        parts = path.name.startswith("consolidated") or path.suffix in (".json", ".safetensors", ".pth", ".bin")
        if parts and not gguf.begins(path):
            raise CheckpointError(f"{path}: a checkpoint is more than this file; give the folder {path.parent}")
        return _read_gguf(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such file or folder")
    weights = [path / name for name in WEIGHTS if (path / name).exists()] * (path / "config.json").exists()
    raw = sorted(path.glob("consolidated*.safetensors")) or sorted(path.glob("consolidated*.pth"))
    raw *= (path / "params.json").exists()
    if weights and not (raw and prefer_raw):
        return _read_huggingface(path, weights[0])
    if raw:
        return _read_raw(path, raw)
    if (path / ADAPTER).exists():
        raise CheckpointError(
            f"{path}: this is a LoRA adapter, which is no model by itself: load its base model with it (--adapter), or"
            " merge the two first (peft: merge_and_unload(), save_pretrained()) and give what that has written"
        )
    files = sorted(path.glob("*.gguf"))
    hint = f"; name the GGUF file itself: {files[0]}" if files else ""
    raise CheckpointError(
        f"{path}: expected config.json with model.safetensors (or shards with an index), or params.json with"
        f" consolidated.00.pth or consolidated.safetensors; {_missing(path)}found {_listing(path)}{hint}"
    )


def _read_huggingface(path: Path, weights: Path) -> Checkpoint:
    generation = path / "generation_config.json"
    model = config.from_huggingface(
        strict_json.read(path / "config.json"),
        source=str(path / "config.json"),
        generation=strict_json.read(generation) if generation.exists() else None,
    )
    stored = shards.read_index(weights) if weights.suffix == ".json" else shards.read([weights])
    if model.tie_embeddings:
        _drop_tied(stored, model, head="lm_head.weight", embedding="model.embed_tokens.weight")
    return Checkpoint(path, "huggingface", model, _understood(stored, model, path, kind="huggingface"), {})


def _read_raw(path: Path, weights: list[Path]) -> Checkpoint:
    params = path / "params.json"
    stored = shards.read(weights)
    embedding = stored.get("tok_embeddings.weight")
    rows = embedding[0].shape[0] if embedding and len(weights) == 1 and embedding[0].shape else None
    model = config.from_params(strict_json.read(params), source=str(params), vocab_size=rows)
    if model.tie_embeddings:
        _drop_tied(stored, model, head="output.weight", embedding="tok_embeddings.weight")
    elif "output.weight" not in stored:
        reason = f'it is missing; if the embedding takes its place, say "tied_embeddings": true in {params.name}'
        raise damaged(path, "output.weight", reason)
    return Checkpoint(path, "raw", model, _understood(stored, model, path, kind="raw"), {})


def _read_gguf(path: Path) -> Checkpoint:
    file = gguf.read(path)
    stored = {tensor.name: [tensor] for tensor in ggml.tensors(file)}
    if "token_embd.weight" not in stored:
        raise damaged(path, "token_embd.weight", "it is missing; this is no language model")
    frequencies = stored.pop("rope_freqs.weight", None)
    if frequencies and not _all_ones(frequencies[0]):
        raise damaged(path, "rope_freqs.weight", "it scales the rotary frequencies, which is not supported")
    model = config.from_gguf(
        file.metadata,
        source=str(path),
        vocab_size=stored["token_embd.weight"][0].shape[0],
        tie_embeddings="output.weight" not in stored,
    )
    return Checkpoint(path, "gguf", model, _understood(stored, model, path, kind="gguf"), file.metadata)


def _drop_tied(stored: dict[str, list[Stored]], model: ModelConfig, *, head: str, embedding: str) -> None:
    """Forget a head that was saved although the config ties it to the embedding; it must be the same."""
    if head in stored and embedding in stored:
        shape = (model.vocab_size, model.hidden_size)
        own, shared = (shards.joined(stored[name], shape) for name in (head, embedding))
        if own.shape != shared.shape or not np.array_equal(own.data, shared.data):
            raise damaged(own.file, head, "the config ties it to the embedding, but it differs")
        del stored[head]


def _all_ones(tensor: Stored) -> bool:
    return tensor.format == "F32" and bool((tensor.data.view("<f4") == 1).all())


def _understood(stored: dict[str, list[Stored]], model: ModelConfig, path: Path, *, kind: str) -> dict[str, Tensor]:
    """Our tensors by our names: each of the model's there once and of the right shape, and nothing else."""
    table = names.table(model, kind)
    left = {name for name in stored if name not in table and not name.endswith(names.DERIVED)}
    if left:
        listed = ", ".join(shown(name) for name in sorted(left)[:4])
        raise CheckpointError(f"{path}: {len(left)} tensor(s) that the config does not account for: {listed}")
    tensors = {}
    for name, (ours, shape) in table.items():
        if name not in stored:
            raise damaged(path, name, f"it is missing; expected {ours} of shape {shape}")
        found = shards.joined(stored[name], shape)
        if found.shape != shape:
            raise damaged(found.file, name, f"expected shape {shape} by the config, found {found.shape}")
        tensors[ours] = Tensor(ours, shape, found.format, found.data, names.row_order(ours, model, kind))
    return tensors


def _missing(path: Path) -> str:
    for described in ("config.json", "params.json"):
        if (path / described).exists():
            return f"{described} is here, its weights are not; "
    return ""


def _listing(path: Path) -> str:
    found = sorted(entry.name for entry in path.iterdir())
    return ", ".join(shown(name) for name in found[:8]) + (", ..." if len(found) > 8 else "") if found else "nothing"
