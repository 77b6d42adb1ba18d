"""Our classes compute what transformers' own do: every output, every argument, gradients too."""

import pytest
import torch
import transformers
from pairs import HEADS, close, ours, padded, positions, theirs, tokens
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from ventoux.pytorch import MistralConfig, MistralForCausalLM, RollingCache
from ventoux.pytorch.names import CACHE

SHAPES = {
    "window 4": {},
    "window 1": {"sliding_window": 1},
    "window 16": {"sliding_window": 16},
    "no window": {"sliding_window": None},
    "no groups": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1, "sliding_window": 3},
    "tied": {"tie_word_embeddings": True},
    "head_dim of its own": {"head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}
ROWS = [tokens(n, seed=n) for n in (20, 3, 11)]
POOLED = ("ForSequenceClassification",)
PAIRS = [("eager", "eager"), ("sdpa", "sdpa"), ("ventoux", "eager"), ("flex_attention", "eager")]


def labels_for(head: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    if head == "ForCausalLM":
        first = mask.cumsum(-1) <= 1  # which padding on the left would have to predict
        return {"labels": ids.masked_fill((mask == 0) | first, -100)}
    if head == "ForSequenceClassification":
        return {"labels": torch.tensor([2, 0, 1])}
    if head == "ForTokenClassification":
        return {"labels": (ids % 3).masked_fill(mask == 0, -100)}
    if head == "ForQuestionAnswering":
        return {"start_positions": torch.tensor([18, 17, 9]), "end_positions": torch.tensor([19, 19, 99])}
    return {}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_equals_transformers_in_all_shapes(shape, dtype):
    """Logits, hidden states, attentions, loss and gradients, padded on either side, longer than the window."""
    within = 1e-5 if dtype == torch.float32 else 1e-6  # rotations, norms and the loss are fp32 in both
    for side in ("left", "right"):
        ids, mask = padded(ROWS, side=side)
        if dtype == torch.float64:  # in which transformers' eager gives NaN for padding, and so for all
            ids, mask = tokens(3, 20), torch.ones(3, 20, dtype=torch.int64)
        mine = ours(implementation="eager", dtype=dtype, **SHAPES[shape])
        other = theirs(mine)
        say = {"labels": labels_for("ForCausalLM", ids, mask)["labels"], "attention_mask": mask, "use_cache": False}
        show = {"output_attentions": True, "output_hidden_states": True}
        found = mine(ids, **say, **show)
        expected = other(ids, position_ids=positions(mask), **say, **show)
        found.loss.backward()
        expected.loss.backward()
        close(found.loss, expected.loss, within=within)
        close(found.logits, expected.logits, within=within)
        assert len(found.hidden_states) == len(expected.hidden_states) == 3
        assert len(found.attentions) == len(expected.attentions) == 2
        for kind in ("hidden_states", "attentions"):
            for a, b in zip(found[kind], expected[kind], strict=True):
                close(a, b, within=within)
        for (name, a), (_, b) in zip(mine.named_parameters(), other.named_parameters(), strict=True):
            assert a.grad is not None, name
            close(a.grad, b.grad, within=within)


@pytest.mark.parametrize(("implementation", "oracle"), PAIRS)
@pytest.mark.parametrize("head", HEADS)
def test_every_class_on_every_implementation(head, implementation, oracle):
    """All fields of the output, and the gradients, with dropout off."""
    for side in ("left", "right"):
        ids, mask = padded(ROWS, side=side)
        if head == "ForQuestionAnswering":  # whose softmax runs over padding too
            ids, mask = tokens(3, 20), torch.ones(3, 20, dtype=torch.int64)
        mine = ours(head, implementation=implementation, num_labels=3, pad_token_id=0)
        other = theirs(mine, implementation=oracle)
        say = {"attention_mask": mask, "output_hidden_states": True, **labels_for(head, ids, mask)}
        found, expected = mine(ids, **say), other(ids, position_ids=positions(mask), **say)
        assert set(expected) <= set(found)
        each = {"last_hidden_state", "start_logits", "end_logits"} | (set() if head in POOLED else {"logits"})
        for name in set(expected) - {CACHE, "hidden_states"}:
            real = mask.bool() if name in each else ...  # what stands at padding is nobody's
            close(found[name][real], expected[name][real])
        for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
            close(a[mask.bool()], b[mask.bool()])
        for out in (found, expected):
            loss = out.last_hidden_state[mask.bool()].square().mean() if head == "Model" else out.loss
            loss.backward()
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            close(a.grad, b.grad)


@pytest.mark.parametrize("head", ["Model", "ForCausalLM", "ForSequenceClassification"])
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_goes_by_both_of_its_names(head, name):
    model, ids = ours(head), tokens(1, 9)
    with torch.no_grad():
        first = model(ids[:, :6], attention_mask=torch.ones(1, 6))
        found = model(ids[:, 6:], attention_mask=torch.ones(1, 9), **{name: first[CACHE]})
        assert found[CACHE] is first[CACHE]
        field = "last_hidden_state" if head == "Model" else "logits"
        expected = model(ids)[field]
        close(found[field], expected if head in POOLED else expected[:, 6:])
        with pytest.raises(ValueError, match="past_key_values is another name of cache"):
            model(ids, **{each: RollingCache(model.config) for each in ("cache", "past_key_values")})


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux", "flex_attention"])
@pytest.mark.parametrize(("window", "side"), [(1, "left"), (4, "left"), (4, "none"), (16, "left"), (None, "left")])
def test_steps_with_a_cache_equal_transformers_without(implementation, window, side):
    """A prompt in two chunks, then token by token, far past the window; each with every cache that there is."""
    mine = ours(implementation=implementation, sliding_window=window)
    other = theirs(mine)
    ids, mask = (tokens(3, 30), torch.ones(3, 30, dtype=torch.int64))
    if side == "left":
        ids, mask = padded([tokens(30), tokens(26, seed=1), tokens(19, seed=2)])
    with torch.no_grad():
        expected = other(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        caches = [None, RollingCache(mine.config), DynamicCache()]
        caches += [] if window == 1 else [DynamicCache(config=mine.config)]  # transformers' keeps too much of W=1
        for cache in caches:
            seen, chunks = 0, [13, 9, *[1] * 8]
            for n in chunks:
                out = mine(
                    ids[:, seen : seen + n],
                    attention_mask=mask[:, : seen + n],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                real = mask[:, seen : seen + n].bool()
                close(out.logits[real], expected[:, seen : seen + n][real])
                seen += n
            assert cache.get_seq_length() == 30


def test_the_cache_of_a_forward_pass_without_gradients_is_a_ring():
    model = ours()
    with torch.no_grad():
        assert isinstance(model(tokens(1, 9)).past_key_values, RollingCache)
    out = model(tokens(1, 9))
    assert type(out.past_key_values) is DynamicCache
    model(tokens(1, 2), past_key_values=out.past_key_values).logits.sum().backward()  # gradients pass it


@pytest.mark.parametrize("window", [1, 2, 4])
def test_gradients_through_a_cache_equal_those_without(window):
    ids = tokens(2, 11)
    whole, steps = ours(sliding_window=window), ours(sliding_window=window)
    whole(ids, use_cache=False).logits[:, 6:].square().mean().backward()
    first = steps(ids[:, :6])
    second = steps(ids[:, 6:], past_key_values=first.past_key_values)
    second.logits.square().mean().backward()
    for a, b in zip(steps.parameters(), whole.parameters(), strict=True):
        close(a.grad, b.grad)


@pytest.mark.parametrize("head", HEADS)
def test_state_dicts_interchange_and_fresh_weights_are_equal(head):
    config, kind = ours(head).config, type(ours(head))
    torch.manual_seed(0)
    mine = getattr(transformers, f"Mistral{head}")(config)
    torch.manual_seed(0)
    fresh = kind(config)
    assert list(fresh.state_dict()) == list(mine.state_dict())
    for name, weight in mine.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], weight), name  # initialized by the same rule
    fresh.load_state_dict(mine.state_dict(), strict=True)
    mine.load_state_dict(fresh.state_dict(), strict=True)


def test_losses_with_their_options():
    ids, mask = padded(ROWS)
    labels = labels_for("ForCausalLM", ids, mask)["labels"]
    mine = ours()
    other = theirs(mine)
    where = {"attention_mask": mask, "position_ids": positions(mask)}
    for extra in ({}, {"num_items_in_batch": torch.tensor(7)}, {"num_items_in_batch": 50}):
        close(mine(ids, labels=labels, **where, **extra).loss, other(ids, labels=labels, **where, **extra).loss)
    shifted = functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    found, expected = (m(ids, labels=labels, shift_labels=shifted, **where).loss for m in (mine, other))
    close(found, expected)
    nothing = torch.full_like(ids, -100)
    assert torch.isnan(mine(ids, labels=nothing, **where).loss) == torch.isnan(other(ids, labels=nothing, **where).loss)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0])),  # regression
        (4, torch.tensor([3, 0, 1])),
        (4, torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])),  # several at once
    ],
)
def test_losses_of_classification(num_labels, labels):
    ids, mask = padded(ROWS, side="right")
    mine = ours("ForSequenceClassification", num_labels=num_labels, pad_token_id=0)
    other = theirs(mine)
    found, expected = (m(ids, attention_mask=mask, labels=labels) for m in (mine, other))
    close(found.loss, expected.loss)
    close(found.logits, expected.logits)
    assert mine.config.problem_type == other.config.problem_type


