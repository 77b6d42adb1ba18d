"""Mistral 7B in one file: the whole model, without a cache, to be read from top to bottom.

A decoder is a stack of equal layers. Each lets every token look at the tokens before it (attention), then thinks about
what it saw (a gated feed-forward), and adds both to what it knew. Mistral's three choices are a sliding window, heads
that share keys and values in groups, and nothing else: no biases, no dropout, one norm.

The package computes the same numbers faster. This file is what it is compared with, so it takes no short cuts: every
step runs the whole sequence again.

Shapes: T tokens, H heads, K key-value heads, D head size, W window, S sequences packed into one row.

    python reference/one_file.py FOLDER "My favourite condiment is"       # a raw or a Hugging Face folder
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


@dataclass(frozen=True)
class Config:
    """The shape of the model. `ventoux.config.ModelConfig` has the same names and may stand in its place."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    windows: tuple[int | None, ...]  # one a layer: how many keys a query sees, its own included; None for all
    tie_embeddings: bool = False


class RMSNorm(nn.Module):
    """Scale a vector to mean square 1, then by a learnt weight. The mean is taken in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.type_as(x)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn each pair (i, i + D/2) of x [T, heads, D] by the angle position * theta^(-2i/D) (arXiv 2104.09864).

    The product of a query and a key so turned depends on their distance only.
    D=4, theta=100: pair (0, 2) turns by 1 radian a position, pair (1, 3) by 0.1.
    """
    size = x.shape[-1]
    speed = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)  # [D/2]
    angle = positions.float()[:, None, None] * speed  # [T, 1, D/2]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def places(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where each token of a packed row stands: position and sequence. [2, 3] -> 0 1 0 1 2 and 0 0 1 1 1."""
    positions = torch.cat([torch.arange(n) for n in lengths])
    return positions, torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def visible(positions: Tensor, sequences: Tensor, window: int | None) -> Tensor:
    """Which key each query sees -> bool [T, T], True where row (query) sees column (key).

    The query at position p sees the keys p-W+1 .. p of its own sequence: min(p+1, W) keys, its own included.
    W=3, one sequence of 5:
                 key  0 1 2 3 4
        query 0       x . . . .      1 key
        query 1       x x . . .      2 keys
        query 2       x x x . .      3 keys
        query 3       . x x x .      3 keys: 0 has left the window
        query 4       . . x x x      3 keys
    """
    distance = positions[:, None] - positions[None, :]
    seen = (distance >= 0) & (sequences[:, None] == sequences[None, :])
    return seen if window is None else seen & (distance < window)


