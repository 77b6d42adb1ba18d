"""`info`: what a model is, and what will be used when it runs."""

import json
from collections import Counter
from math import prod
from typing import Any

from ventoux.errors import ChatError, TokenizerError
from ventoux.model import Mistral


def info(model: Mistral, *, as_json: bool) -> None:
    facts = gather(model)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, text in lines(facts, compute=str(model.backend.description)):
        print(f"{name:<11}{text}")


def gather(model: Mistral) -> dict[str, Any]:
    """Everything as plain numbers and strings. Sizes are bytes."""
    files, config, means = model.checkpoint, model.config, model.backend.description
    assert files is not None
    tensors: dict[str, dict[str, int]] = {}
    counts = Counter(tensor.format for tensor in files.tensors.values())
    for format, count in counts.most_common():
        nbytes = sum(tensor.nbytes for tensor in files.tensors.values() if tensor.format == format)
        tensors[format] = {"count": count, "bytes": nbytes}
    return {
        "path": str(files.path),
        "layout": files.kind,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tied_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "context_length": config.context_length,
        "windows": list(config.windows),
        "parameters": sum(prod(tensor.shape) for tensor in files.tensors.values()),
        "bytes": files.nbytes,
        "tensors": tensors,
        "tokenizer": tokenizer(model),
        "chat_format": chat_format(model),
        "backend": means.backend,
        "device": means.device,
        "isa": means.isa,
        "threads": means.threads,
        "compute": means.compute,
        "kv_dtype": means.kv_dtype,
        "kv_bytes_per_token": config.num_layers
        * config.num_kv_heads
        * (2 * config.head_dim * means.kv_itemsize + means.kv_scales),
    }


def tokenizer(model: Mistral) -> dict[str, Any] | None:
    try:
        found = model.tokenizer
    except TokenizerError:
        return None
    kind = type(found).__name__
    return {"kind": kind, "version": found.version, "vocab_size": found.vocab_size, "bos_id": found.bos_id}


def chat_format(model: Mistral) -> dict[str, str | None]:
    try:
        found = model.chat_format
    except (ChatError, TokenizerError) as error:
        return {"version": None, "reason": str(error)}
    return {"version": found.version, "reason": found.reason}


def lines(facts: dict[str, Any], *, compute: str) -> list[tuple[str, str]]:
    f = facts
    text, chat = f["tokenizer"], f["chat_format"]
    tensors = (f"{t['count']} {name} ({megabytes(t['bytes'])})" for name, t in f["tensors"].items())
    return [
        ("model", f"{f['path']} ({f['layout']})"),
        ("size", f"{f['parameters'] / 1e6:,.1f} M parameters, {megabytes(f['bytes'])}"),
        ("shape", f"{f['layers']} layers, {f['hidden_size']} wide, feed-forward {f['intermediate_size']}"),
        ("attention", f"{f['heads']} heads over {f['kv_heads']}, {f['head_dim']} each, theta {f['rope_theta']:g}"),
        ("window", windows(f["windows"])),
        ("context", f"{f['context_length']} positions"),
        ("vocabulary", f"{f['vocab_size']}, embeddings {'tied' if f['tied_embeddings'] else 'not tied'}"),
        ("tensors", ", ".join(tensors)),
        ("tokenizer", f"{text['kind']}, {text['version'] or 'no Mistral version'}" if text else "none"),
        ("chat", f"{chat['version'] or 'none'}: {chat['reason']}"),
        ("compute", compute),
        ("KV cache", f"{f['kv_dtype']}, {f['kv_bytes_per_token']} bytes a token"),
    ]


def windows(widths: list[int | None]) -> str:
    """One width when all layers agree, else how many layers have which."""
    named = Counter("none" if width is None else f"{width} keys" for width in widths)
    if len(named) == 1:
        return next(iter(named))
    return ", ".join(f"{name} in {count} layers" for name, count in named.items())


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