@pytest.mark.parametrize("head", HEADS)
def test_outputs_as_tuples(head):
    """By argument and by config, nothing that is None in them."""
    mine = ours(head, num_labels=3, pad_token_id=0)
    other = theirs(mine)
    ids = tokens(1, 7)
    labels = {k: v[:1].clamp(max=5) for k, v in labels_for(head, ids, torch.ones_like(ids)).items()}
    with torch.no_grad():
        named, expected = (m(ids, output_hidden_states=True, **labels) for m in (mine, other))
        plain, plain_expected = (m(ids, output_hidden_states=True, return_dict=False, **labels) for m in (mine, other))
        mine.config.return_dict = False  # transformers' own heads fail with it
        by_config = mine(ids, output_hidden_states=True, **labels)
    assert list(named) == list(expected)
    for found in (plain, by_config):
        assert isinstance(found, tuple)
        assert len(found) == len(plain_expected) == len(named)
        close(found[0], plain_expected[0])
        close(found[1], plain_expected[1]) if isinstance(found[1], torch.Tensor) else None


@pytest.mark.parametrize("head", HEADS)
def test_arguments_by_position(head):
    """In the documented order, which is transformers'."""
    mine = ours(head, num_labels=3, pad_token_id=0)
    other = theirs(mine)
    ids, mask = padded(ROWS)
    if head == "ForQuestionAnswering":
        ids, mask = tokens(3, 20), torch.ones(3, 20, dtype=torch.int64)
    where = positions(mask)
    embeds = mine.get_input_embeddings()(ids).detach()
    last = list(labels_for(head, ids, mask).values())
    last += [False] if head == "ForCausalLM" else []  # use_cache
    real = mask.bool() if head == "Model" else ...
    first = "last_hidden_state" if head == "Model" else "loss"
    for ids_or_embeds in ((ids, None), (None, embeds)):
        caches = DynamicCache(), DynamicCache()
        found, expected = (
            model(ids_or_embeds[0], mask, where, cache, ids_or_embeds[1], *last)[first]
            for model, cache in zip((mine, other), caches, strict=True)
        )
        close(found[real], expected[real])
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == 20


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux", "flex_attention"])
def test_attentions_are_shown_by_every_implementation(implementation):
    """With the window, with a cache past it, asked for by argument or config, in the order of positions."""
    mine = ours(implementation=implementation)
    other = theirs(mine)
    ids, mask = padded(ROWS)
    with torch.no_grad():
        show = {"attention_mask": mask, "output_attentions": True}
        found, expected = mine(ids, **show), other(ids, position_ids=positions(mask), **show)
        close(torch.stack(found.attentions), torch.stack(expected.attentions))
        real = mask.bool()[:, None, :, None].expand_as(found.attentions[0])
        distance = torch.arange(20)[:, None] - torch.arange(20)
        outside = ((distance < 0) | (distance >= 4)).expand_as(real)
        assert found.attentions[0][real & outside].abs().max() == 0
        more, seen = tokens(3, 1, seed=9), torch.cat((mask, mask.new_ones(3, 1)), 1)
        step = mine(more, attention_mask=seen, past_key_values=found.past_key_values, output_attentions=True)
        whole = other(
            torch.cat((ids, more), 1), attention_mask=seen, position_ids=positions(seen), output_attentions=True
        )
        close(torch.stack(step.attentions), torch.stack(whole.attentions)[..., -1:, -4:])
        mine.set_attn_implementation("eager")
        mine.config.output_attentions = True
        assert len(mine(ids, attention_mask=mask).attentions) == 2


