"""CIDEr-D: how much a caption agrees with several people's, weighted so that frequent phrases count little.

The formula is that of ``pycocoevalcap``. Its tokenizer is a Java program; ``caption_words`` follows its rules for
English captions, see ``docs/benchmarks.md`` for where the two differ.

Source: Vedantam et al. 2015, "CIDEr: Consensus-based Image Description Evaluation", arXiv 1411.5726, and the public
    evaluation script of COCO captions.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.errors import UserError

LONGEST, SIGMA = 4, 6.0  # words of a phrase; the width of the penalty on lengths, in words
HIGHEST = 10.0
_REMOVED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "\u201c", "\u201d"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
          "lemme": ("lem", "me"), "gimme": ("gim", "me")}  # fmt: skip
_CLITIC = r"n't|'(?:s|re|ve|ll|d|m)"
_WORD = re.compile(
    rf"(?:{_CLITIC})(?!\w)"
    r"|\d+(?:[.,:/]\d+)+|(?:[^\W\d_]\.){2,}|'\d0s\b|o'clock\b"  # 2.5 and u.s.
    r"|\b(?:st|mt|mr|mrs|ms|dr|co|jr|sr|ave|vs|etc)\.(?=\s\S|,|$)"
    rf"|\w+?(?=(?:{_CLITIC})(?!\w))"
    r"|\w+(?:[-/]\w+)*|\.{3}|--|\S"
)
_QUOTES = re.compile("[\u2018\u2019]")
Phrases = Counter[tuple[str, ...]]
Vector = dict[tuple[str, ...], float]


def caption_words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; endings such as ``'s`` and ``n't`` are words.

    Example:
        >>> caption_words("A man's well-worn T-shirt isn't red.")
        ['a', 'man', "'s", 'well-worn', 't-shirt', 'is', "n't", 'red']
    """
    words: list[str] = []
    for word in _WORD.findall(_QUOTES.sub("'", caption.lower())):
        words += _SPLIT.get(word, (_BRACKETS.get(word, word),))
    return [word for word in words if word not in _REMOVED]


class Cider:
    """CIDEr-D of captions of some pictures. Weights come from the references of all of them, as in the script.

    Args:
        references: People's captions of each picture, at least one.

    Raises:
        UserError: If there is no picture, or one without a caption.

    Example:
        >>> cider = Cider([["A red cat.", "A cat on grass."], ["Two dogs run."]])
        >>> cider.score("Two dogs run.", 1), cider.score("Two dogs run.", 0)
        (7.5, 0.0)
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if not references or not all(references):
            raise UserError("references must be at least one caption for each picture, got none for one.")
        self._references = references
        self._found_in = Counter(phrase for own in references for phrase in set().union(*map(_phrases, own)))
        self._log_n = math.log(len(references))

    def score(self, caption: str, picture: int) -> float:
        """CIDEr-D of a caption of picture number ``picture``, from 0 to 10; 0 if there is only one picture."""
        vectors, length = self._vectors(_phrases(caption))
        own = self._references[picture]
        total = 0.0
        for theirs, their_length in (self._vectors(_phrases(text)) for text in own):
            penalty = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(_similarity(a, b) for a, b in zip(vectors, theirs, strict=True)) / LONGEST
        return HIGHEST * total / len(own)

    def _vectors(self, phrases: Phrases) -> tuple[list[Vector], int]:
        """For each length of a phrase its weights, and the number of pairs of words, which the script calls length."""
        vectors: list[Vector] = [{} for _ in range(LONGEST)]
        for phrase, count in phrases.items():
            weight = self._log_n - math.log(max(1, self._found_in[phrase]))
            vectors[len(phrase) - 1][phrase] = count * weight
        return vectors, sum(count for phrase, count in phrases.items() if len(phrase) == 2)


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """CIDEr-D of one caption for each picture, from 0 to 10; papers report 100 x the mean.

    Example:
        >>> cider_scores(["Two dogs run.", "A cat."], [["Two dogs run."], ["A cat sleeps here."]]).round(2).tolist()
        [7.5, 3.04]
    """
    if len(captions) != len(references):
        raise UserError(f"captions must be one for each of {len(references)} pictures, got {len(captions)}.")
    cider = Cider(references)
    return np.array([cider.score(caption, number) for number, caption in enumerate(captions)])


def _phrases(caption: str) -> Phrases:
    words = caption_words(caption)
    return Counter(tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))


def _similarity(ours: Vector, theirs: Vector) -> float:
    """The cosine, with each weight of ours cut at theirs; the sum itself if one has no weight."""
    above = sum(
        (min(weight, theirs[phrase]) * theirs[phrase] for phrase, weight in ours.items() if phrase in theirs), 0.0
    )
    below = math.sqrt(sum(w * w for w in ours.values())) * math.sqrt(sum(w * w for w in theirs.values()))
    return above / below if below else above
