"""What goes along with the weights so that they can read and write: vocabulary and chat template."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ventoux import tokenizer
from ventoux.chat import template_in
from ventoux.chat.jinja import mistral_template
from ventoux.checkpoint import Checkpoint, strict_json
from ventoux.config import ModelConfig
from ventoux.errors import TokenizerError, shown
from ventoux.tokenizer import Tokenizer, files
from ventoux.tokenizer.bytelevel import USER_DEFINED
from ventoux.tokenizer.huggingface import from_text
from ventoux.tokenizer.metadata import PROBE, to_metadata
from ventoux.tokenizer.version import CONFIG_KEY, mistral_version

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
ENDS = 3  # ids that a GGUF file can name as ends of a text
LARGEST = 1 << 28  # bytes of a tokenizer file; Mistral's largest has 20 MB


@dataclass
class Texts:
    """files for a folder, or metadata for a GGUF file; config with the ids of BOS and EOS that the vocabulary tells."""

    config: ModelConfig
    files: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def gather(source: Checkpoint, *, to: str, template: str | None) -> Texts:
    """Everything about text that a target needs. What cannot go along is left out, and a remark says so and why."""
    found = Texts(source.config)
    if source.kind == "gguf" and to == "gguf":
        if template is not None:
            found.metadata["tokenizer.chat_template"] = template
    elif source.kind == "gguf":
        _out_of_gguf(source, found, to, template)
    elif to == "gguf":
        _into_gguf(source, found, template)
    else:
        _from_folder_to_folder(source, found, to, template)
    if to == "raw":
        _ends_lost(found)
    return found


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers cut a probe of many scripts alike, and agree about where a text begins."""
    lines = [PROBE, *PROBE.split("\n"), "", " ", "\n", "a", *PROBE.split(" ")]
    return all(one.encode(line, bos=True) == other.encode(line, bos=True) for line in lines)


def _literals(found: Texts, metadata: dict[str, Any], original: Tokenizer, other: Tokenizer) -> None:
    """A remark on tokens that plain text may hold by name, if the text around them is cut otherwise in what is written.

    sentencepiece puts no space behind such a token, `tokenizers` does; Mistral's v3 has [REFERENCE_DOC_0] and on.
    """
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    literal = [piece for piece, kind in pairs if kind == USER_DEFINED][:64]
    lines = {piece: f"a{piece}b {piece} c" for piece in literal}
    if changed := [piece for piece, line in lines.items() if original.encode(line) != other.encode(line)]:
        more = ", ..." if len(changed) > 1 else ""
        found.remarks.append(
            f"text that follows a typed {shown(changed[0])}{more} is cut with other spaces than before"
        )


def _ends_lost(found: Texts) -> None:
    """params.json cannot say which ids end a text; the tokenizer says the first."""
    if lost := found.config.eos_ids[1 if any(map(tokenizer.is_file_name, found.files)) else 0 :]:
        found.remarks.append(f"raw has no place for these ids, which end a text: {', '.join(map(str, lost))}")


def _with_ids(config: ModelConfig, found: Tokenizer) -> ModelConfig:
    """The vocabulary's EOS comes first: fine-tunes change it and forget config.json."""
    ids = [i for i in (found.eos_id, *config.eos_ids) if i is not None and i < config.vocab_size]
    bos = found.bos_id if config.bos_id is None else config.bos_id
    return replace(config, eos_ids=tuple(dict.fromkeys(ids)), bos_id=bos)


def _out_of_gguf(source: Checkpoint, found: Texts, to: str, template: str | None) -> None:
    metadata = source.metadata
    if "tokenizer.ggml.tokens" not in metadata:
        found.remarks.append("the file has no vocabulary, so none goes along")
        return
    original = tokenizer.from_gguf(metadata, source=source.path)
    template = template or _text(metadata.get("tokenizer.chat_template")) or _own(original)
    complete = {**metadata, "tokenizer.ggml.add_bos_token": _adds_bos(original)}
    if original.bos_id is not None:
        complete["tokenizer.ggml.bos_token_id"] = original.bos_id
    found.config = _with_ids(source.config, original)
    model = files.to_model(complete)
    if model is not None:
        found.files["tokenizer.model"] = model
    if to == "raw" and model is not None:
        found.files["tokenizer_config.json"] = _config(found, complete, original, template)
    else:
        _tokenizer_json(found, complete, original, template, source=str(source.path))


