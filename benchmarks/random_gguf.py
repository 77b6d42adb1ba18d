#!/usr/bin/env python3
"""Write a GGUF file of Mistral 7B's shapes with random weights: real work for a clock, meaningless text.

The matrices are Q4_0 and the output head Q8_0, so a pass reads as many bytes a weight as a Q4_0 file of the real model
does. 8 of the 32 layers make 1.2 GB, all of them 4.1 GB. `--body` makes other formats: Q8_0 (2.1 GB), BF16 (4.0 GB), or
Q4_K_M (1.3 GB), llama.cpp's mix of Q4_K and Q6_K. The same seed makes the same file.

Needs numpy and gguf; with mistral-common installed, whose wheel carries Mistral's vocabulary, the file can read text.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14336, 32, 8, 128, 32000
MATRICES = {  # of one layer: rows, columns
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}
HEADS_FOR = {"Q4_0": "Q8_0", "Q8_0": "Q8_0", "Q4_K_M": "Q6_K", "BF16": "BF16"}  # the output head's format by the body's
# Where a block's fp16 scales stand, and how large they are beside each other. Q4_K's minimum is 7.5 times its scale, so
# that weights are zero on average: its numbers are 0 to 15.
SCALES = {"Q4_0": {0: 1.0}, "Q8_0": {0: 1.0}, "Q4_K": {0: 1.0, 2: 7.5}, "Q6_K": {208: 1.0}}


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be made: rows 0 is a norm."""

    name: str
    format: str
    rows: int = 0
    columns: int = HIDDEN
    deviation: float = 0.02

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Rows, bytes of a row."""
        weights, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.format]]
        return self.rows, self.columns // weights * nbytes

    def make(self, rng: np.random.Generator) -> np.ndarray:
        """Packed weights with about this standard deviation: uint8 [rows, bytes of a row]. A norm is float32 ones.

        Every byte of a block is random but its fp16 scales.
        """
        if not self.rows:
            return np.ones(self.columns, np.float32)
        if self.format == "BF16":
            weights = rng.standard_normal((self.rows, self.columns), np.float32) * np.float32(self.deviation)
            return np.ascontiguousarray(weights.view("<u2")[:, 1::2]).view(np.uint8)
        size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.format]]
        packed = rng.integers(0, 256, (self.rows, self.columns // size, nbytes), np.uint8)
        # scales differ from block to block, as a real file's do
        scale = rng.uniform(0.8, 1.2, (*packed.shape[:2], 1)) * self.deviation / spread(self.format)
        write_scales(packed, self.format, scale)
        return packed.reshape(self.packed_shape)


def write_scales(blocks: np.ndarray, format: str, scale: np.ndarray) -> None:
    """Put scales [rows, blocks, 1] where the format has them in blocks [rows, blocks, bytes]."""
    for offset, factor in SCALES[format].items():
        blocks[:, :, offset : offset + 2] = (scale * factor).astype("<f2").view(np.uint8)


@cache
def spread(format: str) -> float:
    """The standard deviation of weights whose bytes are random and whose scales are 1 (4.6 for Q4_0: -8 to 7)."""
    kind = gguf.GGMLQuantizationType[format]
    blocks = np.random.default_rng(0).integers(0, 256, (256, 1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    write_scales(blocks, format, np.ones((256, 1, 1)))
    return float(gguf.dequantize(blocks[:, 0], kind).std())


def more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives a layer's attn_v and ffn_down six bits: the first and last eighth, and every third between.

    Of 8 layers: 0, 3, 6, 7.
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def plan(layers: int, body: str, head: str) -> Iterator[Planned]:
    """All tensors, in the order of the file."""
    mixed = body == "Q4_K_M"
    usual = "Q4_K" if mixed else body
    yield Planned("token_embd", usual, VOCAB, deviation=1.0)
    for layer in range(layers):
        yield Planned(f"blk.{layer}.attn_norm", "F32")
        yield Planned(f"blk.{layer}.ffn_norm", "F32")
        for name, (rows, columns) in MATRICES.items():
            wide = mixed and name in ("attn_v", "ffn_down") and more_bits(layer, layers)
            yield Planned(f"blk.{layer}.{name}", "Q6_K" if wide else usual, rows, columns)
    yield Planned("output_norm", "F32")
    yield Planned("output", head, VOCAB)


def add_vocabulary(writer: gguf.GGUFWriter) -> bool:
    """Mistral's first vocabulary, if mistral-common is here (found, and not imported, which takes seconds)."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.submodule_search_locations is None:
        return False
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(Path(spec.submodule_search_locations[0], "data/tokenizer.model.v1")))
    assert pieces.vocab_size() == VOCAB

    def kind(i: int) -> gguf.TokenType:
        if pieces.is_unknown(i):
            return gguf.TokenType.UNKNOWN
        if pieces.is_control(i):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if pieces.is_byte(i) else gguf.TokenType.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i).encode() for i in range(VOCAB)])
    writer.add_token_scores([pieces.get_score(i) for i in range(VOCAB)])
    writer.add_token_types([kind(i) for i in range(VOCAB)])
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(True)
    return True


def write(path: Path, *, layers: int, body: str = "Q4_0", head: str | None = None, seed: int = 0) -> bool:
    """Write the file -> whether it has a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"Mistral 7B, {layers} random layers")
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    has_vocabulary = add_vocabulary(writer)
    planned = list(plan(layers, body, head or HEADS_FOR[body]))
    for tensor in planned:
        name = f"{tensor.name}.weight"
        if tensor.rows:
            shape, kind = tensor.packed_shape, gguf.GGMLQuantizationType[tensor.format]
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), shape[0] * shape[1], raw_dtype=kind)
        else:
            writer.add_tensor_info(name, (tensor.columns,), np.dtype(np.float32), 4 * tensor.columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in planned:  # one in memory at a time, of 4 GB in all
        writer.write_tensor_data(tensor.make(rng))
    writer.close()
    return has_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description="Mistral 7B's shapes with random weights, as a GGUF file")
    parser.add_argument("path", type=Path, metavar="OUT.gguf")
    parser.add_argument("--layers", type=int, default=8, help="of the real model's 32 (default: 8)")
    parser.add_argument("--body", choices=list(HEADS_FOR), default="Q4_0", help="of the matrices (default: Q4_0)")
    heads = sorted({*HEADS_FOR.values(), "Q4_0"})
    parser.add_argument("--head", choices=heads, help="format of the output head (default: what goes with the body)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    has_vocabulary = write(args.path, layers=args.layers, body=args.body, head=args.head, seed=args.seed)
    text = "with Mistral's vocabulary" if has_vocabulary else "without a vocabulary (mistral-common is not installed)"
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB, {args.layers} layers, {text}")


if __name__ == "__main__":
    main()
