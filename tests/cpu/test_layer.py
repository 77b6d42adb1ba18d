"""A layer in one call, and in its five parts with something added between them, as adapters do it."""

import gc
import resource
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import tiny

from ventoux.cli.bench import resident_memory
from ventoux.config import ModelConfig
from ventoux.cpu import _kernels
from ventoux.cpu.model import Arrays

E, H, K, D, F, T = 64, 4, 2, 16, 96, 9


def shapes(E, F):
    return {
        "q": (H * D, E),
        "k": (K * D, E),
        "v": (K * D, E),
        "o": (E, H * D),
        "gate": (F, E),
        "up": (F, E),
        "down": (E, F),
    }


SHAPES, LARGE = shapes(E, F), shapes(256, 512)  # super-blocks need 256 columns
FLOATS = dict.fromkeys(SHAPES, "F32")
PARTS = ("project_qkv", "attend", "project_o", "project_gate_up", "project_down")
# The array that a projection reads, the one that it writes or adds to, and the part after which that has happened.
WHERE = {
    "q": ("normed", "q", "project_qkv"),
    "k": ("normed", "k", "project_qkv"),
    "v": ("normed", "v", "project_qkv"),
    "o": ("attended", "x", "project_o"),
    "gate": ("normed", "gate", "project_gate_up"),
    "up": ("normed", "up", "project_gate_up"),
    "down": ("gate", "x", "project_down"),
}


def matrices(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in SHAPES.items()}


def stored(matrices):
    return {name: matrix.view(np.uint8) for name, matrix in matrices.items()}


def blocks(seed, formats, shapes=SHAPES):
    rng = np.random.default_rng(seed)

    def random(shape, format):
        if format in ("BF16", "F16"):
            dtype = np.float16 if format == "F16" else ml_dtypes.bfloat16
            return rng.standard_normal(shape, np.float32).astype(dtype).view(np.uint8)
        return tiny.random_blocks(rng, *shape, format=format)

    return {name: random(shape, formats[name]) for name, shape in shapes.items()}


def all_in(format):
    """Formats and the shapes that they need: what attention found has 64 columns in any."""
    large = format.endswith("_K")
    return dict.fromkeys(SHAPES, format) | ({"o": "Q8_0"} if large else {}), LARGE if large else SHAPES


