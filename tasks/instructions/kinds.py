"""The three kinds of LLaVA's instruction data, their shares, and which picture gets which kind."""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from tasks.errors import UserError
from tasks.instructions.described import Described

Kind = Literal["conversation", "detail", "reasoning"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The thousands of each kind in LLaVA-Instruct-158K (Liu et al. 2023, arXiv 2304.08485).
PUBLISHED = {"conversation": 58, "detail": 23, "reasoning": 77}


class Job(NamedTuple):
    """One sample to make: a picture and a kind.

    Example:
        >>> Job(Described("7", "7.jpg", ("A dog.",)), "detail").id
        '7-detail'
    """

    picture: Described
    kind: Kind

    @property
    def id(self) -> str:
        """The id of the sample."""
        return f"{self.picture.id}-{self.kind}"


def parse_shares(text: str) -> dict[Kind, int]:
    """Shares such as ``58:23:77``, of conversation, detail and reasoning.

    Raises:
        UserError: If they are not three whole numbers, or all are zero.

    Example:
        >>> parse_shares("58:23:77")
        {'conversation': 58, 'detail': 23, 'reasoning': 77}
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UserError(f"shares must be three whole numbers such as 58:23:77, got {text!r}.")
    shares = dict(zip(KINDS, map(int, parts), strict=True))
    if not any(shares.values()):
        raise UserError(f"shares must have one above 0, got {text!r}.")
    return shares


def count_kinds(shares: Mapping[Kind, int], n_samples: int) -> dict[Kind, int]:
    """How many of ``n_samples`` have each kind: proportional, the largest remainders rounded up.

    Example:
        >>> count_kinds({"conversation": 58, "detail": 23, "reasoning": 77}, 10)
        {'conversation': 4, 'detail': 1, 'reasoning': 5}
    """
    total = sum(shares.values())
    counts = {kind: n_samples * share // total for kind, share in shares.items()}
    by_remainder = sorted(shares, key=lambda kind: -(n_samples * shares[kind] % total))  # stable for equal ones
    for kind in by_remainder[: n_samples - sum(counts.values())]:
        counts[kind] += 1
    return counts


def assign_kinds(pictures: Sequence[Described], n_samples: int, *, shares: Mapping[Kind, int], seed: int) -> list[Job]:
    """The samples to make, in random order. No picture gets a kind twice, and pictures are used equally often.

    Raises:
        UserError: If one kind would need more pictures than there are.

    Example:
        >>> pictures = [Described(str(i), f"{i}.jpg", ("A dog.",)) for i in range(4)]
        >>> jobs = assign_kinds(pictures, 4, shares={"conversation": 1, "detail": 1, "reasoning": 2}, seed=0)
        >>> sorted(job.kind for job in jobs)
        ['conversation', 'detail', 'reasoning', 'reasoning']
    """
    counts = count_kinds(shares, n_samples)
    most = max(counts, key=lambda kind: counts[kind])
    if counts[most] > len(pictures):
        raise UserError(
            f"samples must need at most one {most} a picture, got {counts[most]} for {len(pictures)} pictures. Lower "
            "--samples."
        )
    rng = random.Random(seed)
    order = list(pictures)
    rng.shuffle(order)
    # Each kind takes the next pictures of one cycle, so that a kind never comes back to a picture.
    kinds = [kind for kind in KINDS for _ in range(counts.get(kind, 0))]
    jobs = [Job(order[number % len(order)], kind) for number, kind in enumerate(kinds)]
    rng.shuffle(jobs)
    return jobs
