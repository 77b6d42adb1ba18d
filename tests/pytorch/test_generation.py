"""generate() past the window: a padded batch says what each prompt says alone, by every way of decoding."""

import copy

import pytest
import torch
from pairs import IMPLEMENTATIONS, close, ours, padded, theirs, tokens
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, StaticCache

from ventoux.pytorch import RollingCache

ROWS = [tokens(n, seed=n) for n in (9, 2, 5)]
NEW = 10  # with a window of 4, and prompts shorter and longer than it


def generate(model, ids, mask=None, **settings):
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | settings
    return model.generate(ids, attention_mask=mask, **settings)


def endless(**settings):
    """A model that does not end its texts by itself."""
    return ours(**{"eos_token_id": None, "bos_token_id": None} | settings)


def alone(model, rows=ROWS, **settings):
    """The new tokens of each prompt by itself, without a cache."""
    settings["use_cache"] = False
    return [generate(model, row[None], torch.ones(1, len(row)), **settings)[0, len(row) :].tolist() for row in rows]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_facts_2_5_6_a_padded_batch_equals_one_by_one_on_every_implementation(implementation):
    expected = alone(endless(implementation="eager"))
    model = endless(implementation=implementation)
    ids, mask = padded(ROWS)
    assert generate(model, ids, mask)[:, ids.shape[1] :].tolist() == expected
    if implementation != "flex_attention":  # slow on a CPU
        assert generate(model, ids, mask, use_cache=False)[:, ids.shape[1] :].tolist() == expected
    assert generate(model, ROWS[0][None])[0, len(ROWS[0]) :].tolist() == expected[0]


@pytest.mark.parametrize("window", [1, 3, None])
def test_facts_6_other_windows(window):
    model = endless(sliding_window=window)
    ids, mask = padded(ROWS)
    expected = alone(model)
    assert generate(model, ids, mask)[:, ids.shape[1] :].tolist() == expected
    oracle = theirs(model)
    assert alone(oracle) == expected


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])
@pytest.mark.parametrize("kind", ["growing", "sliding", "static", "ring", "by name", "chunks"])
def test_every_cache_gives_the_same_text(implementation, kind):
    """transformers' own, given by the caller or by name, and ours; and a prompt in chunks."""
    model = endless(implementation=implementation)
    ids, mask = padded(ROWS)
    settings = {
        "growing": lambda: {"past_key_values": DynamicCache()},
        "sliding": lambda: {"past_key_values": DynamicCache(config=model.config)},
        "static": lambda: {"past_key_values": StaticCache(config=model.config, max_cache_len=ids.shape[1] + NEW)},
        "ring": lambda: {"past_key_values": RollingCache(model.config)},
        "by name": lambda: {"cache_implementation": "static"},
        "chunks": lambda: {"prefill_chunk_size": 3},
    }[kind]()
    assert generate(model, ids, mask, **settings)[:, ids.shape[1] :].tolist() == alone(endless())


def test_sampling_with_a_seed_equals_transformers():
    model = endless()
    other = theirs(model)
    ids = torch.stack([tokens(7), tokens(7, seed=1)])  # padded rows would have other logits there
    for settings in ({"temperature": 0.8, "top_p": 0.9}, {"top_k": 5, "num_return_sequences": 3}):
        texts = []
        for each in (model, other):
            torch.manual_seed(1)
            texts.append(generate(each, ids, do_sample=True, **settings).tolist())
        assert texts[0] == texts[1]
    assert len(texts[0]) == 6


