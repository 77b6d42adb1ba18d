"""Classification reads the last real token, wherever the padding is, and says so when it cannot know it."""

import pytest
import torch
from pairs import IMPLEMENTATIONS, close, ours, padded, tokens

ROWS = [tokens(n, seed=n) for n in (13, 6, 1)]


def classifier(**settings):
    return ours("ForSequenceClassification", num_labels=3, **settings)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pad", [0, 2, 50])  # a token of its own, eos, a token that texts have
@torch.no_grad()
def test_facts_19_classification_is_equal_under_left_right_and_no_padding(implementation, pad):
    model = classifier(implementation=implementation, pad_token_id=pad, eos_token_id=2)
    rows = [torch.cat((row, torch.tensor([2]))) for row in ROWS]  # texts that end in eos
    alone = torch.cat([model(row[None], attention_mask=torch.ones(1, len(row))).logits for row in rows])
    for side in ("left", "right"):
        ids, mask = padded(rows, side=side, pad=pad)
        close(model(ids, attention_mask=mask).logits, alone)
        close(model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).logits, alone)


@torch.no_grad()
def test_facts_19_without_a_mask_padding_is_found_by_its_token():
    model = classifier(pad_token_id=0)
    alone = torch.cat([model(row[None]).logits for row in ROWS])
    ids, _ = padded(ROWS, side="right")
    close(model(ids).logits, alone)
    close(model(tokens(2, 9)).logits, model(tokens(2, 9), attention_mask=torch.ones(2, 9)).logits)
    no_pad = classifier()
    assert no_pad.config.pad_token_id is None
    close(no_pad(ROWS[0][None]).logits, alone[:1])
    close(no_pad(inputs_embeds=no_pad.get_input_embeddings()(ROWS[0][None])).logits, alone[:1])


@torch.no_grad()
def test_where_the_last_token_cannot_be_known_is_an_error():
    ids, mask = padded(ROWS, side="right")
    model = classifier()
    with pytest.raises(ValueError, match="the last token of each text is not known: give attention_mask"):
        model(ids)
    with pytest.raises(ValueError, match="the last token of each text is not known: give attention_mask"):
        classifier(pad_token_id=0)(inputs_embeds=torch.zeros(2, 3, 64))
    ambiguous = classifier(pad_token_id=2, eos_token_id=[1, 2])
    with pytest.raises(ValueError, match="rows end in token 2, which both pads and ends texts"):
        ambiguous(padded(ROWS, side="right", pad=2)[0])
    with pytest.raises(ValueError, match="rows begin with the padding, token 0: give attention_mask"):
        classifier(pad_token_id=0)(padded(ROWS, side="left")[0])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(attention_mask=mask)
    assert model(ids, attention_mask=mask).logits.shape == (3, 3)


@torch.no_grad()
def test_a_row_of_padding_is_finite_and_the_others_do_not_notice():
    model = classifier(pad_token_id=0)
    ids, mask = padded([*ROWS, tokens(0)], side="left")
    found = model(ids, attention_mask=mask).logits
    assert found.isfinite().all()
    close(found[:3], torch.cat([model(row[None]).logits for row in ROWS]))


@torch.no_grad()
def test_a_text_may_be_classified_in_pieces():
    """With a cache, the last real token is the last of the tokens that are new."""
    model = classifier()
    ids, mask = padded([tokens(13), tokens(9, seed=1)])
    first = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
    second = model(ids[:, 8:], attention_mask=mask, past_key_values=first.past_key_values)
    close(second.logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForQuestionAnswering"])
@torch.no_grad()
def test_facts_19_labels_of_tokens_and_spans_do_not_move_with_padding(head):
    model = ours(head, num_labels=3)
    for side in ("left", "right"):
        ids, mask = padded(ROWS, side=side)
        found = model(ids, attention_mask=mask)
        for i, row in enumerate(ROWS):
            alone, real = model(row[None]), mask[i].bool()
            for name in ("logits", "start_logits", "end_logits"):
                if name in found:
                    close(found[name][i][real], alone[name][0])


def test_dropout_before_the_labels_of_tokens_acts_in_training_only():
    assert ours("ForTokenClassification").dropout.p == 0.1
    assert ours("ForTokenClassification", classifier_dropout=0.3).dropout.p == 0.3
    model = ours("ForTokenClassification")
    ids = tokens(1, 9)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
