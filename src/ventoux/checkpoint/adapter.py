"""LoRA adapters as PEFT saves them: adapter_config.json beside adapter_model.safetensors, or .bin read safely.

A linear layer's y = W x becomes y + scale * B (A x), with A [r, in] and B [out, r] (https://arxiv.org/abs/2106.09685),
and scale = lora_alpha / r, or lora_alpha / sqrt(r) when it is rank-stabilized (https://arxiv.org/abs/2312.03732).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ventoux.checkpoint import names, shards, strict_json
from ventoux.checkpoint.reading import ADAPTER
from ventoux.checkpoint.stored import Stored, damaged
from ventoux.checkpoint.tensor import Tensor
from ventoux.config import ModelConfig
from ventoux.errors import CheckpointError, shown

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Keys of the description that are read, and those that tell how an adapter was made and not what it computes: the
# tensors say themselves which modules they belong to. All others have to be off, those of a later PEFT too.
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights")
SILENT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "velora_config",
}
# Ways to begin that leave the model's own weights alone: with the others (pissa, olora, loftq ...) an adapter belongs
# to weights that are not the base model's.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
MERGE = "merge it into its base model (peft: merge_and_unload(), save_pretrained()) and load that"

_TENSOR = re.compile(r"base_model\.model\.(.{1,200})\.lora_([AB])\.weight", re.ASCII)
_PLAIN = re.compile(r"\^?[\w.]+", re.ASCII)


@dataclass(frozen=True)
class Pair:
    """What is added to one linear layer: scale * B (A x)."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter whose shapes fit a model: `pairs` by our names, such as "layers.0.self_attn.q_proj"."""

    path: Path
    pairs: dict[str, Pair]