def _into_gguf(source: Checkpoint, found: Texts, template: str | None) -> None:
    file = tokenizer.choose(source.path)
    if file is None:
        found.metadata["tokenizer.ggml.model"] = "no_vocab"
        found.remarks.append("the checkpoint has no tokenizer, so none goes along")
        return
    original = tokenizer.load(file)
    found.config = _with_ids(source.config, original)
    try:
        metadata = _padded(to_metadata(file), source.config.vocab_size)
        rebuilt = tokenizer.from_gguf(metadata, source=file)
        if not same_ids(original, rebuilt):
            raise TokenizerError("a GGUF file of it would give other ids")
        _literals(found, metadata, original, rebuilt)
    except TokenizerError as error:
        found.metadata["tokenizer.ggml.model"] = "no_vocab"
        found.remarks.append(f"{file.name} does not go along: {_reason(error)}")
        return
    ids = found.config.eos_ids
    if len(ids) > ENDS:
        left_out = ", ".join(map(str, ids[ENDS:]))
        found.remarks.append(f"a GGUF file names {ENDS} ids that end a text; left out: {left_out}")
    metadata.pop("tokenizer.ggml.eos_token_id", None)  # the model's description has it, with the others
    if metadata["tokenizer.ggml.pre"] == "tekken":
        found.remarks.append("llama.cpp cuts tekken's words at combining marks (Hindi, Thai, ...), Ventoux does not")
    template = template or template_in(source.path) or _own(original)
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    found.metadata = metadata


def _from_folder_to_folder(source: Checkpoint, found: Texts, to: str, template: str | None) -> None:
    for path in sorted(source.path.iterdir()):
        if path.is_file() and (tokenizer.is_file_name(path.name) or path.name in BESIDE):
            found.files[path.name] = _content(path)
    file = tokenizer.choose(source.path)
    if file is None:
        found.remarks.append("the checkpoint has no tokenizer, so none goes along")
    else:
        original = tokenizer.load(file)
        found.config = _with_ids(source.config, original)
        if to == "hf" and not {"tokenizer.json", "tokenizer_config.json"} <= found.files.keys():
            _complete(found, file, original, template or template_in(source.path) or _own(original))
    if template is not None and found.files:
        _set_template(found, template)


def _complete(found: Texts, file: Path, original: Tokenizer, template: str | None) -> None:
    """What transformers asks for beside the tokenizer's own file."""
    try:
        metadata = to_metadata(file)
    except TokenizerError as error:
        if "tokenizer.json" not in found.files:
            found.remarks.append(f"no tokenizer.json could be made of {file.name}: {_reason(error)}")
        return
    _tokenizer_json(found, metadata, original, template, source=file.name)


def _tokenizer_json(
    found: Texts, metadata: dict[str, Any], original: Tokenizer, template: str | None, *, source: str
) -> None:
    """tokenizer.json and tokenizer_config.json, unless the source has them; with the original's ids, or not at all."""
    config = _config(found, metadata, original, template)
    if "tokenizer.json" not in found.files:
        text = files.to_json(metadata, source=source)
        rebuilt = from_text(text, strict_json.parse(config, source=source), source=source)
        if not same_ids(original, rebuilt):
            found.remarks.append("no tokenizer.json goes along: it would give other ids")
            return
        _literals(found, metadata, original, rebuilt)
        found.files["tokenizer.json"] = text.encode()
    found.files.setdefault("tokenizer_config.json", config)


def _config(found: Texts, metadata: dict[str, Any], original: Tokenizer, template: str | None) -> bytes:
    config = files.to_config(
        metadata,
        bos_id=original.bos_id,
        eos_id=original.eos_id,
        adds_bos=_adds_bos(original),
        template=template,
        longest=found.config.context_length,
    )
    if original.version != mistral_version(metadata["tokenizer.ggml.tokens"]):
        config[CONFIG_KEY] = original.version
    return strict_json.written(config)


def _set_template(found: Texts, template: str) -> None:
    """The template that was asked for instead of the source's; a file of its own goes before what a config says."""
    found.files["chat_template.jinja"] = template.encode()


def _padded(metadata: dict[str, Any], size: int) -> dict[str, Any]:
    """The vocabulary with a name for each row of the embedding, which may have more of them."""
    missing = size - len(metadata["tokenizer.ggml.tokens"])
    if missing < 0:
        raise TokenizerError(f"it has {size - missing} tokens, the model's embedding {size}")
    names = [f"[PAD{i}]" for i in range(size - missing, size)]
    padded = {**metadata, "tokenizer.ggml.tokens": metadata["tokenizer.ggml.tokens"] + names}
    padded["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"] + [files.UNUSED] * missing
    if "tokenizer.ggml.scores" in metadata:
        padded["tokenizer.ggml.scores"] = metadata["tokenizer.ggml.scores"] + [-1e9] * missing
    return padded


def _own(original: Tokenizer) -> str | None:
    return None if original.version is None else mistral_template(original.version)


def _adds_bos(original: Tokenizer) -> bool:
    return bool(original.encode("", bos=True))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _reason(error: TokenizerError) -> str:
    return str(error).rpartition("damaged file: ")[2]


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise TokenizerError(f"{path}: expected at most {LARGEST} bytes of a tokenizer, found more")
    return data