@pytest.mark.parametrize("implementation", ["sdpa", "ventoux"])
def test_beams_equal_those_without_a_cache(implementation):
    """Beams move the cache's rows between steps; rows are padded, and past the window."""
    model = endless(implementation=implementation)
    ids, mask = padded(ROWS)
    settings = {"num_beams": 3, "num_return_sequences": 2}
    found = generate(model, ids, mask, **settings)
    assert found.tolist() == generate(model, ids, mask, use_cache=False, **settings).tolist()
    for i, row in enumerate(ROWS):
        expected = generate(theirs(model), row[None], **settings)[:, len(row) :]
        assert found[2 * i : 2 * i + 2, ids.shape[1] :].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("implementation", "draft"),
    [(name, draft) for name in ("eager", "sdpa", "ventoux") for draft in ("itself", "another", "prompt lookup")]
    + [("flex_attention", "prompt lookup")],
)
def test_facts_12_assisted_equals_greedy_past_the_window(implementation, draft):
    """Drafts that are right, wrong, and found in the prompt; rings for both; the caller's ring stays W long."""
    model = endless(implementation=implementation)
    prompt = torch.cat((tokens(5), tokens(5), tokens(3)))[None]
    expected = generate(endless(), prompt, use_cache=False, max_new_tokens=24).tolist()
    settings = {
        "itself": {"assistant_model": endless(implementation=implementation)},
        "another": {"assistant_model": endless(implementation=implementation, num_hidden_layers=1)},
        "prompt lookup": {"prompt_lookup_num_tokens": 7},
    }[draft]
    if "assistant_model" in settings:
        settings["assistant_model"].generation_config.num_assistant_tokens = 6  # more than the window
    cache = RollingCache(model.config)
    found = generate(model, prompt, max_new_tokens=24, past_key_values=cache, **settings)
    assert found.tolist() == expected
    assert all(layer.keys.shape[2] == 4 and layer._evicted is None for layer in cache.layers)
    assert generate(model, prompt, max_new_tokens=24, **settings).tolist() == expected


def test_facts_12_sampled_speculation_runs_past_the_window():
    model, draft = endless(), endless(num_hidden_layers=1)
    torch.manual_seed(0)
    assert generate(model, ROWS[0][None], assistant_model=draft, do_sample=True).shape == (1, 9 + NEW)


def test_embeddings_may_stand_for_a_prompt():
    model = endless()
    ids, mask = padded(ROWS)
    embeds = model.get_input_embeddings()(ids)
    assert generate(model, None, mask, inputs_embeds=embeds).tolist() == alone(model)


def test_facts_18_finished_rows_stay_finished():
    model = endless()
    ids, mask = padded(ROWS)
    texts = alone(model)
    end = texts[0][4]  # one row ends there, the others go on
    found = generate(model, ids, mask, eos_token_id=end)[:, ids.shape[1] :].tolist()
    for row, text in zip(found, texts, strict=True):
        stop = text.index(end) + 1 if end in text else len(text)
        assert row[:stop] == text[:stop]
        assert set(row[stop:]) <= {0}


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])
def test_a_conversation_goes_on_with_its_cache(implementation):
    """Two more turns of several tokens, each past the window; and the same with the mask of a padded batch."""
    model = endless(implementation=implementation)
    cache = RollingCache(model.config)
    history = ROWS[0][None]
    for seed in (1, 2, 3):
        expected = generate(endless(), history, use_cache=False)
        history = generate(model, history, past_key_values=cache)
        assert history.tolist() == expected.tolist()
        history = torch.cat((history, tokens(1, 3, seed=seed)), 1)
    ids, mask = padded(ROWS)
    cache = RollingCache(model.config)
    first = generate(model, ids, mask, past_key_values=cache)
    whole = torch.cat((first, tokens(3, 2, seed=7)), 1)
    seen = torch.cat((mask, torch.ones(3, NEW + 2, dtype=torch.int64)), 1)
    found = generate(model, whole, seen, past_key_values=cache)[:, whole.shape[1] :].tolist()
    assert found == alone(endless(), [row[keep.bool()] for row, keep in zip(whole, seen, strict=True)])


def test_one_prefix_serves_many():
    """A cache of a common beginning, copied for each continuation."""
    model = endless()
    prefix = tokens(11)
    with torch.no_grad():
        kept = model(prefix[None], use_cache=True).past_key_values
    for seed in (1, 2):
        prompt = torch.cat((prefix, tokens(3, seed=seed)))
        found = generate(model, prompt[None], past_key_values=copy.deepcopy(kept))[0, len(prompt) :].tolist()
        assert found == alone(model, [prompt])[0]