def test_logits_to_keep():
    mine = ours()
    other = theirs(mine)
    ids = tokens(2, 9)
    with torch.no_grad():
        each = (torch.arange(18).view(2, 9) % 3).bool()
        rows = torch.tensor([[1, 4], [8, 0]])
        for keep in (0, 1, 3, torch.tensor([0, 5]), torch.arange(9) > 4, rows, each):
            close(mine(ids, logits_to_keep=keep).logits, other(ids, logits_to_keep=keep).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux", "flex_attention"])
def test_positions_and_embeddings_of_a_callers_own(implementation):
    mine = ours(implementation=implementation)
    other = theirs(mine)
    ids = tokens(2, 9)
    shifted = torch.arange(100, 109).expand(2, -1)
    embeds = mine.get_input_embeddings()(ids)
    with torch.no_grad():
        close(mine(ids, position_ids=shifted).logits, other(ids, position_ids=shifted).logits)
        close(mine(ids, position_ids=shifted[:1]).logits, other(ids, position_ids=shifted[:1]).logits)
        close(mine(inputs_embeds=embeds).logits, other(inputs_embeds=embeds).logits)
        mask = torch.ones(2, 9)
        spread = torch.arange(0, 18, 2).expand(
            2, -1
        )  # a mask says that the row is one sequence, whatever positions say
        found = mine(ids, position_ids=spread, attention_mask=mask).logits
        close(found, other(ids, position_ids=spread, attention_mask=mask).logits)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "ventoux"])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, implementation):
    ids, mask = padded(ROWS)
    labels = ids.masked_fill(mask == 0, -100)
    plain, checkpointed = ours(implementation=implementation).train(), ours(implementation=implementation).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    for model in (plain, checkpointed):
        out = model(ids, attention_mask=mask, labels=labels, output_hidden_states=True)
        out.loss.backward()
    assert out.past_key_values is None
    assert len(out.hidden_states) == 3
    for a, b in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad, within=1e-6)


