"""A checkpoint's tokenizer and chat template, and whether two models mean the same by an id."""

from ventoux.checkpoint import Checkpoint
from ventoux.errors import CheckpointError
from ventoux.tokenizer import Tokenizer


def texts(found: Checkpoint) -> tuple[Tokenizer | None, str | None]:
    """A checkpoint's tokenizer and its chat template, if it has them: in the GGUF file, or beside the weights."""
    from ventoux import tokenizer

    if found.kind == "gguf":  # whose metadata is read already
        has_vocabulary = "tokenizer.ggml.tokens" in found.metadata
        template = found.metadata.get("tokenizer.chat_template")
        return (
            tokenizer.from_gguf(found.metadata, source=found.path) if has_vocabulary else None,
            template if isinstance(template, str) else None,
        )
    from ventoux.chat import template_in  # jinja, which a start from a GGUF file does not need

    file = tokenizer.choose(found.path)
    return tokenizer.load(file) if file else None, template_in(found.path)


def check_same_vocabulary(draft: Checkpoint, target: Checkpoint, tokenizer: Tokenizer | None) -> None:
    """Raises CheckpointError unless an id stands for the same token in both; `tokenizer` is the target's.

    Which ids begin and end a text may differ, as between a model and its instruct version: the target's count. Two
    checkpoints without a tokenizer have sizes only, and those are compared.
    """
    difference = _different_sizes(draft, target) or _different_tokens(texts(draft)[0], tokenizer)
    if difference:
        raise CheckpointError(
            f"{draft.path}: a draft model needs the vocabulary of the model that it guesses for, {target.path}, but"
            f" {difference}; use a smaller model of the same family"
        )


def _different_sizes(draft: Checkpoint, target: Checkpoint) -> str:
    own, wanted = draft.config.vocab_size, target.config.vocab_size
    return "" if own == wanted else f"it has {own} tokens instead of {wanted}"


def _different_tokens(draft: Tokenizer | None, target: Tokenizer | None) -> str:
    """The first difference in words, "" when there is none."""
    if draft is None or target is None:
        return "" if draft is target else f"the {'draft' if draft is None else 'model'} has no tokenizer to compare by"
    if draft.vocab_size != target.vocab_size:
        return f"its tokenizer knows {draft.vocab_size} tokens instead of {target.vocab_size}"
    ours, theirs = ({i: name for name, i in each.control_tokens().items()} for each in (draft, target))
    for i in range(target.vocab_size):
        own, wanted = (names.get(i) or each.token_bytes(i) for names, each in ((ours, draft), (theirs, target)))
        if own != wanted:
            return f"its token {i} is {_shown(own)} instead of {_shown(wanted)}"
    return ""


def _shown(token: str | bytes) -> str:
    """A control token's name, or the text of a token in quotes."""
    return token if isinstance(token, str) else repr(token.decode(errors="replace"))
