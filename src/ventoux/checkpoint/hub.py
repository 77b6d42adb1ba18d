"""Fetch from a model hub what one checkpoint needs, and no more.

A repository often holds the same weights twice (Hugging Face's layout and Mistral's) or in a dozen quantizations;
`choose` picks one. The hub's own client does the transfer: it resumes, checks, and honours HF_ENDPOINT and HF_TOKEN.
"""

from collections.abc import Iterable
from pathlib import Path

from ventoux.errors import DownloadError

DESCRIPTIONS = {
    "config.json",
    "generation_config.json",
    "params.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
}


def fetch_repository(repo: str, file: str | None = None) -> tuple[Path, list[Path]]:
    """Download a checkpoint, or one GGUF file, into the hub client's cache -> (what to load, all files of it).

    Raises DownloadError when the hub does not have it, does not let us, or cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo)
        names = choose((s.rfilename for s in info.siblings or ()), repo=repo, file=file)
        files = [Path(hf_hub_download(repo, name, revision=info.sha)) for name in names]
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo}: the hub lets only those in who accepted the model's terms;"
            " accept them on its page, then set HF_TOKEN to your access token"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo}: there is no such file or folder here and no such model on the hub; if it is private, set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        raise DownloadError(f"{repo}: the hub refused: {first_line(error)}") from error
    except DownloadError:
        raise
    except Exception as error:  # the client's HTTP library differs between its versions, and so do its errors
        raise DownloadError(
            f"{repo}: cannot be fetched from the hub: {first_line(error)};"
            " check the network, or name a model on this disk with --model"
        ) from error
    return (files[0] if names[0].endswith(".gguf") else files[0].parent), files


def choose(listing: Iterable[str], *, repo: str, file: str | None = None) -> list[str]:
    """The files to fetch out of a repository's listing: one layout of the weights and everything that describes it.

    With both layouts, Hugging Face's is taken: its shards load one by one. Subfolders are never looked into.
    """
    names = sorted(name for name in listing if "/" not in name and "\\" not in name)
    if file is not None:
        if file not in names:
            raise DownloadError(f"{repo} has no file {file}; its .gguf files: {listed(ggufs(names))}")
        return [file]
    described = [n for n in names if n in DESCRIPTIONS or n.startswith(("tokenizer.model", "tekken"))]
    weights = weights_of("model", names) or weights_of("pytorch_model", names)
    raw = weights_of("consolidated", names)
    if "config.json" in names and weights:
        return [n for n in described if n != "params.json"] + weights
    if "params.json" in names and raw:
        return [n for n in described if n != "config.json"] + raw
    if len(ggufs(names)) == 1:
        return ggufs(names)
    if ggufs(names):
        raise DownloadError(f"{repo} has several models; choose one as {repo}:FILE out of {listed(ggufs(names))}")
    raise DownloadError(
        f"{repo} has no checkpoint that Ventoux reads: expected config.json with model.safetensors,"
        f" params.json with consolidated.safetensors, or a .gguf file; found {listed(names)}"
    )


def weights_of(stem: str, names: list[str]) -> list[str]:
    """The files of one set of weights and its index: safetensors where there are any, else pickles, never both."""
    ours = [name for name in names if name.startswith(stem)]
    modern = [name for name in ours if name.endswith((".safetensors", ".safetensors.index.json"))]
    return modern or [name for name in ours if name.endswith((".pth", ".bin", ".bin.index.json"))]


def ggufs(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".gguf")]


def listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