@dataclass(frozen=True)
class _Settings:
    """What adapter_config.json says of ranks and scales; a pattern's first name that fits a module counts."""

    rank: int
    alpha: float
    root: bool
    ranks: dict[str, int]
    alphas: dict[str, float]

    def rank_of(self, module: str) -> int:
        return int(_first(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return _first(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.root else rank)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter, perhaps beside a model."""
    return (path / ADAPTER).is_file()


def read_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """The LoRA adapter in a folder, for a model of this config; its tensors are views of its file.

    Raises CheckpointError for what is damaged or does not fit the model, and for what is more than plain LoRA on
    the linear layers of attention and MLP (DoRA, biases, whole modules, embeddings, other methods of PEFT).
    """
    if not isinstance(folder, str | Path):
        raise CheckpointError(f"expected the path of a LoRA adapter's folder, found {shown(folder)}")
    path = Path(folder)
    if not is_adapter(path):
        found = (
            "it is a file" if path.is_file() else "it is not in there" if path.is_dir() else "there is no such folder"
        )
        raise CheckpointError(f"{path}: expected a LoRA adapter's folder with {ADAPTER}, as PEFT saves it; {found}")
    described = strict_json.read(path / ADAPTER)
    settings = _settings(described, path / ADAPTER)
    files = [path / name for name in WEIGHTS if (path / name).exists()]
    if not files:
        raise CheckpointError(f"{path}: {ADAPTER} is here, but neither {' nor '.join(WEIGHTS)}")
    pairs = _pairs({name: parts[0] for name, parts in shards.read(files[:1]).items()}, settings, config, files[0])
    return Adapter(path, pairs)


def _settings(described: dict[str, Any], source: Path) -> _Settings:
    """Ranks and scales of plain LoRA; anything more is refused."""
    kind = described.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{source}: peft_type: expected LORA, found {shown(kind)}; {MERGE}")
    begun = described.get("init_lora_weights")
    if not any(begun is each or (isinstance(each, str) and begun == each) for each in BEGINNINGS):
        raise CheckpointError(
            f"{source}: init_lora_weights: {shown(begun)} changes the base model's own weights too; {MERGE}"
        )
    others = {key: value for key, value in described.items() if key not in READ and key not in SILENT and value}
    if described.get("bias", "none") != "none":
        others["bias"] = described["bias"]
    for key, value in others.items():
        raise CheckpointError(f"{source}: {shown(key)}: {shown(value)} is more than plain LoRA, which is read; {MERGE}")
    root = described.get("use_rslora", False)
    if not isinstance(root, bool):
        raise CheckpointError(f"{source}: use_rslora: expected true or false, found {shown(root)}")
    rank = _rank(described.get("r"), source, "r")
    alpha = _number(described.get("lora_alpha"), source, "lora_alpha")
    ranks, alphas = (_pattern(described.get(f"{key}_pattern"), source, f"{key}_pattern") for key in ("rank", "alpha"))
    return _Settings(
        rank,
        alpha,
        root=root,
        ranks={name: _rank(value, source, "rank_pattern") for name, value in ranks.items()},
        alphas={name: _number(value, source, "alpha_pattern") for name, value in alphas.items()},
    )


def _pairs(stored: dict[str, Stored], settings: _Settings, config: ModelConfig, file: Path) -> dict[str, Pair]:
    """A and B of each module, every tensor used once, of the shapes that the model and the ranks want."""
    table = names.table(config, "huggingface").values()
    layers = {name.removesuffix(".weight"): shape for name, shape in table if ".self_attn." in name or ".mlp." in name}
    halves: dict[str, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        match = _TENSOR.fullmatch(name)
        module = match[1].removeprefix("model.") if match else ""
        if match is None or module not in layers:
            raise damaged(
                file,
                name,
                f"expected lora_A or lora_B of a linear layer of attention or MLP, and this model has"
                f" {config.num_layers} layers; if it is of another model, load it with that one; if not, {MERGE}",
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    if not halves:
        raise CheckpointError(f"{file}: there are no tensors in it")
    pairs = {}
    for theirs, pair in halves.items():
        ours, rank = theirs.removeprefix("model."), settings.rank_of(theirs)
        out, columns = layers[ours]
        if ours in pairs:
            raise CheckpointError(f"{file}: {shown(ours)} stands there twice, with and without model. before it")
        shapes = {"A": (rank, columns), "B": (out, rank)}
        found = {
            half: _tensor(pair.get(half), shapes[half], file, f"base_model.model.{theirs}.lora_{half}.weight")
            for half in shapes
        }
        pairs[ours] = Pair(found["A"], found["B"], settings.scale_of(theirs))
    return pairs


def _tensor(stored: Stored | None, shape: tuple[int, int], file: Path, name: str) -> Tensor:
    if stored is None:
        raise damaged(file, name, "it is missing; the file is damaged, fetch it again")
    if stored.shape != shape:
        raise damaged(
            file,
            name,
            f"expected shape {shape} by the model and {ADAPTER}, found {stored.shape}; is the base another?",
        )
    tensor = Tensor(stored.name, shape, stored.format, stored.data)
    if not np.isfinite(tensor.float32()).all():
        raise damaged(
            file, name, "it holds numbers that are not finite; the adapter is damaged, or its training failed"
        )
    return tensor


def _rank(value: Any, source: Path, key: str) -> int:
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{source}: {key}: expected a whole number of at least 1, found {shown(value)}")
    return value


def _number(value: Any, source: Path, key: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e6:  # which NaN is not
        raise CheckpointError(f"{source}: {key}: expected a number, found {shown(value)}")
    return float(value)


def _pattern(value: Any, source: Path, key: str) -> dict[str, Any]:
    """Names of modules, or ends of names, and what counts for them.

    PEFT takes them for regular expressions; one from a stranger can take for ever, so only plain names are read.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key}: expected an object from modules to numbers, found {shown(value)}")
    plain = {name.replace("\\.", "."): number for name, number in value.items()}
    if odd := [name for name in plain if not _PLAIN.fullmatch(name)]:
        raise CheckpointError(f"{source}: {key}: expected names of modules, found the pattern {shown(odd[0])}; {MERGE}")
    return plain


def _first(pattern: Mapping[str, float], module: str, otherwise: float) -> float:
    """The number of the first name that the module has or ends with, at a dot; ^ is for whole names.

    {"1.self_attn.q_proj": 4, "q_proj": 8}: layers.1.self_attn.q_proj has 4, layers.11.self_attn.q_proj has 8.
    """
    for name, number in pattern.items():
        if module == name.removeprefix("^") or (name[0] != "^" and module.endswith(f".{name}")):
            return number
    return otherwise