class One:
    """A layer, a batch of two sequences in its cache, and the arrays by name."""

    def __init__(self, isa, weights, compute="f32", threads=2, formats=FLOATS, T=T, shapes=SHAPES):
        rng = np.random.default_rng(1)
        pool = _kernels.Pool(threads, isa)
        packed = {name: _kernels.Weight(pool, formats[name], shapes[name][1], w) for name, w in weights.items()}
        E, F = shapes["down"]
        self.norms = norms = rng.standard_normal((2, E), np.float32)
        self.layer = _kernels.Layer(0, norms[0], *(packed[n] for n in "qkvo"), norms[1],
                                    *(packed[n] for n in ("gate", "up", "down")), 1e-5, compute)  # fmt: skip
        cache = _kernels.Cache(K, D, [None], "f32")
        slots = np.array([cache.allocate(T), cache.allocate(T)], np.int32)
        self.rings = [cache.ring(slot, 0) for slot in slots]
        config = ModelConfig(
            vocab_size=8, hidden_size=E, intermediate_size=F, num_layers=1, num_heads=H, num_kv_heads=K, head_dim=D,
            rms_norm_eps=1e-5, rope_theta=1e4, windows=(None,), context_length=64, tie_embeddings=True, eos_ids=(),
        )  # fmt: skip
        self.arrays = Arrays.make(config, T)._asdict()
        self.arrays["x"][:] = rng.standard_normal((T, E), np.float32)
        angles = rng.standard_normal((T, D // 2)).astype(np.float32)
        spans = np.array([0, 0], np.int32), np.array([T - T // 3, T // 3], np.int32)
        self.batch = _kernels.Pass(pool, cache, *self.arrays.values(), np.cos(angles), np.sin(angles), slots, *spans)

    def run(self):
        self.layer.run(self.batch)
        return self.arrays["x"].copy()

    def run_asked(self, rows):
        self.layer.run_asked(self.batch, np.array(rows, np.int32))
        return self.arrays["x"][: len(rows)].copy()

    def in_parts(self, adapters):
        """With B (A y) added to the output of each projection that is in `adapters`, y being what it reads."""
        for part in PARTS:
            getattr(self.layer, part)(self.batch)
            for name, (A, B) in adapters.items():
                source, target, behind = WHERE[name]
                if behind == part:
                    self.arrays[target] += self.arrays[source] @ A.T @ B.T
        return self.arrays["x"].copy()


def test_the_five_parts_are_what_one_call_does(isa):
    expected = One(isa, stored(matrices())).run()
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(One(isa, stored(matrices())).in_parts({}), expected)
    np.testing.assert_array_equal(One(isa, stored(matrices()), threads=1).run(), expected)


@pytest.mark.parametrize("format", ["F32", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("asked", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 13), (27, 13), (28, 0), (28, 13)])
def test_rows_that_are_asked_for_alone_are_what_they_are_among_all(isa, asked, format):
    formats, shapes = all_in(format)
    weights = stored(matrices()) if format == "F32" else blocks(4, formats, shapes)
    rows = [*range(28 - asked[0], 28), *range(41 - asked[1], 41)]
    all_of_it = One(isa, weights, "mixed", formats=formats, T=41, shapes=shapes)
    expected = all_of_it.run()[rows]
    assert np.isfinite(expected).all()
    one = One(isa, weights, "mixed", formats=formats, T=41, shapes=shapes)
    np.testing.assert_array_equal(one.run_asked(rows), expected)
    np.testing.assert_array_equal(one.rings, all_of_it.rings)


@pytest.mark.parametrize("rows", [[0], [0, 2], [26, 40], [27, 41], [40, 27], [-1], [27, 27], [39], range(42)])
def test_only_the_last_rows_of_a_sequence_can_be_asked_for(rows):
    one = One("portable", stored(matrices()), T=41)
    with pytest.raises(ValueError, match="rows must be the last ones of their spans, in order"):
        one.run_asked(rows)


@pytest.mark.parametrize("tokens", [3, 16, 41])
@pytest.mark.parametrize("other", ["the same", "Q8_0"])
@pytest.mark.parametrize("format", ["BF16", "Q4_0", "Q5_1", "Q4_K", "Q6_K"])
def test_gate_and_up_together_are_what_they_are_one_by_one(isa, format, other, tokens):
    """In bf16 beyond 16 tokens two panels go together, too."""
    formats, shapes = all_in(format)
    formats |= {} if other == "the same" else {"up": other}
    weights = blocks(3, formats, shapes)
    expected = One(isa, weights, "mixed", formats=formats, T=tokens, shapes=shapes).in_parts({})
    assert np.isfinite(expected).all()
    found = One(isa, weights, "mixed", formats=formats, T=tokens, shapes=shapes).run()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tokens", [3, 41])
@pytest.mark.parametrize(("first", "second"), [("Q4_K", "Q8_0"), ("Q8_0", "Q6_K"), ("F16", "Q4_K")])
def test_weights_that_round_activations_differently_read_the_same_norms(isa, first, second, tokens):
    """Rows are normed while they are rounded for the first, and stand there for the second."""
    formats = (
        dict.fromkeys(SHAPES, "Q8_0") | dict.fromkeys(("q", "gate"), first) | dict.fromkeys(("k", "v", "up"), second)
    )
    weights = blocks(5, formats, LARGE)
    one = One(isa, weights, "mixed", formats=formats, T=tokens, shapes=LARGE)
    x = one.arrays["x"].copy()
    for part, norm, names in ((one.layer.project_qkv, 0, "qkv"), (one.layer.project_gate_up, 1, ("gate", "up"))):
        part(one.batch)
        normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * one.norms[norm]
        for name in names:
            kind = gguf.GGMLQuantizationType[formats[name]]
            packed = weights[name].view(np.float16) if formats[name] == "F16" else weights[name]
            exact = gguf.dequantize(packed, kind).reshape(LARGE[name])
            expected = normed @ exact.T
            assert np.abs(one.arrays[name] - expected).max() < 0.02 * expected.std()


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_added_between_the_parts_is_as_if_it_were_in_the_weight(isa, name):
    rng = np.random.default_rng(2)
    A, B = (rng.standard_normal(shape, np.float32) / 4 for shape in ((3, SHAPES[name][1]), (SHAPES[name][0], 3)))
    merged = matrices()
    merged[name] = merged[name] + B @ A
    plain, adapted = One(isa, stored(matrices())).run(), One(isa, stored(matrices())).in_parts({name: (A, B)})
    np.testing.assert_allclose(adapted, One(isa, stored(merged)).run(), rtol=1e-4, atol=1e-4)
    assert np.abs(adapted - plain).max() > 0.01


def test_a_layer_and_a_pass_hold_on_to_what_they_use(isa):
    expected, one = One(isa, stored(matrices())).run(), One(isa, stored(matrices()))
    one.arrays = {"x": one.arrays["x"]}
    gc.collect()
    np.testing.assert_array_equal(one.run(), expected)


def test_what_does_not_fit_together_is_refused():
    one = One("portable", stored(matrices()))
    pool = _kernels.Pool(1, "portable")
    weight = _kernels.Weight(pool, "F32", 32, np.ones((32, 32), np.float32).view(np.uint8))
    norm = np.ones(32, np.float32)
    small = _kernels.Layer(0, norm, *[weight] * 4, norm, *[weight] * 3, 1e-5, "f32")
    for part in (*PARTS, "run"):
        with pytest.raises(ValueError, match="the layer is of another model than the arrays"):
            getattr(small, part)(one.batch)
    with pytest.raises(ValueError, match="a norm differs from the weights in size"):
        _kernels.Layer(0, norm[1:], *[weight] * 4, norm, *[weight] * 3, 1e-5, "f32")
    second = _kernels.Layer(1, norm, *[weight] * 4, norm, *[weight] * 3, 1e-5, "f32")
    cache = _kernels.Cache(1, 32, [None], "f32")
    ints = [np.array([n], np.int32) for n in (cache.allocate(1), 0, 1)]
    rows, angles = [np.ones((1, 32), np.float32) for _ in range(8)], [np.ones((1, 16), np.float32)] * 2
    with pytest.raises(IndexError):
        second.run(_kernels.Pass(pool, cache, *rows, *angles, *ints))
    with pytest.raises(ValueError, match="arrays differ in tokens"):
        _kernels.Pass(pool, cache, *rows[:7], np.ones((2, 32), np.float32), *angles, *ints)
    with pytest.raises(TypeError):  # and never a copy that is thrown away
        _kernels.Pass(pool, cache, rows[0].astype(np.float64), *rows[1:], *angles, *ints)


def test_a_sequence_that_was_freed_is_no_longer_run():
    pool, cache = _kernels.Pool(1, "portable"), _kernels.Cache(1, 32, [None], "f32")
    weight = _kernels.Weight(pool, "F32", 32, np.ones((32, 32), np.float32).view(np.uint8))
    norm = np.ones(32, np.float32)
    layer = _kernels.Layer(0, norm, *[weight] * 4, norm, *[weight] * 3, 1e-5, "f32")
    slot = cache.allocate(1)
    rows, angles = [np.ones((1, 32), np.float32) for _ in range(8)], [np.ones((1, 16), np.float32)] * 2
    batch = _kernels.Pass(pool, cache, *rows, *angles, *(np.array([n], np.int32) for n in (slot, 0, 1)))
    layer.run(batch)
    cache.free(slot)
    with pytest.raises(IndexError, match="slot 0 is not allocated"):
        layer.run(batch)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is resident")
@pytest.mark.parametrize("whole", [False, True])
def test_pages_go_back_to_the_system(whole):
    size, before = 64 << 20, resident_memory()["anonymous"]
    pages = _kernels.pages(size, whole)
    assert not pages.any()
    pages[:] = 1
    assert resident_memory()["anonymous"] - before > 0.9 * size
    view = pages[:100]
    del pages
    assert view.all()
    del view
    assert resident_memory()["anonymous"] - before < 0.1 * size
    with pytest.raises(MemoryError):
        _kernels.pages(1 << 60, whole)


def huge_pages() -> bool:
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not huge_pages(), reason="the system has no huge pages")
def test_what_is_written_whole_comes_in_huge_pages():
    def faults(whole: bool) -> int:
        pages = _kernels.pages(64 << 20, whole)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pages[:] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert faults(whole=True) < faults(whole=False) / 4
