"""Prompts of thousands of tokens: the numbers stay good, and the memory stays bounded."""

import difflib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import ventoux
from ventoux import checkpoint, cpu
from ventoux.batch import Batch, Segment
from ventoux.decoding import SamplingParams
from ventoux.engine import Engine, Request

PROSE = Path(__file__).parents[1] / "data" / "moby_dick_chapter_1.txt"
WINDOW = 4096
CHUNK = 512

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")


class Reader:
    """One sequence that a backend reads, in chunks as the engine runs them."""

    def __init__(self, backend, length):
        self.backend, self.cache, self.position = backend, backend.new_cache(), 0
        self.slot = self.cache.allocate(length)

    def read(self, ids, *, logits=1):
        """Logits [logits, vocab] of the last of the ids."""
        found, first = [], len(ids) - logits
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            wanted = min(len(part), max(0, start + len(part) - first))
            found.append(
                self.backend.forward(Batch.pack([Segment(self.slot, self.position, part, wanted)]), self.cache)
            )
            self.position += len(part)
        return np.concatenate(found)


def perplexity(logits, following):
    """Of ids [n], by the logits [n, vocab] that stand before them."""
    logits = logits.astype(np.float64)
    normalizer = np.logaddexp.reduce(logits, axis=-1)
    return float(np.exp(np.mean(normalizer - logits[np.arange(len(following)), following])))


def test_facts_14_a_prompt_of_5000_tokens_keeps_finite_logits_and_usable_text(default_model):
    """A chapter of some 2,900 tokens, and then again: what is far back is found, and the text goes on as prose.

    A cache that lost old keys or rotated them wrongly would read the second telling as badly as the first, or worse.
    """
    model = ventoux.load(default_model)
    story = PROSE.read_text(encoding="utf-8")
    chapter = model.tokenizer.encode(story)
    ids = (chapter + chapter)[:5000]
    assert 2500 < len(chapter) < 3500
    reader = Reader(model.backend, 5000 + 24)
    told_once = perplexity(reader.read(ids[:1000], logits=501)[:-1], ids[500:1000])
    last = reader.read(ids[1000:], logits=501)  # the last row goes on where the prompt ends
    told_again = perplexity(last[:-1], ids[4500:])
    print(f"perplexity of tokens 500 to 1000: {told_once:.2f}, of tokens 4500 to 5000: {told_again:.2f}")
    assert np.isfinite(last).all()
    assert told_once < 150  # of a rare author's text, for a small model; random logits are in the ten thousands
    assert told_again < min(3, told_once / 10)

    answer = [int(last[-1].argmax())]
    while len(answer) < 24:
        answer.append(int(reader.read(answer[-1:])[0].argmax()))
    text = model.tokenizer.decode(answer)
    matcher = difflib.SequenceMatcher(None, story, text, autojunk=False)
    copied = matcher.find_longest_match().size
    print(repr(text), f"of which {copied} characters stand in the chapter")
    assert copied >= 40


def windowed(folder, **overrides):
    """A folder with a tiny Mistral whose window is 4096 in a context of 32768."""
    return tiny.save_hf(tiny.tiny_model(sliding_window=WINDOW, max_position_embeddings=32768, **overrides), folder)


def random_ids(n, seed=0):
    return np.random.default_rng(seed).integers(3, 96, n).tolist()


