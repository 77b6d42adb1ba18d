"""PEFT's adapters attach to our classes, train, save, reload and merge, as they do with transformers' own."""

import peft
import pytest
import torch
import transformers
from tiny import tiny_model
from tiny_tokenizer import VOCAB, tiny_batch

from ventoux import pytorch
from ventoux.pytorch.names import CACHE

ASKED = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture
def folder(tmp_path, request):
    """A model whose window is shorter than the texts, unless a test asks for another one."""
    window = getattr(request, "param", 8)
    tiny_model(vocab_size=VOCAB, sliding_window=window, pad_token_id=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def base(folder, classes=pytorch, name="MistralForCausalLM", **settings):
    torch.manual_seed(0)  # heads and adapters begin at random
    return getattr(classes, name).from_pretrained(folder, attn_implementation="eager", **settings)


def adapted(model, **settings):
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA | settings))


def train(model, batch, *, steps=10, rate=1e-2):
    """Losses of some steps of AdamW on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=rate, eps=1e-3)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def texts():
    batch = tiny_batch()
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def logits(model, batch):
    """Of the real tokens, [real, vocab]."""
    mask = batch["attention_mask"]
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=mask).logits
    return found[:, -mask.shape[1] :][mask.bool()]


def assert_close(found, expected, tolerance=1e-5):
    """Relative to the largest number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": "all-linear"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}],
    ids=["PEFT's own choice of modules", "all linear ones", "DoRA", "and the output head"],
)
def test_lora_trains_saves_reloads_and_merges(folder, settings):
    batch = texts()
    frozen = {name: weight.clone() for name, weight in base(folder).state_dict().items()}
    model = adapted(base(folder), task_type="CAUSAL_LM", **settings)
    before = logits(model, batch)
    assert_close(before, logits(base(folder), batch))  # an adapter begins as nothing
    losses = train(model, batch)
    assert losses[-1] < 0.8 * losses[0]
    theirs = adapted(base(folder, transformers), task_type="CAUSAL_LM", **settings)
    # each step makes rounding ten times as large
    torch.testing.assert_close(train(theirs, batch, steps=3), losses[:3], rtol=1e-3, atol=0)

    after = logits(model, batch)
    assert (after - before).abs().max() > 0.1
    with model.disable_adapter():
        assert_close(logits(model, batch), before)
    model.save_pretrained(folder.parent / "adapter")
    again = peft.PeftModel.from_pretrained(base(folder), folder.parent / "adapter").eval()
    assert torch.equal(logits(again, batch), after)
    easy = peft.AutoPeftModelForCausalLM.from_pretrained(folder.parent / "adapter")  # transformers' class
    assert_close(logits(easy.eval(), batch), after)

    merged = again.merge_and_unload()
    assert type(merged) is pytorch.MistralForCausalLM
    assert merged.state_dict().keys() == frozen.keys()
    assert_close(logits(merged, batch), after)
    merged.save_pretrained(folder.parent / "merged")
    assert_close(logits(base(folder.parent / "merged").eval(), batch), after)
    prompt = {"input_ids": batch["input_ids"][:, -12:], "attention_mask": batch["attention_mask"][:, -12:]}
    assert torch.equal(merged.generate(**prompt, **ASKED), model.generate(**prompt, **ASKED))


@pytest.mark.parametrize(
    ("name", "task", "labels"),
    [
        ("MistralForSequenceClassification", "SEQ_CLS", {"labels": torch.tensor([0, 1, 1, 0])}),
        ("MistralForTokenClassification", "TOKEN_CLS", {"labels": (torch.arange(96) % 2).view(4, 24)}),
        (
            "MistralForQuestionAnswering",
            "QUESTION_ANS",
            {"start_positions": torch.tensor([9, 8, 12, 20]), "end_positions": torch.tensor([10, 9, 13, 23])},
        ),
    ],
)
def test_lora_trains_the_heads(folder, name, task, labels):
    batch = tiny_batch() | labels
    model = adapted(base(folder, name=name), task_type=task)
    losses = train(model, batch, steps=20, rate=3e-2)
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(folder.parent / "adapter")
    again = peft.PeftModel.from_pretrained(base(folder, name=name), folder.parent / "adapter").eval()
    batch = tiny_batch()
    with torch.no_grad():
        expected, found = model(**batch), again(**batch)
        merged = again.merge_and_unload()(**batch)
    for field in expected.keys() - {CACHE}:
        assert torch.equal(found[field], expected[field])
        assert_close(merged[field], expected[field])


@pytest.mark.parametrize(
    "config",
    [
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        peft.IA3Config(task_type="CAUSAL_LM"),
    ],
    ids=lambda config: config.peft_type.value,
)
@pytest.mark.parametrize("folder", [8, 40], indirect=True, ids=["past the window", "within the window"])
def test_other_adapters_are_as_with_transformers(folder, config):
    """Prefixes come as a cache that is there from the start, prompts as embeddings."""

    def tuned(classes):
        torch.manual_seed(0)
        return peft.get_peft_model(base(folder, classes), config)

    # padded on the right: with padding between prompt and text our positions, the mask's, are not transformers'
    right = tiny_batch(padding_side="right")
    right["labels"] = right["input_ids"].masked_fill(right["attention_mask"] == 0, -100)
    ours = tuned(pytorch)
    losses = train(ours, right, steps=8)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(train(tuned(transformers), right, steps=3), losses[:3], rtol=1e-3, atol=0)

    ours.save_pretrained(folder.parent / "adapter")
    theirs = peft.PeftModel.from_pretrained(base(folder, transformers), folder.parent / "adapter").eval()
    assert_close(logits(ours, right), logits(theirs, right))
    left = {key: value[:, :12] for key, value in tiny_batch().items()}
    if config.is_prompt_learning and CACHE == "cache":
        return  # PEFT 0.21 calls it past_key_values beside transformers' own, which then goes without the prefix
    if ours.config.sliding_window == 8 and config.is_prompt_learning:
        with pytest.raises(ValueError, match="padding between tokens"):  # of the prefix and the text
            ours.generate(**left, **ASKED)
        return
    together = ours.generate(**left, **ASKED)
    for ids, mask, expected in zip(*left.values(), together, strict=True):
        alone = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
        for model in (ours, theirs):
            assert torch.equal(model.generate(**alone, **ASKED)[0], expected[-alone["input_ids"].shape[1] - 12 :])


def test_a_prefix_is_trained_for_a_head(folder):
    torch.manual_seed(0)
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    model = peft.get_peft_model(base(folder, name="MistralForSequenceClassification"), prefix)
    batch = tiny_batch(padding_side="right") | {"labels": torch.tensor([0, 1, 0, 1])}
    losses = train(model, batch)
    assert losses[-1] < losses[0]


def test_gradient_checkpointing_does_not_change_training(folder):
    losses = []
    for kind in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = adapted(base(folder), task_type="CAUSAL_LM")
        if kind is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        losses.append(torch.tensor(train(model, texts(), steps=4)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-4, atol=0)


def test_adapters_of_one_class_fit_the_other(folder):
    """Trained on transformers' class, used on ours."""
    batch = texts()
    model = adapted(base(folder, transformers), task_type="CAUSAL_LM")
    train(model, batch, steps=3)
    model.save_pretrained(folder.parent / "adapter")
    ours = base(folder)
    ours.load_adapter(folder.parent / "adapter")  # transformers' own way to take one
    assert_close(logits(ours.eval(), batch), logits(model, batch))
