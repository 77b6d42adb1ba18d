"""reference/one_file.py against transformers, and against what the window promises."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
SOURCE = Path(__file__).parents[2] / "reference" / "one_file.py"


def load_source():
    spec = importlib.util.spec_from_file_location("one_file", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_file"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


one_file = load_source()
WINDOWS = [3, 4, 16, None]


def tiny(*, window, heads=4, kv_heads=2, tied=False, layers=2, head_dim=8):
    """A random MistralForCausalLM (eager, float32) and the one-file model with its weights."""
    torch.manual_seed(hash((window, heads, kv_heads, tied)) % 1000)
    config = transformers.MistralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=window,
        rms_norm_eps=1e-5,
        initializer_range=0.2,  # the default of 0.02 leaves attention nearly uniform and hides mistakes
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    theirs = transformers.MistralForCausalLM(config).eval()
    ours = one_file.Mistral(
        one_file.Config(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            windows=(window,) * layers,
            tie_embeddings=tied,
        )
    )
    return theirs, ours.load(theirs.state_dict())


def random_ids(length, seed=0):
    return torch.randint(0, 96, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model, ids, **more):
    return model(ids, **more)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(window, heads, kv_heads, tied):
    theirs, ours = tiny(window=window, heads=heads, kv_heads=kv_heads, tied=tied)
    for length in (1, 3, 4, 5, 40):
        ids = random_ids(length)
        with torch.inference_mode():
            expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(logits(ours, ids), expected, rtol=0, atol=1e-5)


def test_head_dim_need_not_be_hidden_size_over_heads():
    theirs, ours = tiny(window=4, head_dim=16)
    ids = random_ids(12)
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(logits(ours, ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_facts_1_each_query_sees_exactly_its_window(window):
    """On one layer, the gradient of a query's logits says which keys it sees: the last min(i+1, W)."""
    _, ours = tiny(window=window, layers=1)
    length = 20
    for query in range(length):
        embedded = ours.embed_tokens(random_ids(length)).detach().requires_grad_()
        positions, sequences = one_file.places([length])
        ours.layers[0](embedded, positions, sequences)[query].sum().backward()
        seen = [key for key in range(length) if embedded.grad[key].abs().max() > 0]
        width = min(query + 1, window or length)
        assert seen == list(range(query - width + 1, query + 1))


@pytest.mark.parametrize("window", [3, 4, 16])
def test_facts_4_only_a_change_inside_the_window_changes_the_logits(window):
    _, ours = tiny(window=window, layers=1)
    ids = random_ids(24)
    before = logits(ours, ids)[-1]
    for place in range(24):
        changed = ids.clone()
        changed[place] = (ids[place] + 1) % 96
        same = torch.equal(logits(ours, changed)[-1], before)
        assert same == (place < 24 - window), f"token {place}, window {window}"


@pytest.mark.parametrize("window", WINDOWS)
def test_facts_11_causal_and_blind_across_packed_sequences(window):
    _, ours = tiny(window=window)
    lengths = [1, 5, 17, 3]
    ids = random_ids(sum(lengths))
    packed = logits(ours, ids, lengths=lengths)
    alone = torch.cat([logits(ours, part) for part in ids.split(lengths)])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    prefixes = torch.stack([logits(ours, ids[: n + 1])[-1] for n in range(len(ids))])
    torch.testing.assert_close(logits(ours, ids), prefixes, rtol=0, atol=1e-5)


def test_layers_may_differ_in_their_windows():
    """Two layers, windows 2 and None: the last token still feels the first one, through the second layer only."""
    _, ours = tiny(window=2)
    ids = random_ids(12)
    changed = torch.cat([(ids[:1] + 1) % 96, ids[1:]])
    assert torch.equal(logits(ours, ids)[-1], logits(ours, changed)[-1])
    ours.layers[1].window = None
    assert not torch.equal(logits(ours, ids)[-1], logits(ours, changed)[-1])


def test_generate_equals_transformers():
    theirs, ours = tiny(window=4)
    ids = random_ids(3)
    expected = theirs.generate(ids[None], max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours.generate(ids.tolist(), 16) == expected[0, 3:].tolist()


def test_generate_stops_before_the_end_of_sequence():
    _, ours = tiny(window=4)
    free = ours.generate([1, 2, 3], 8)
    assert ours.generate([1, 2, 3], 8, eos_id=free[-1]) == free[: free.index(free[-1])]


def interleave(weight, head_dim):
    """The opposite of one_file.halves, written the other way round: row 2i from i, row 2i+1 from i + D/2."""
    order = [half * head_dim // 2 + i for i in range(head_dim // 2) for half in (0, 1)]
    return weight.view(-1, head_dim, weight.shape[1])[:, order].reshape(weight.shape)


def write_raw(folder, theirs, *, pickle):
    back = {new: old for old, new in one_file.RAW_NAMES.items()}
    raw = {}
    for name, tensor in theirs.state_dict().items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        prefix, rest = (parts[:2], parts[2]) if parts[0] == "layers" else ([], ".".join(parts))
        turned = interleave(tensor, 8) if rest.endswith(("q_proj", "k_proj")) else tensor
        raw[".".join([*prefix, back.get(rest, rest), "weight"])] = turned.contiguous()
    params = {"dim": 32, "n_layers": 2, "head_dim": 8, "hidden_dim": 48, "n_heads": 4, "n_kv_heads": 2}
    params |= {"norm_eps": 1e-5, "vocab_size": 96, "sliding_window": 4}
    (folder / "params.json").write_text(json.dumps(params))
    if pickle:
        torch.save(raw, folder / "consolidated.00.pth")
    else:
        from safetensors.torch import save_file

        save_file(raw, folder / "consolidated.safetensors")


@pytest.mark.parametrize("layout", ["hf", "raw", "pth"])
def test_every_layout_loads_to_the_same_logits(tmp_path, layout):
    theirs, ours = tiny(window=4)
    if layout == "hf":
        theirs.save_pretrained(tmp_path)
        loaded = one_file.from_huggingface(tmp_path)
    else:
        write_raw(tmp_path, theirs, pickle=layout == "pth")
        loaded = one_file.from_raw(tmp_path)
    ids = random_ids(12)
    torch.testing.assert_close(logits(loaded, ids), logits(ours, ids), rtol=0, atol=0)


def test_a_missing_weight_is_an_error():
    theirs, ours = tiny(window=4)
    weights = theirs.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.up_proj"):
        ours.load(weights)


@pytest.mark.slow
def test_main_continues_a_prompt(tmp_path):
    """With a real SentencePiece vocabulary and random weights: the prompt comes back with text after it."""
    mistral_common = pytest.importorskip("mistral_common")
    source = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    config = transformers.MistralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    command = [sys.executable, str(SOURCE), str(tmp_path), "This is a test", "--max_tokens", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("This is a test")
    assert len(done.stdout.strip()) > len("This is a test")
