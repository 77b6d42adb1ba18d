"""Several sequences in one row do not see each other: outputs and gradients equal those of one by one."""

import pytest
import torch
from flash_reference import build, replace_flash
from pairs import IMPLEMENTATIONS, close, ours, tokens
from transformers import DataCollatorWithFlattening

from ventoux.pytorch import MistralModel

ROWS = [tokens(n, seed=n) for n in (9, 1, 1, 6)]
IDS = torch.cat(ROWS)[None]
POSITIONS = torch.cat([torch.arange(len(row)) for row in ROWS])[None]
BEGINS = torch.tensor([0, 9, 10, 11, 17], dtype=torch.int32)
EVERYWHERE = [*IMPLEMENTATIONS, "flash_attention_2"]


@pytest.fixture(autouse=True)
def flash_calls(monkeypatch):
    return replace_flash(monkeypatch)


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("window", [4, None])
def test_facts_11_packed_sequences_do_not_see_each_other(implementation, window):
    """By positions or by cu_seq_lens; causal too: what comes later in a sequence changes nothing before it."""
    model = build(implementation, sliding_window=window)
    said = {
        "positions": {"position_ids": POSITIONS},
        "lengths": {"cu_seq_lens_q": BEGINS},
        "all": {
            "position_ids": POSITIONS,
            "cu_seq_lens_q": BEGINS,
            "cu_seq_lens_k": BEGINS,
            "max_length_q": 9,
            "max_length_k": 9,
        },
    }
    for name, arguments in said.items():
        model.zero_grad()
        out = model(IDS, **arguments)
        assert out.past_key_values is None, name
        out.logits.square().mean().backward()
        together = [weight.grad.clone() for weight in model.parameters()]
        model.zero_grad()
        alone = torch.cat([model(row[None], use_cache=False).logits for row in ROWS], 1)
        alone.square().mean().backward()
        close(out.logits, alone)
        for a, b in zip(together, (weight.grad for weight in model.parameters()), strict=True):
            close(a, b)
        changed = IDS.clone()
        changed[0, 13] = (changed[0, 13] + 1) % 96  # the third of the last sequence
        moved = (model(changed, **arguments).logits - out.logits)[0].abs().amax(-1) > 1e-6
        assert moved.nonzero().min() == 13


@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_a_batch_of_packed_rows(implementation):
    model = build(implementation)
    ids = torch.stack((IDS[0], tokens(17, seed=99)))
    where = torch.stack((POSITIONS[0], torch.cat((torch.arange(5, 12), torch.arange(10)))))  # one that goes on at 5
    with torch.no_grad():
        found = model(ids, position_ids=where).logits
        for row in (0, 1):
            close(found[row], model(ids[row : row + 1], position_ids=where[row : row + 1]).logits[0])
        close(found[1, 7:], model(ids[1:, 7:], use_cache=False).logits[0])
        both = torch.cat((BEGINS, 17 + BEGINS[1:]))
        close(model(ids, cu_seq_lens_q=both).logits[0], found[0])


def test_transformers_collator_gives_what_we_take():
    model = ours().train()
    features = [{"input_ids": row.tolist()} for row in ROWS]
    alone = [model(row[None], labels=row[None], use_cache=False).loss * (len(row) - 1) for row in ROWS if len(row) > 1]
    expected = sum(alone) / (8 + 5)
    for settings in ({}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}, {"return_position_ids": False}):
        if settings == {"return_position_ids": False}:
            settings["return_flash_attn_kwargs"] = True
        batch = DataCollatorWithFlattening(**settings)(features, return_tensors="pt")
        close(model(**batch).loss, expected)
        close(model(**batch, num_items_in_batch=torch.tensor(13)).loss, expected)


def test_gradient_checkpointing_of_packed_rows():
    plain, checkpointed = ours().train(), ours().train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(IDS, position_ids=POSITIONS, labels=IDS).loss.backward()
    for a, b in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad)


def test_what_packing_excludes_is_refused():
    model = ours()
    with pytest.raises(ValueError, match="packed sequences cannot be continued"):
        model(IDS, position_ids=POSITIONS, use_cache=True)
    with pytest.raises(ValueError, match="cu_seq_lens_q is for packed rows, which have neither attention_mask"):
        model(IDS, cu_seq_lens_q=BEGINS, attention_mask=torch.ones_like(IDS))
    for wrong in ([0, 9, 16], [1, 17], [0, 12, 9, 17]):
        with pytest.raises(ValueError, match=r"must go up from 0 to the 17 tokens of the batch; found \["):
            model(IDS, cu_seq_lens_q=torch.tensor(wrong))


def test_without_a_cache_forward_is_causal_and_keeps_none():
    model = MistralModel(ours().config)
    assert model(IDS, use_cache=False).past_key_values is None
    assert model(IDS).past_key_values is not None
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
