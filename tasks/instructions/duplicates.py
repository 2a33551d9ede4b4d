"""Near duplicates among texts: those that share most of their runs of words."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence

from tasks.errors import UserError

_RUN = 3  # words; single words are shared by unlike texts, long runs change with every edit


def runs_of_words(text: str) -> frozenset[str]:
    """Every run of three words in a text, in lower case; the text itself if it is shorter.

    Example:
        >>> sorted(runs_of_words("A dog runs fast."))
        ['a dog runs', 'dog runs fast']
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) <= _RUN:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1))


def near_duplicates(texts: Sequence[str], threshold: int | float = 0.7) -> dict[int, int]:
    """For each text that is much like an earlier one that is kept, the index of the earlier one.

    Two texts are near duplicates if the runs of words that both have are at least ``threshold`` of those that either
    has. Every pair that reaches it is found: only pairs that share one of their rarest runs can (prefix filtering).

    Args:
        texts: In order; the first of several like ones is kept.
        threshold: In (0, 1]; 1 removes only texts with equal runs.

    Raises:
        UserError: If ``threshold`` is out of range.

    Source: Chaudhuri, Ganti and Kaushik 2006, "A primitive operator for similarity joins in data cleaning".

    Example:
        >>> near_duplicates(["A dog runs on the grass.", "Two cats.", "A dog runs on the grass!"])
        {2: 0}
    """
    if not 0 < threshold <= 1:
        raise UserError(f"duplicates must be in (0, 1], got {threshold}.")
    sets = [runs_of_words(text) for text in texts]
    uses = Counter(run for runs in sets for run in runs)
    kept_by_run: dict[str, list[int]] = {}
    found: dict[int, int] = {}
    for index, runs in enumerate(sets):
        ordered = sorted(runs, key=lambda run: (uses[run], run))
        # A text that shares fewer than threshold * n runs is no near duplicate, so it must share one of the first ones.
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - 1e-9) + 1]  # less rounding
        candidates = sorted({other for run in prefix for other in kept_by_run.get(run, ())})
        original = next((o for o in candidates if len(runs & sets[o]) / len(runs | sets[o]) >= threshold), None)
        if original is not None:
            found[index] = original
            continue
        for run in prefix:
            kept_by_run.setdefault(run, []).append(index)
    return found


def digest(text: str) -> int:
    """64 bits of a text, which stand for it where many are compared.

    Example:
        >>> digest("a") == digest("a"), digest("a") == digest("b")
        (True, False)
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
