"""Lazy sequences of examples: an example is made when it is indexed, and not kept."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from tasks.example import Example


class Picked(Sequence[Example]):
    """Some examples of a sequence, by index, none of them held."""

    def __init__(self, examples: Sequence[Example], indices: Sequence[int]) -> None:
        """``indices`` count from 0 in ``examples``."""
        self._examples, self._indices = examples, list(indices)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        """One example, or a lazy part."""
        if isinstance(index, slice):
            return Picked(self._examples, self._indices[index])
        return self._examples[self._indices[index]]


class Joined(Sequence[Example]):
    """The examples of two sequences, one after the other, none of them held."""

    def __init__(self, first: Sequence[Example], second: Sequence[Example]) -> None:
        """``second`` may be empty."""
        self._first, self._second = first, second

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        """One example, or a lazy part."""
        if isinstance(index, slice):
            return Picked(self, range(*index.indices(len(self))))
        index = range(len(self))[index]
        n = len(self._first)
        return self._first[index] if index < n else self._second[index - n]


class LazyExamples(Sequence[Example]):
    """A sequence of ``n`` examples, each made anew by ``make`` whenever it is asked for."""

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

    def __iter__(self) -> Iterator[Example]:
        """One example after the other, none of them kept."""
        return (self._make(i) for i in self._indices)
