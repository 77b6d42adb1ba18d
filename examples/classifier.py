#!/usr/bin/env python3
"""Is a movie review good or bad? Two ways to make a classifier of a language model that was not made for it.

    pip install 'ventoux[torch]'
    python examples/classifier.py            # some two minutes on two free cores; --help for more, or less

1. **Features and a linear head.** The model reads a text, and says after each token what it made of it so far: a vector
   of `hidden_size` numbers. Their mean is the text's feature vector. A linear classifier is trained on these; the model
   itself is left as it is. It takes labelled texts, one pass over each, and a second of training.
2. **Zero-shot.** The text goes into a prompt that ends where the label should stand. The label that the model thinks
   likeliest is the answer: it takes no labelled texts at all.

The first part runs Ventoux's PyTorch classes, which show hidden states; the second its CPU engine. The model is the
default one, of 135 million parameters, or what `--model` names: a folder, a .gguf file, an alias or a hub id.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from time import perf_counter

import numpy as np

import ventoux

try:
    import ventoux.pytorch
except ventoux.VentouxError as error:  # says which extra is missing
    sys.exit(str(error))
import movie_reviews
import torch
from movie_reviews import LABELS, Review
from torch import Tensor, nn
from tqdm import tqdm  # comes with transformers

PACK = 512  # tokens of one forward pass: enough to keep the cores busy, few enough to stay in their caches
L2 = 0.3  # the head's weight decay: the best of eight in cross-validation on 1,400 training reviews
PROMPT = "Review: {text}\nSentiment:"  # the best of five on 120 reviews that the default run does not test on


# 1. Features and a linear head


@torch.inference_mode()
def features(model: ventoux.pytorch.MistralForCausalLM, texts: Sequence[list[int]]) -> Tensor:
    """The mean hidden state of each text: N lists of token ids -> [N, E] float32.

    Texts are laid end to end in one row, without padding. Where the positions begin anew, another text begins; the
    classes see to it that no text looks at its neighbours, so each vector is what the text gives alone.
    """
    rows: list[Tensor] = []
    with tqdm(total=len(texts), desc="reading", unit=" texts", leave=False) as progress:
        for pack in packs(texts, tokens=PACK):
            lengths = [len(ids) for ids in pack]
            ids = torch.tensor([[token for ids in pack for token in ids]])  # [1, T]
            positions = torch.cat([torch.arange(length) for length in lengths])[None]  # 0 1 2 3 0 1 0 1 2 ...
            hidden = model.model(ids, position_ids=positions, use_cache=False).last_hidden_state[0]  # [T, E]
            rows += [tokens.float().mean(0) for tokens in hidden.split(lengths)]
            progress.update(len(pack))
    return torch.stack(rows)


def packs(texts: Sequence[list[int]], *, tokens: int) -> Iterator[list[list[int]]]:
    """Neighbouring texts, so many that they have at most `tokens` together, but at least one.

    Lengths 3 4 2 9 1 and tokens=8: (3 4) (2) (9) (1)
    """
    pack: list[list[int]] = []
    for ids in texts:
        if pack and sum(map(len, pack)) + len(ids) > tokens:
            yield pack
            pack = []
        pack.append(ids)
    if pack:
        yield pack


class Head(nn.Module):
    """Features [N, E] -> scores [N, C], once it is fitted: standardize, then multiply."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.mean, self.spread = torch.zeros(size), torch.ones(size)
        self.linear = nn.Linear(size, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear((x - self.mean) / self.spread)
        return scores

    def fit(self, x: Tensor, labels: Tensor, *, l2: float = L2) -> "Head":
        """Logistic regression on features [N, E] and labels int64 [N]. It is convex: there is one best solution."""
        self.mean, self.spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        optimizer = torch.optim.LBFGS(self.linear.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(self(x), labels) + l2 / 2 * self.linear.weight.pow(2).sum()
            value.backward()
            return value

        optimizer.step(loss)
        return self


# 2. Zero-shot


def label_scores(model: ventoux.Mistral, prompt: str, labels: Sequence[str]) -> np.ndarray:
    """log p(label | prompt) for each label, float64 [C]: the sum over the label's tokens.

    Row i of the logits predicts id i + 1: in "Sentiment: positive" the row of ":" gives the score of " positive".
    """
    # prompt and label as one text: at the seam a tokenizer may join what would be two tokens
    texts = [model.tokenizer.encode(prompt + label, bos=True) for label in labels]
    columns = zip(model.tokenizer.encode(prompt, bos=True), *texts, strict=False)
    begin = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))  # where the labels' tokens begin
    known: dict[tuple[int, ...], np.ndarray] = {}  # labels of one token need one pass for all: the last is never read
    scores = []
    for ids in texts:
        read = tuple(ids[:-1])
        if read not in known:
            known[read] = log_softmax(model.logits(read)[begin - 1 :])
        scores.append(sum(row[token] for row, token in zip(known[read], ids[begin:], strict=True)))
    return np.array(scores)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[N, V] -> [N, V] float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def zero_shot(model: ventoux.Mistral, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of LABELS for each text, [N, C], and those for no text at all, [C]: what the model likes to say."""
    labels = [f" {label}" for label in LABELS]
    scores = [
        label_scores(model, PROMPT.format(text=text), labels)
        for text in tqdm(texts, desc="zero-shot", unit=" texts", leave=False)
    ]
    return np.array(scores), label_scores(model, PROMPT.format(text=""), labels)


# What came out


def interval(right: int, n: int) -> tuple[float, float]:
    """The accuracies that `right` of n is compatible with: Wilson's interval of 95%. 80 of 100: 0.711 to 0.867"""
    z = 1.96
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (right * (n - right) / n + z * z / 4) ** 0.5
    return middle - half, middle + half


def show(what: str, found: Sequence[int], reviews: Sequence[Review]) -> None:
    """A line of the table: on how many texts, which share of them was right, and what that share may be by chance."""
    right, n = sum(label == review.label for label, review in zip(found, reviews, strict=True)), len(reviews)
    low, high = interval(right, n)
    print(f"{what:<44}{n:>6}{right / n:>10.1%}    {low:.1%} to {high:.1%}", flush=True)


def compare(
    model: ventoux.Mistral,
    reader: ventoux.pytorch.MistralForCausalLM,
    *,
    reviews: Sequence[Review],
    args: argparse.Namespace,
) -> None:
    """Train the head, let both classifiers judge other reviews, and print how often each is right."""
    test, train = reviews[: args.test], reviews[args.test : args.test + args.train]
    few = test[: args.zero_shot]
    labels = torch.tensor([review.label for review in train])
    commonest = int(labels.bincount().argmax())
    print(f"{'':<44}{'texts':>6}{'accuracy':>10}    95% interval")

    x = features(reader, [model.tokenizer.encode(review.text, bos=True) for review in [*train, *test]])
    found = Head(x.shape[1], len(LABELS)).fit(x[: len(train)], labels)(x).argmax(-1).tolist()
    judged = found[len(train) :]
    show("linear head, on what it was trained on", found[: len(train)], train)
    show("linear head, on other reviews", judged, test)
    show(f"always saying {LABELS[commonest]!r}", [commonest] * len(test), test)
    if not few:
        return

    scores, prior = zero_shot(model, [review.text for review in few])
    show("zero-shot", scores.argmax(-1).tolist(), few)
    show("zero-shot, less what it says of no text", (scores - prior).argmax(-1).tolist(), few)
    show("linear head, on the same reviews", judged[: len(few)], few)
    show(f"always saying {LABELS[commonest]!r}", [commonest] * len(few), few)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Classify movie reviews with a linear head on a language model's features, and zero-shot."
    )
    parser.add_argument(
        "-m", "--model", help="a folder, a .gguf file, an alias or a hub id (default: the default model)"
    )
    parser.add_argument("--train", type=int, default=1500, metavar="N", help="reviews to train on (default: 1500)")
    parser.add_argument("--test", type=int, default=500, metavar="N", help="other reviews to test on (default: 500)")
    parser.add_argument(
        "--zero-shot",
        type=int,
        metavar="N",
        help="how many of these to test zero-shot; 0 for none (default: 200, or all)",
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the features (default: fp32)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    args = parser.parse_args(words)
    if args.zero_shot is None:
        args.zero_shot = min(200, args.test)
    if args.train < 1 or args.test < 1:
        parser.error(f"--train and --test are at least 1, found {args.train} and {args.test}")
    if not 0 <= args.zero_shot <= args.test:
        parser.error(f"--zero-shot takes reviews of the test: 0 to {args.test}, found {args.zero_shot}")
    return args


def main() -> None:
    args = arguments()
    begun = perf_counter()
    try:
        reviews = movie_reviews.load()
        if args.train + args.test > len(reviews):
            sys.exit(
                f"classifier: there are {len(reviews)} reviews, fewer than --train {args.train} + --test {args.test}"
            )
        model = ventoux.load(args.model, threads=args.threads)
        if args.threads:
            torch.set_num_threads(args.threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        compare(model, ventoux.pytorch.load(args.model, dtype=dtype), reviews=reviews, args=args)
    except ventoux.VentouxError as error:
        sys.exit(f"classifier: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"in {perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
