"""The classifier example: its parts against plain loops, and the command as it stands."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import classifier
import movie_reviews
import numpy as np
import pytest
import torch
from classifier import Head, features, interval, label_scores, packs
from hypothesis import given
from hypothesis import strategies as st
from movie_reviews import Review
from tiny import save_hf, tiny_model
from toy import BOS, ByteTokenizer

import ventoux
from ventoux import checkpoint, cpu, pytorch

EXAMPLE = Path(classifier.__file__)
VOCAB = 260
JOINED = 259  # a token for ": "


class JoiningTokenizer(ByteTokenizer):
    """Joins ": " into one token, so that prompt and label together are other tokens than the two apart."""

    def encode(self, text, *, bos=False, eos=False):
        pieces = [list(piece.encode()) for piece in text.split(": ")]
        return [BOS] * bos + [*pieces[0], *(token for piece in pieces[1:] for token in [JOINED, *piece])]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def oracle():
    """transformers' own class, window 4."""
    return tiny_model(vocab_size=VOCAB)


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    return save_hf(oracle, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=[ByteTokenizer, JoiningTokenizer])
def model(folder, request):
    found = checkpoint.read(folder)
    return ventoux.Mistral(cpu.Backend(found.config, found.tensors, compute="f32"), tokenizer=request.param())


def texts(lengths):
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


@pytest.mark.parametrize("window", [4, "off"])
def test_features_of_packed_texts_are_those_of_each_alone(folder, window):
    reader = pytorch.load(folder, window=window)
    ids = texts([1, 1, 9, 300, 2, 250, 3, 600, 30])  # packs of several texts, and one that is longer than a pack
    assert any(len(pack) > 1 for pack in packs(ids, tokens=classifier.PACK))
    alone = torch.cat([features(reader, [each]) for each in ids])
    torch.testing.assert_close(features(reader, ids), alone, rtol=1e-4, atol=1e-5)


def test_features_are_the_means_of_transformers_hidden_states(oracle, folder):
    ids = texts([5, 1, 12])
    with torch.no_grad():
        expected = [oracle.model(torch.tensor([each])).last_hidden_state[0].mean(0) for each in ids]
    torch.testing.assert_close(features(pytorch.load(folder), ids), torch.stack(expected), rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(1, 12)), st.integers(1, 20))
def test_packs_are_the_texts_in_order_within_the_limit(lengths, tokens):
    ids = [[i] * n for i, n in enumerate(lengths)]
    found = list(packs(ids, tokens=tokens))
    assert [each for pack in found for each in pack] == ids
    assert all(len(pack) == 1 or sum(map(len, pack)) <= tokens for pack in found)
    for pack, after in pairwise(found):
        assert sum(map(len, pack)) + len(after[0]) > tokens, "a pack is smaller than need be"


def test_packs_as_its_docstring_says():
    ids = [[0] * n for n in (3, 4, 2, 9, 1)]
    assert [[len(each) for each in pack] for pack in packs(ids, tokens=8)] == [[3, 4], [2], [9], [1]]


def log_probability(oracle, ids, begin):
    """Of ids[begin:] after ids[:begin], one token at a time, without a cache."""
    total = 0.0
    for i in range(begin, len(ids)):
        with torch.no_grad():
            total += float(
                oracle(torch.tensor([ids[:i]]), use_cache=False).logits[0, -1].double().log_softmax(-1)[ids[i]]
            )
    return total


def test_label_scores_are_those_of_a_plain_loop(oracle, model):
    """Labels of several tokens and of other lengths, one of which begins as another does."""
    labels = [" bad", " positive", " badly", "!"]
    prompt = "Review: a gem.\nSentiment:"
    whole = [model.tokenizer.encode(prompt + label, bos=True) for label in labels]
    begin = len(model.tokenizer.encode("Review: a gem.\nSentiment", bos=True))  # the ":" may belong to the label
    if type(model.tokenizer) is ByteTokenizer:
        begin += 1
    expected = [log_probability(oracle, ids, begin) for ids in whole]
    np.testing.assert_allclose(label_scores(model, prompt, labels), expected, rtol=0, atol=1e-4)


def test_labels_of_one_token_take_one_pass(model, monkeypatch):
    asked = []
    answer = model.logits
    monkeypatch.setattr(model, "logits", lambda ids: asked.append(ids) or answer(ids))
    scores = label_scores(model, "Good?", ["y", "n", "?"])
    assert len(asked) == 1
    assert len(set(scores)) == 3
    assert np.exp(scores).sum() < 1


def test_the_scores_of_all_tokens_are_a_distribution(model):
    scores = label_scores(model, "A", [chr(i) for i in range(128)])
    everything = classifier.log_softmax(model.logits(model.tokenizer.encode("A", bos=True)))[-1]
    np.testing.assert_allclose(scores, everything[:128], atol=1e-12)
    assert np.isclose(np.exp(everything).sum(), 1)


