"""Sentences of movie reviews and what people thought of them: the examples' data, fetched once and then kept.

10,605 sentences from rotten.tomatoes.com, each rated by at least twenty people from -4 (very negative) to 4 (very
positive). They are in the source archive of the Python package vaderSentiment (MIT), and come from there as the default
model comes from its package: by way of pip's settings, checked by sha256, into Ventoux's cache folder.

C.J. Hutto, E. Gilbert: VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. ICWSM 2014.
"""

import random
import tarfile
from typing import NamedTuple

from ventoux.checkpoint.download import fetch
from ventoux.checkpoint.packaged import Packaged
from ventoux.checkpoint.pull import bar, cache_folder

LABELS = ("negative", "positive")  # a review's label is an index into these

VADER = Packaged(
    requirement="vaderSentiment==3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",
    archive_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    member="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    size=2_338_514,
    sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
)
MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class Review(NamedTuple):
    text: str
    label: int


def load() -> list[Review]:
    """The 9,171 sentences that people were sure about, always in the same random order.

    Raises ventoux.DownloadError when they are not here and cannot be fetched.
    """
    path = fetch(VADER, cache_folder(), progress=bar("movie reviews"))
    with tarfile.open(path) as archive:
        file = archive.extractfile(MOVIES)
        assert file is not None, f"{path} was checked, and has no {MOVIES}"
        return parse(file.read().decode())


def parse(table: str) -> list[Review]:
    r"""Lines of id, mean rating and text, with tabs between -> reviews in random order, each text once.

    "7\t2.5\tA gem.\n8\t-0.6\tTepid.\n9\t-1.0\tDull.\n" -> A gem. and Dull.; a mean between -1 and 1 is left out.
    """
    rows = [line.split("\t") for line in table.splitlines()]
    sure = [Review(text.strip(), int(float(rating) > 0)) for _, rating, text in rows if abs(float(rating)) >= 1]
    random.Random(0).shuffle(sure)
    return list({review.text: review for review in sure}.values())  # or one could be in training and test