class Attention(nn.Module):
    """Each token gathers values from those it sees. H/K query heads share one key-value head (arXiv 2305.13245)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = config.num_heads, config.num_kv_heads, config.head_dim
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        tokens, group = len(x), self.heads // self.kv_heads
        q = rotate(self.q_proj(x).view(tokens, self.heads, self.size), positions, self.theta)  # [T, H, D]
        k = rotate(self.k_proj(x).view(tokens, self.kv_heads, self.size), positions, self.theta)  # [T, K, D]
        v = self.v_proj(x).view(tokens, self.kv_heads, self.size)  # [T, K, D]

        q = q.view(tokens, self.kv_heads, group, self.size)  # query head h reads key-value head h // group
        scores = torch.einsum("tkgd,skd->kgts", q, k) * self.size**-0.5  # [K, H/K, T queries, T keys]
        weights = scores.float().masked_fill(~seen, float("-inf")).softmax(-1).type_as(v)
        gathered = torch.einsum("kgts,skd->tkgd", weights, v)  # [T, K, H/K, D]
        out: Tensor = self.o_proj(gathered.reshape(tokens, self.heads * self.size))
        return out


class MLP(nn.Module):
    """SwiGLU: one projection opens or shuts the other, silu(gate) * up, and a third comes back (arXiv 2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: Config, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, positions: Tensor, sequences: Tensor) -> Tensor:
        seen = visible(positions, sequences, self.window)
        x = x + self.self_attn(self.input_layernorm(x), positions, seen)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Mistral(nn.Module):
    """Ids in, logits out. The names of its weights are Hugging Face's, without the leading `model.`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, window) for window in config.windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """Ids [T] -> logits [T, vocab]. `lengths` says how many tokens each packed sequence has; None: one sequence."""
        positions, sequences = places(lengths if lengths is not None else [len(ids)])
        x = self.embed_tokens(ids)  # [T, hidden]
        for layer in self.layers:
            x = layer(x, positions, sequences)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits

    @torch.inference_mode()
    def generate(self, ids: Sequence[int], max_tokens: int, *, eos_id: int | None = None) -> list[int]:
        """The likeliest next id, again and again -> the new ids, the end-of-sequence id not among them."""
        row = list(ids)
        while len(row) < len(ids) + max_tokens:
            best = int(self(torch.tensor(row))[-1].argmax())
            if best == eos_id:
                break
            row.append(best)
        return row[len(ids) :]

    def load(self, weights: Mapping[str, Tensor]) -> "Mistral":
        """Take the weights of a Hugging Face state dict: all of them, and none left over."""
        named = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        if self.lm_head.weight is self.embed_tokens.weight:
            named.setdefault("lm_head.weight", named["embed_tokens.weight"])
        self.load_state_dict(named)
        return self


def from_huggingface(folder: Path) -> Mistral:
    """Load config.json and every *.safetensors of a folder, in float32."""
    from safetensors.torch import load_file

    c: dict[str, Any] = json.loads((folder / "config.json").read_text())
    rope = c.get("rope_parameters") or c  # transformers 5 or 4
    config = Config(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
        rms_norm_eps=c["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        windows=(c.get("sliding_window"),) * c["num_hidden_layers"],
        tie_embeddings=c.get("tie_word_embeddings", False),
    )
    shards = (load_file(path) for path in sorted(folder.glob("model*.safetensors")))
    return Mistral(config).load({name: tensor.float() for shard in shards for name, tensor in shard.items()})


RAW_NAMES = {
    "tok_embeddings": "embed_tokens",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder q or k rows from interleaved rotary pairs (2i, 2i+1) to halves (i, i + D/2). D=4: rows 0 2 1 3."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def from_raw(folder: Path) -> Mistral:
    """Load params.json and consolidated.safetensors or consolidated.00.pth of a folder, in float32."""
    from safetensors.torch import load_file

    p: dict[str, Any] = json.loads((folder / "params.json").read_text())
    window = p.get("sliding_window")
    config = Config(
        vocab_size=p["vocab_size"],
        hidden_size=p["dim"],
        intermediate_size=p["hidden_dim"],
        num_layers=p["n_layers"],
        num_heads=p["n_heads"],
        num_kv_heads=p["n_kv_heads"],
        head_dim=p["head_dim"],
        rms_norm_eps=p["norm_eps"],
        rope_theta=p.get("rope_theta", 1e4 if window else 1e6),
        windows=(window,) * p["n_layers"],
    )
    modern = folder / "consolidated.safetensors"
    raw = load_file(modern) if modern.exists() else torch.load(folder / "consolidated.00.pth", weights_only=True)
    weights = {}
    for name, tensor in raw.items():
        prefix, layer, rest = "", "", name.removesuffix(".weight")
        if rest.startswith("layers."):
            prefix, layer, rest = rest.split(".", 2)
        wide = tensor.float()
        turned = halves(wide, config.head_dim) if rest in ("attention.wq", "attention.wk") else wide
        weights[".".join(filter(None, (prefix, layer, RAW_NAMES.get(rest, rest), "weight")))] = turned
    return Mistral(config).load(weights)


def main() -> None:
    """Continue a prompt greedily and print it: slow, and right."""
    from sentencepiece import SentencePieceProcessor

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--max_tokens", type=int, default=35)
    args = parser.parse_args()

    model = from_raw(args.folder) if (args.folder / "params.json").exists() else from_huggingface(args.folder)
    tokenizer = SentencePieceProcessor(model_file=str(args.folder / "tokenizer.model"))
    ids = [tokenizer.bos_id(), *tokenizer.encode(args.prompt)]
    print(tokenizer.decode(ids + model.generate(ids, args.max_tokens, eos_id=tokenizer.eos_id())))


if __name__ == "__main__":
    main()