def test_the_head_separates_what_can_be_separated():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    centres = 5 * torch.randn(3, 8, generator=generator)
    # features of unlike sizes, and one that never changes
    x = (centres[labels] + torch.randn(300, 8, generator=generator)) * torch.logspace(-3, 3, 8) + 7
    x = torch.cat((x, torch.full((300, 1), 3.0)), 1)
    head = Head(9, 3).fit(x[:200], labels[:200])
    assert (head(x[200:]).argmax(-1) == labels[200:]).float().mean() > 0.97


def test_the_head_is_the_best_there_is():
    """Where the regularized loss has no slope; noise that cannot be separated, so that the optimum is not far out."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 5, generator=generator), torch.randint(2, (200,), generator=generator)
    head = Head(5, 2).fit(x, labels, l2=0.3)
    weight, bias = (each.detach().double().requires_grad_() for each in (head.linear.weight, head.linear.bias))
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    loss = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels) + 0.15 * weight.pow(2).sum()
    slopes = torch.autograd.grad(loss, (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_what_a_test_at_5_percent_would_not_reject(counts):
    right, n = counts
    for p in interval(right, n):
        assert -1e-9 < p < 1 + 1e-9
        assert (right / n - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-9)


def test_the_interval_as_its_docstring_says():
    assert interval(80, 100) == pytest.approx((0.711, 0.867), abs=5e-4)


def test_reviews_are_those_that_people_were_sure_about():
    table = "7\t2.5\tA gem.\r\n8\t-0.6\tTepid.\r\n9\t-1.0\tDull.\r\n10\t3\tA gem. \r\n"
    assert sorted(movie_reviews.parse(table)) == [Review("A gem.", 1), Review("Dull.", 0)]


def test_the_whole_comparison_on_a_tiny_model(folder, model, capsys):
    """Nine of ten reviews are positive, and what is said of every figure can be counted by hand."""
    reviews = [Review(f"{'good' if i % 10 else 'bad'} {i}", int(i % 10 > 0)) for i in range(60)]
    args = classifier.arguments(["--train", "40", "--test", "20", "--zero-shot", "10"])
    classifier.compare(model, pytorch.load(folder), reviews=reviews, args=args)
    rows = table(capsys.readouterr().out)
    assert [(what, n) for what, n, *_ in rows] == [
        ("linear head, on what it was trained on", 40),
        ("linear head, on other reviews", 20),
        ("always saying 'positive'", 20),
        ("zero-shot", 10),
        ("zero-shot, less what it says of no text", 10),
        ("linear head, on the same reviews", 10),
        ("always saying 'positive'", 10),
    ]
    assert rows[2][2:] == (0.9, 0.699, 0.972)
    assert rows[6][2] == 0.9
    assert rows[0][2] > 0.9, "the model's features tell good from bad"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train", "0"], "at least 1, found 0 and 500"),
        (["--test", "-3"], "at least 1"),
        (["--test", "50", "--zero-shot", "60"], "0 to 50, found 60"),
        (["--zero-shot", "-1"], "found -1"),
        (["--train", "many"], "invalid int value"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(words, says, capsys):
    with pytest.raises(SystemExit) as caught:
        classifier.arguments(words)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_fewer_tests_than_zero_shot_would_take_are_all_taken():
    assert classifier.arguments(["--test", "50"]).zero_shot == 50


def table(printed):
    """What each line says: of what, number of texts, accuracy, lower and upper bound."""
    line = re.compile(r"(.+?) +(\d+) +([\d.]+)% +([\d.]+)% to ([\d.]+)%")
    rows = [match for each in printed.splitlines() if (match := line.fullmatch(each))]
    return [(m[1], int(m[2]), *(round(float(number) / 100, 3) for number in m.groups()[2:])) for m in rows]


@pytest.mark.slow
def test_the_command_beats_chance_on_real_reviews(default_model):
    """The 95% intervals of classifier and of the commonest label do not even touch."""
    # one thread: beside other work, two wait for each other
    sizes = ["--train", "400", "--test", "200", "--zero-shot", "200", "--threads", "1"]
    done = subprocess.run([sys.executable, EXAMPLE, *sizes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    rows = table(done.stdout)
    commonest = {n: high for what, n, _, _, high in rows if what.startswith("always")}
    assert set(commonest) == {200}
    lower = {(what, n): low for what, n, _, low, _ in rows if not what.startswith("always") and n in commonest}
    assert len(lower) == 4
    for (what, n), low in lower.items():
        assert low > commonest[n], what


@pytest.mark.slow
def test_the_reviews_are_all_there_and_balanced():
    reviews = movie_reviews.load()
    assert len(reviews) == len({review.text for review in reviews}) == 9171
    assert sum(review.label for review in reviews) == 4597
