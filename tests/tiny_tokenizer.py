"""A tokenizer of a few hundred ids, for tiny models that have to read and write text."""

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (Path(__file__).parent / "data" / "moby_dick_chapter_1.txt").read_text()
VOCAB = 384
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@cache
def _trained() -> str:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT], trainer)
    model.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    return model.to_str()


def tiny_tokenizer(padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from a chapter of Moby Dick: BOS 1, EOS 2, which also pads, as Mistral's users let it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side=padding_side,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_batch(texts: int = 4, *, length: int = 24, padding_side: str = "left") -> dict:
    """Passages of the chapter of different lengths, padded: input_ids and attention_mask int64 [texts, ...]."""
    lines = [line for line in TEXT.split(".") if len(line) > 40][:texts]
    tokenizer = tiny_tokenizer(padding_side)
    ragged = [line[: 20 + 13 * i] for i, line in enumerate(lines)]
    return dict(tokenizer(ragged, padding=True, truncation=True, max_length=length, return_tensors="pt"))