def test_the_configs_defaults_are_the_documented_ones():
    config = MistralConfig()
    documented = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    assert {name: getattr(config, name) for name in documented} == documented


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"sliding_window": 0}, "sliding_window counts keys"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types mixes windows"),
        ({"is_causal": False}, "these classes are causal"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'dynamic'"),
    ],
)
def test_configs_that_these_classes_would_not_follow_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ours(**settings)


def test_head_dims_that_are_odd_are_refused():
    config = ours().config
    config.head_dim = 15  # transformers' config refuses it when it is made
    with pytest.raises(ValueError, match="head_dim must be even"):
        MistralForCausalLM(config)


def test_activations_of_a_configs_own():
    mine = ours(hidden_act="gelu")
    close(mine(tokens(1, 9)).logits, theirs(mine)(tokens(1, 9)).logits)


@pytest.mark.parametrize("arguments", [{}, {"input_ids": tokens(1, 3), "inputs_embeds": torch.zeros(1, 3, 64)}])
def test_ids_or_embeddings(arguments):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        ours()(**arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_ids": tokens(5)}, r"must be \[batch, tokens\] with at least one token; found the shape \[5\]"),
        ({"input_ids": tokens(1, 0)}, r"at least one token; found the shape \[1, 0\]"),
        (
            {"input_ids": tokens(2, 3), "position_ids": torch.arange(3)},
            r"position_ids must be \[2, 3\], as the tokens are; found \[3\]",
        ),
        ({"input_ids": tokens(2, 3), "attention_mask": torch.ones(1, 3)}, "attention_mask has 1 rows; expected 2"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        ours()(**arguments)


def test_attention_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = ours(implementation="ventoux", attention_dropout=0.5)
    ids = tokens(1, 12)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="no dropout"):
        ours(implementation="flex_attention", attention_dropout=0.5).train()(ids)


def test_resized_embeddings_keep_what_was_there():
    model = ours()
    ids = tokens(1, 7)
    before = model(ids).logits
    model.resize_token_embeddings(100)
    close(model(ids).logits[..., :96], before)
    assert isinstance(model, MistralForCausalLM)