@pytest.mark.parametrize("window", [32, None])
def test_facts_16_kv_bytes_level_off_at_the_window_in_the_engine(tmp_path, window):
    """Of one request and of three; without a window they grow with the request, to the last token."""
    model = ventoux.load(tiny.save_hf(tiny.tiny_model(sliding_window=window), tmp_path / "m"))

    def held(total, requests=1):
        """The most bytes held while `requests` run that are `total` tokens long, half of them prompt."""
        engine = Engine(model.backend, budget=8)
        params = SamplingParams(temperature=0, max_tokens=total - total // 2, ignore_eos=True)
        for seed in range(requests):
            engine.add(Request(random_ids(total // 2, seed), params))
        most = 0
        while engine.busy:
            engine.step()
            most = max(most, engine.kv_bytes)
        assert engine.kv_bytes == 0
        return most

    lengths = [16, 32, 48, 96, 208]  # multiples of 16, the positions for which the cache's memory is laid out together
    found = [held(total) for total in lengths]
    config = model.config
    of_a_token = config.num_layers * 2 * config.num_kv_heads * config.head_dim * 4  # keys and values in fp32
    assert found == [of_a_token * min(total, window or total) for total in lengths]
    assert held(208, requests=3) == 3 * found[-1]


# Runs a prompt through the engine in a process of its own, since the most memory that a process ever had never shrinks.
# VmHWM and not getrusage's ru_maxrss: that one starts from the memory of the process which started this one.
IN_A_PROCESS = """
import json, sys
from pathlib import Path
import numpy as np
import ventoux
from ventoux.decoding import SamplingParams
from ventoux.engine import Engine, Request, Token

path, tokens, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = ventoux.load(path)
ids = np.random.default_rng(0).integers(3, 96, tokens).tolist()
engine = Engine(model.backend)
engine.add(Request(ids, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)))
answer, kv_bytes = [], []
while engine.busy:
    answer += [event.id for _, event in engine.step() if isinstance(event, Token)]
    kv_bytes.append(engine.kv_bytes)
status = Path("/proc/self/status").read_text().split()
peak = 1024 * int(status[status.index("VmHWM:") + 1])
print(json.dumps({"answer": answer, "kv_bytes": max(kv_bytes), "peak": peak}))
"""


def in_a_process(path, *, tokens, new):
    command = [sys.executable, "-c", IN_A_PROCESS, str(path), str(tokens), str(new)]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(result["answer"]) == new
    return result


@needs_proc
def test_20000_tokens_with_a_window_of_4096_run_in_bounded_memory(tmp_path):
    path = windowed(tmp_path / "m", num_attention_heads=2, num_key_value_heads=2, head_dim=64)
    short, long = (in_a_process(path, tokens=tokens, new=8) for tokens in (5000, 20000))
    of_a_token = 2 * 2 * 2 * 64 * 4  # layers, keys and values, heads, head_dim, fp32
    print(f"peak {short['peak'] / 1e6:.1f} MB for 5,000 tokens, {long['peak'] / 1e6:.1f} MB for 20,000")
    assert short["kv_bytes"] == long["kv_bytes"] == WINDOW * of_a_token
    # without a ring, the cache alone would grow by the 15,000 tokens
    assert long["peak"] - short["peak"] < 15_000 * of_a_token / 3


def test_facts_4_after_20000_tokens_one_layer_has_seen_the_last_4096_and_no_others(tmp_path):
    """Exactly so: what stands outside changes no bit, the oldest key inside does. It is the last 4096 ids, rotated."""
    read = checkpoint.read(windowed(tmp_path / "m", num_hidden_layers=1))
    backend = cpu.Backend(read.config, read.tensors)
    ids = random_ids(20_000)

    def last(ids):
        return Reader(backend, len(ids)).read(ids)[0]

    found, outside = last(ids), 20_000 - WINDOW
    np.testing.assert_array_equal(last(random_ids(outside, seed=1) + ids[outside:]), found)
    oldest = ids[outside] + 1 if ids[outside] < 95 else 3
    assert not np.array_equal(last([*ids[:outside], oldest, *ids[outside + 1 :]]), found)
    # positions 15904.. or 0..: rotary attention sees differences only, up to the rounding of large angles in fp32
    np.testing.assert_allclose(last(ids[outside:]), found, atol=2e-3)


@needs_proc
def test_resident_memory_is_at_most_file_and_cache_and_300_mb(default_model):
    """At its peak, loading included, with a prompt of several chunks."""
    result = in_a_process(default_model, tokens=1500, new=16)
    others = result["peak"] - default_model.stat().st_size - result["kv_bytes"]
    print(f"peak {result['peak'] / 1e6:.0f} MB, beside file and cache {others / 1e6:.0f} MB")
    assert others < 300e6
