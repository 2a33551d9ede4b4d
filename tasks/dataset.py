"""Data sets: examples, the targets that probes may read, and a digest. Examples are made on demand and not stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import overload

from tasks.errors import UserError
from tasks.example import Example, Target


@dataclass(frozen=True)
class Dataset:
    """Examples and the targets that probes may read from their activations.

    Args:
        name: For messages.
        examples: A list or a lazy sequence.
        targets: The labels that probes may read.
        digest: A hash of all that can change a result.

    Example:
        >>> one = Example(id="0", pictures=(), question="1 + 1?", answer="2", group="0", labels={"kind": "sum"})
        >>> data = Dataset("sums", [one], (Target("kind"),), digest="1")
        >>> len(data), data.target("kind").scope
        (1, 'image')
    """

    name: str
    examples: Sequence[Example] = field(repr=False)
    targets: tuple[Target, ...]
    digest: str

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def target(self, name: str) -> Target:
        """The target called ``name``.

        Raises:
            UserError: If there is none.
        """
        for target in self.targets:
            if target.name == name:
                return target
        known = ", ".join(target.name for target in self.targets)
        raise UserError(f"target must be one of {known} for {self.name}, got {name!r}.")


class LazyExamples(Sequence[Example]):
    """A sequence of ``n`` examples; indexing calls ``make``."""

    def __init__(self, n: int, make: Callable[[int], Example]) -> None:
        """``make`` must return the same example for the same index."""
        self._indices = range(n)
        self._make = make

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "LazyExamples": ...

    def __getitem__(self, index: int | slice) -> "Example | LazyExamples":
        """One example, or a lazy part of the sequence."""
        if isinstance(index, slice):
            part = self._indices[index]
            return LazyExamples(len(part), lambda i: self._make(part[i]))
        return self._make(self._indices[index])


def pick(examples: Sequence[Example], indices: Sequence[int]) -> LazyExamples:
    """The examples at ``indices``, lazily."""
    return LazyExamples(len(indices), lambda i: examples[indices[i]])


def join(first: Sequence[Example], second: Sequence[Example]) -> LazyExamples:
    """The examples of ``first``, then those of ``second``, lazily."""
    n = len(first)
    return LazyExamples(n + len(second), lambda i: first[i] if i < n else second[i - n])