def test_facts_8_prompts_padded_on_the_right_are_refused():
    model = ours(pad_token_id=0)
    ids, mask = padded(ROWS, side="right")
    for settings in ({"attention_mask": mask}, {"attention_mask": mask, "use_cache": False}, {}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="ends in padding, and generation would go on from the padding"):
            model.generate(ids, max_new_tokens=2, **settings)  # without a mask, transformers finds it by the token
    with pytest.raises(ValueError, match="ends in padding"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, past_key_values=RollingCache(model.config))


def test_facts_14_5000_tokens_stay_finite():
    model = endless(sliding_window=64, num_hidden_layers=1, dtype=torch.bfloat16, max_position_embeddings=8192)
    out = generate(model, tokens(1, 5000), return_dict_in_generate=True, output_logits=True)
    assert torch.stack(out.logits).isfinite().all()
    assert out.past_key_values.get_seq_length() == 5000 + NEW - 1
    assert all(layer.keys.shape[2] == 64 for layer in out.past_key_values.layers)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "ventoux"])
def test_attentions_and_hidden_states_of_generation(implementation):
    model = endless(implementation=implementation)
    show = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    found = generate(model, ROWS[0][None], **show, output_scores=True)
    expected = generate(theirs(model), ROWS[0][None], **show, output_scores=True, past_key_values=DynamicCache())
    assert found.sequences.tolist() == expected.sequences.tolist()
    for a, b in zip(found.attentions, expected.attentions, strict=True):
        width = min(4, b[0].shape[-1]) if b[0].shape[2] == 1 else b[0].shape[-1]
        close(torch.stack(a), torch.stack(b)[..., -width:])
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        close(torch.stack(a), torch.stack(b))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_generating_in_training_mode(checkpointing):
    """As reinforcement learning does between steps: with checkpointing on there is no cache, but the same text."""
    model = endless()
    expected = alone(model)
    model.train()
    model.gradient_checkpointing_enable() if checkpointing else None
    ids, mask = padded(ROWS)
    assert generate(model, ids, mask)[:, ids.shape[1] :].tolist() == expected
    if checkpointing:
        with pytest.raises(ValueError, match="gradient checkpointing runs layers twice and keeps no cache"):
            generate(model, ids, mask, past_key_values=RollingCache(model.config))


@pytest.mark.slow
def test_transformers_continuous_batching():
    """Its paged cache goes around ours: requests of different lengths, past the window."""
    model = endless(implementation="sdpa")
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    done = model.generate_batch([row.tolist() for row in ROWS], generation_config=config)
    assert [request.generated_tokens for request in done.values()] == alone(endless())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "backend"),
    [("eager", "aot_eager"), ("sdpa", "aot_eager"), ("ventoux", "aot_eager"), ("ventoux", "inductor")],
)
def test_compiled_without_graph_breaks(implementation, backend):
    """Forward without and with a cache, and backward, in one graph each. Inductor takes a minute for each."""
    torch.compiler.reset()
    model = endless(implementation=implementation, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids, mask = padded(ROWS)
    with torch.no_grad():
        close(compiled(tokens(2, 12), use_cache=False).logits, model(tokens(2, 12)).logits)
        found = compiled(ids, attention_mask=mask, use_cache=False).logits
        close(found[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])
        caches = RollingCache(model.config), RollingCache(model.config)
        for n in (7, 1, 1):
            found, expected = (
                m(tokens(2, n), past_key_values=c) for m, c in zip((compiled, model), caches, strict=True)
            )
            close(found.logits, expected.logits)
    ids = tokens(2, 12)
    compiled(ids, labels=ids, use_cache=False).loss.backward()
    found = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for a, b in zip(found, model.parameters(), strict=True):
        close(a, b.grad)
