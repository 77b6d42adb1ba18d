"""From any checkpoint to any layout, tensor by tensor: the model is never in memory as a whole."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ventoux import checkpoint, gguf, tokenizer
from ventoux.checkpoint import Checkpoint, gguf_writer, names, pull, safetensors_writer, strict_json
from ventoux.checkpoint.outgoing import Outgoing, Piece, outgoing
from ventoux.checkpoint.packaged import Progress
from ventoux.config import ModelConfig, to_params
from ventoux.config.params import CONTEXT_LENGTH
from ventoux.conversion import descriptions, texts, weights
from ventoux.conversion.destination import check, drafted
from ventoux.errors import ConversionError

SHARD_SIZE = 5_000_000_000  # bytes of a file of Hugging Face's layout: what transformers has long taken
NO_MODEL = ModelConfig(1 << 24, 1, 1, 1, 1, 1, 2, 1e-5, 1e4, CONTEXT_LENGTH, (None,))  # for a tokenizer alone
KINDS = {"raw": "raw", "hf": "huggingface", "gguf": "gguf"}


@dataclass(frozen=True)
class Converted:
    """What was written: where, how many bytes in all, tensors by format, and what did not go along as it was."""

    path: Path
    nbytes: int
    formats: dict[str, int]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file to be written: its name in the folder, None for a lone one; its length; its bytes."""

    name: str | None
    nbytes: int
    pieces: Iterable[Piece]


