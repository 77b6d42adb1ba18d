"""What reviewers found: each of these was silently wrong, without gradients, endless, or an error of torch's own."""

import pytest
import torch
from pairs import ours, padded, theirs, tokens
from transformers import StaticCache

from ventoux.pytorch import MistralForCausalLM, RollingCache


def test_a_static_cache_read_in_chunks_by_flex():
    model, ids = ours(implementation="flex_attention", sliding_window=None), tokens(1, 12)
    cache = StaticCache(model.config, max_cache_len=32)
    with torch.no_grad():
        whole = theirs(model)(ids).logits
        chunks = [model(chunk, past_key_values=cache).logits for chunk in ids.split([6, 1, 3, 2], 1)]
    torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("window", [4, 16])
def test_one_token_over_a_ring_has_its_gradients(window):
    model, ids = ours(sliding_window=window), tokens(1, 8)
    gradients = []
    for each in (model, theirs(model)):
        with torch.no_grad():
            cache = each(ids[:, :7], use_cache=True).past_key_values
        each(ids[:, 7:], past_key_values=cache).logits.pow(2).sum().backward()
        gradients.append({name: weight.grad for name, weight in each.named_parameters()})
    for name, found in gradients[0].items():
        expected = gradients[1][name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=name)


def test_assisted_generation_takes_a_pad_id_within_the_text_for_text():
    model, assistant, ids = ours(), ours(num_hidden_layers=1), tokens(1, 9)
    ids[0, 3] = 0
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, eos_token_id=None, **settings)
    assisted = model.generate(ids, eos_token_id=None, assistant_model=assistant, **settings)
    assert torch.equal(assisted, plain)


def test_a_ring_that_recorded_for_one_call_does_not_for_the_next():
    model, ids = ours(), tokens(1, 9)
    cache = RollingCache(model.config)
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "past_key_values": cache}
    text = model.generate(ids, max_new_tokens=10, prompt_lookup_num_tokens=3, **settings)
    text = model.generate(text, max_new_tokens=10, **settings)
    held = cache.nbytes
    model.generate(text, max_new_tokens=100, **settings)
    assert cache.nbytes == held


def test_a_ring_made_in_inference_mode_serves_outside_of_it():
    model, ids = ours(), tokens(1, 12)
    with torch.inference_mode():
        cache = model(ids[:, :8], use_cache=True).past_key_values
    with torch.no_grad():
        rest = model(ids[:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(rest, model(ids).logits[:, 8:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention", "ventoux"])
def test_a_4d_mask_of_whole_numbers_says_what_is_seen(implementation):
    model, ids = ours(implementation=implementation, sliding_window=None), tokens(1, 7)
    mask = torch.ones(7, 7).tril()[None, None]
    with torch.no_grad():
        expected = model(ids).logits
    found = model(ids, attention_mask=mask.long(), use_cache=False).logits  # with gradients, which flex has not
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_packed_rows_with_a_mask_or_a_cache_are_refused():
    model, ids = ours(), tokens(1, 14)
    positions = torch.cat((torch.arange(5), torch.arange(9)))[None]
    with torch.no_grad():
        model(ids, position_ids=positions)
        for given in ({"attention_mask": torch.ones_like(ids)}, {"past_key_values": RollingCache(model.config)}):
            with pytest.raises(ValueError, match="begin anew"):
                model(ids, position_ids=positions, **given)
        _, mask = padded([tokens(3), tokens(9)])
        given = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)  # as transformers makes them, with 1 in padding
        model(tokens(2, 9), attention_mask=mask, position_ids=given)


def test_masks_caches_and_labels_that_do_not_fit_are_refused():
    model, ids = ours(), tokens(2, 6)
    with pytest.raises(ValueError, match="other values"):
        model(ids, attention_mask=torch.zeros(2, 6).masked_fill(torch.ones(2, 6).triu() > 0, -1e9))
    with pytest.raises(ValueError, match="fewer keys"):
        model(ids, past_key_values=RollingCache(ours(sliding_window=2).config))
    with pytest.raises(ValueError, match="layers"):
        model(ids, past_key_values=RollingCache(ours(num_hidden_layers=1).config))
    with pytest.raises(ValueError, match="labels must be"):
        model(ids, labels=ids.reshape(3, 4))
    with pytest.raises(ValueError, match="labels must be"):
        ours("ForTokenClassification")(ids, labels=ids.T)


def test_a_folder_without_a_config_is_not_taken_for_a_7b(tmp_path):
    with pytest.raises(OSError, match=r"no config\.json"):
        MistralForCausalLM.from_pretrained(tmp_path)
