"""transformers' Trainer and TRL's train our classes as they train transformers' own."""

import pytest
import torch
import transformers
from tiny import tiny_model
from tiny_tokenizer import TEXT, VOCAB, tiny_tokenizer
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening, Trainer, TrainingArguments

from ventoux import pytorch

PASSAGES = [TEXT[start : start + 20 + start % 37] for start in range(0, 32 * 80, 80)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights small enough to be trained without chaos: two implementations stay together for many steps."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = tiny_model(vocab_size=VOCAB, sliding_window=8, pad_token_id=2).config
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    return folder


def ids_of(texts=PASSAGES):
    return [{"input_ids": ids} for ids in tiny_tokenizer()(texts)["input_ids"]]


SETTINGS = {
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "seed": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


def arguments(folder, **settings):
    return TrainingArguments(**SETTINGS | {"output_dir": str(folder)} | settings)


def trained(model, folder, *, data=None, collator=None, **settings):
    """-> the trainer, and its losses."""
    # on the right: padding on the left would be asked to predict a text's first token
    collator = collator or DataCollatorForLanguageModeling(tiny_tokenizer("right"), mlm=False)
    trainer = Trainer(model, arguments(folder, **settings), train_dataset=data or ids_of(), data_collator=collator)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def causal(folder, classes=pytorch, implementation="eager"):
    return classes.MistralForCausalLM.from_pretrained(folder, attn_implementation=implementation)


SETTINGS_TRIED = {
    "plain": {},
    "checkpointed and accumulated": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "max_steps": 5},
    "bf16": {"bf16": True, "max_steps": 3},
}


@pytest.mark.parametrize("kind", SETTINGS_TRIED)
def test_trainer_gives_the_losses_of_transformers(folder, tmp_path, kind):
    settings = SETTINGS_TRIED[kind]
    _, expected = trained(causal(folder, transformers), tmp_path, **settings)
    for implementation in ("eager", "ventoux") if kind == "plain" else ("sdpa",):
        _, losses = trained(causal(folder, implementation=implementation), tmp_path, **settings)
        torch.testing.assert_close(losses, expected, rtol=1e-2 if kind == "bf16" else 1e-4, atol=0)
    assert expected[-1] < expected[0] - 0.1 or kind == "bf16"


def test_packed_training_equals_training_on_a_padded_batch(folder, tmp_path):
    """DataCollatorWithFlattening puts a batch into one row without padding; its texts do not see each other."""
    padded = transformers.DataCollatorForSeq2Seq(tiny_tokenizer("right"), label_pad_token_id=-100)
    rows = [row | {"labels": row["input_ids"]} for row in ids_of()]
    _, expected = trained(causal(folder), tmp_path, data=rows, collator=padded, max_steps=6)
    for implementation in ("eager", "sdpa", "flex_attention", "ventoux"):
        flat = DataCollatorWithFlattening()
        model = causal(folder, implementation=implementation)
        _, losses = trained(model, tmp_path, data=ids_of(), collator=flat, max_steps=6)
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0, msg=implementation)


def test_trainer_saves_evaluates_and_resumes(folder, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}

    def trainer():
        collator = DataCollatorForLanguageModeling(tiny_tokenizer("right"), mlm=False)
        return Trainer(
            causal(folder),
            arguments(tmp_path, **settings),
            train_dataset=ids_of(),
            eval_dataset=ids_of(PASSAGES[:8]),
            data_collator=collator,
        )

    first = trainer()
    first.train()
    weights = first.model.state_dict()
    evaluated = [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry]
    assert evaluated[1] < evaluated[0]
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)
    saved = transformers.MistralForCausalLM.from_pretrained(tmp_path / "checkpoint-10")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in saved.state_dict().items())


def test_trainer_teaches_a_classifier(folder, tmp_path):
    """Texts that name a whale, and texts that do not."""
    texts = [PASSAGES[i] + (" whale" if i % 2 else " sea") for i in range(32)]
    data = [dict(tiny_tokenizer()(text)) | {"labels": i % 2} for i, text in enumerate(texts)]
    model = pytorch.MistralForSequenceClassification.from_pretrained(folder, num_labels=2)
    collator = transformers.DataCollatorWithPadding(tiny_tokenizer("right"))
    trainer, losses = trained(model, tmp_path, data=data, collator=collator, max_steps=30)
    assert losses[-1] < 0.1 * losses[0]
    assert (trainer.predict(data).predictions.argmax(-1) == [row["labels"] for row in data]).all()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_trl_fine_tunes(folder, tmp_path, packing):
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    chats = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "The whale."}]}
        for text in PASSAGES
    ]
    settings = SETTINGS | {"output_dir": str(tmp_path), "learning_rate": 3e-2}
    config = trl.SFTConfig(**settings, bf16=False, max_length=64, packing=packing, padding_free=packing)
    trainer = trl.SFTTrainer(
        causal(folder, implementation="ventoux"),
        args=config,
        train_dataset=Dataset.from_list(chats),
        processing_class=tiny_tokenizer("right"),
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