def convert(
    src: str | Path | None,
    dst: str | Path,
    *,
    to: Literal["raw", "hf", "gguf"],
    dtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None = None,
    shard_size: int | None = None,
    window: int | Literal["off"] | None = None,
    context_length: int | None = None,
    chat_template: str | None = None,
    prefer_raw: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a checkpoint in another layout or number format: a folder ("raw", "hf"), or a .gguf file.

    src             what `ventoux.load` takes: a folder, a .gguf file, an alias, a hub id; None is the default model
    dst             what must not be there yet, or be an empty folder; it appears when it is complete, and not before
    dtype           None keeps what the target can hold; block formats become f32 in folders, which is exact
    shard_size      bytes of a weights file of "hf" (5e9); a larger tensor has a file of its own
    window          as in `ventoux.load`: for a source that does not say it, or says it wrongly
    context_length  for a source that does not say it, or says it wrongly
    chat_template   a Jinja text, for a source that has none or a wrong one
    prefer_raw      of a folder that holds both layouts, take mistral-src's; otherwise Hugging Face's is taken
    progress        called with (bytes written, bytes in all); None draws a bar on standard error

    Raises ConversionError, or what reading the source raises.
    """
    if to not in KINDS:
        raise ConversionError(f"to must be one of {', '.join(KINDS)}, found {to!r}")
    if shard_size is not None and to != "hf":
        raise ConversionError(f"shard_size is for hf: {to} has one weights file")
    if shard_size is not None and (type(shard_size) is not int or shard_size < 1):
        raise ConversionError(f"shard_size must be a number of bytes of at least 1, found {shard_size!r}")
    weights.check(dtype, to=to)
    target, folder = Path(dst), to != "gguf"
    check(target, folder=folder)
    source = checkpoint.read(pull.resolve(None if src is None else str(src)), prefer_raw=prefer_raw)
    source = replace(source, config=_told(source.config, window=window, context_length=context_length))
    chosen, remarks = weights.formats(source, to=to, dtype=dtype)
    tensors = _outgoing(source, chosen, kind=KINDS[to])
    words = texts.gather(source, to=to, template=chat_template)
    described = replace(source, config=words.config)
    if to == "gguf":
        files = [_gguf(described, tensors, words, keep=window is None and context_length is None)]
    else:
        files = [*_texts(words), *_folder(described, chosen, tensors, shard_size=shard_size or SHARD_SIZE, to=to)]
    if to == "hf" and len(set(source.config.windows)) > 1:
        remarks.append("transformers ignores layer_types in a mistral: there every layer would have the window")
    total = sum(file.nbytes for file in files)
    with drafted(target, folder=folder, total=total, progress=progress or pull.bar(target.name, "writing")) as draft:
        for file in files:
            draft.write(file.name, file.pieces)
    counts = Counter(tensor.format for tensor in tensors)
    return Converted(target, total, dict(counts.most_common()), (*remarks, *words.remarks))


def convert_tokenizer(src: str | Path, dst: str | Path, *, chat_template: str | None = None) -> Converted:
    """Write a folder's tokenizer with what transformers asks for beside it, and no weights. Raises as `convert`."""
    path, target = Path(src), Path(dst)
    check(target, folder=True)
    if tokenizer.choose(path) is None:
        raise ConversionError(f"{path}: expected a tokenizer (tokenizer.model or tekken.json), found none")
    words = texts.gather(Checkpoint(path, "raw", NO_MODEL, {}, {}), to="hf", template=chat_template)
    files = _texts(words)
    total = sum(file.nbytes for file in files)
    with drafted(target, folder=True, total=total, progress=lambda *_: None) as draft:
        for file in files:
            draft.write(file.name, file.pieces)
    return Converted(target, total, {}, tuple(words.remarks))


def _told(config: ModelConfig, *, window: int | str | None, context_length: int | None) -> ModelConfig:
    if context_length is not None:
        if type(context_length) is not int or context_length < 1:
            raise ConversionError(f"context_length must be a whole number of at least 1, found {context_length!r}")
        config = replace(config, context_length=context_length)
    if window is None:
        return config
    return config.with_window(None if window == "off" else window)  # type: ignore[arg-type]


def _outgoing(source: Checkpoint, chosen: dict[str, str], *, kind: str) -> list[Outgoing]:
    """The model's tensors in the order in which they are used: the embedding first, the last norm and the head last."""
    found = [(name, ours) for name, (ours, _) in names.table(source.config, kind).items()]
    found.sort(key=lambda pair: pair[1] in ("norm.weight", "lm_head.weight"))
    return [outgoing(source.tensors[ours], name, chosen[ours], config=source.config, kind=kind) for name, ours in found]


def _gguf(source: Checkpoint, tensors: list[Outgoing], words: texts.Texts, *, keep: bool) -> File:
    """The one file. A GGUF source keeps its metadata, its tensors their order: without other changes, every byte."""
    kinds: dict[str, gguf.Kind] = {}
    if source.kind == "gguf":
        file = gguf.read(source.path)
        kinds, places = file.kinds, {tensor.name: place for place, tensor in enumerate(file.tensors)}
        tensors = sorted(tensors, key=lambda tensor: places[tensor.name])
    metadata = descriptions.metadata(source, tensors, words.metadata, keep=keep)
    size = gguf_writer.size(metadata, tensors, kinds=kinds)
    return File(None, size, gguf_writer.pieces(metadata, tensors, kinds=kinds))


def _folder(
    source: Checkpoint, chosen: dict[str, str], tensors: list[Outgoing], *, shard_size: int, to: str
) -> list[File]:
    """Weights first and their description last: a folder without it is never taken for a checkpoint."""
    if to == "raw":
        weights_file = _safetensors("consolidated.safetensors", tensors, None)
        return [weights_file, _json("params.json", to_params(source.config))]
    shards = _shards(tensors, shard_size)
    dtype = descriptions.DTYPES[weights.most(source.tensors, chosen)]
    files: list[File] = []
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        files.append(_safetensors(name, shard, {"format": "pt"}))  # transformers asks for it
        places |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        files.append(_json("model.safetensors.index.json", index))
    described = descriptions.huggingface(source, dtype=dtype)
    return [*files, *(_json(name, content) for name, content in described.items())]


def _shards(tensors: Sequence[Outgoing], most: int) -> list[list[Outgoing]]:
    """Tensors in order, in files of at most `most` bytes of weights where a tensor is not larger."""
    shards: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _safetensors(name: str, tensors: list[Outgoing], metadata: dict[str, str] | None) -> File:
    size = safetensors_writer.size(tensors, metadata=metadata)
    return File(name, size, safetensors_writer.pieces(tensors, metadata=metadata))


def _json(name: str, content: dict[str, Any]) -> File:
    data = strict_json.written(content)
    return File(name, len(data), [data])


def _texts(words: texts.Texts) -> list[File]:
    return [File(name, len(data), [data]) for name, data in words.files.items()]
