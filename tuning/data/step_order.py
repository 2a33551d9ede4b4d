"""The order in which training goes through the samples: ``StepOrder``."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int
from torch.utils.data import Sampler

from tuning.data.prompt_format import Grouping

_TOGETHER = 50  # steps sorted by length together: enough to reduce padding, few enough to stay random
Indices = npt.NDArray[np.int64]


class StepOrder(Sampler[int]):
    """A new order in each epoch, by seed and epoch alone: all plans and resumed runs train on the same data.

    With ``by_modality``, the samples of a step all have pictures or all have none. One group of each kind, which may
    not fill a step, comes last.

    Source: ``group_by_modality_length`` of Liu et al. 2024, arXiv 2310.03744, for the grouping ``"step"``.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " sample"],
        pictured: Bool[np.ndarray, " sample"],
        *,
        group: int,
        seed: int,
        batches: int = 1,
        by_modality: bool = True,
        even: bool = False,
        grouping: Grouping = "step",
    ) -> None:
        """Describe the order.

        Args:
            lengths: The tokens of each sample.
            pictured: Whether each sample has a picture.
            group: Samples of one optimizer step, over all processes.
            seed: Seed of the order.
            batches: Batches of one optimizer step, over all processes.
            by_modality: Whether steps have one modality; otherwise the order is random.
            even: Leave out samples of an epoch that do not fill a step of one modality. With FSDP all processes must
                see pictures or none; otherwise they wait for each other forever.
            grouping: ``"step"``: a step's samples are random, and shared out to its batches so that these have similar
                lengths. ``"length"``: samples of 50 steps are sorted by length.
        """
        self._lengths, self._pictured = lengths, pictured
        self._group, self._seed, self._batches = group, seed, batches
        self._by_modality, self._even, self._grouping = by_modality, even, grouping
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of samples."""
        if not self._even:
            return len(self._lengths)
        counts = int(self._pictured.sum()), int((~self._pictured).sum())
        return sum(count // self._group * self._group for count in counts)

    def __iter__(self) -> Iterator[int]:
        """The indices of one epoch."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(len(self._lengths))
        if not self._by_modality and not self._even:
            yield from (int(i) for i in order)
            return
        steps: list[Indices] = []
        rest: list[Indices] = []
        for kind in (True, False):
            full, over = self._split(order[self._pictured[order] == kind])
            steps += full
            rest.append(over)
        for index in rng.permutation(len(steps)):
            yield from (int(i) for i in steps[int(index)])
        if not self._even:
            yield from (int(i) for part in rest for i in part)

    def _split(self, own: Indices) -> tuple[list[Indices], Indices]:
        """The full steps of samples of one kind, and the samples that fill none."""
        together = self._group * (_TOGETHER if self._grouping == "length" else 1)
        steps: list[Indices] = []
        rest: list[Indices] = [own[:0]]
        for start in range(0, len(own), together):
            part = own[start : start + together]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            full = len(part) // self._group * self._group  # the shortest samples fill no step
            for i in range(0, full, self._group):
                step = part[i : i + self._group]
                steps.append(step if self._grouping == "length" else self._shared_out(step))
            rest.append(part[full:])
        return steps, np.concatenate(rest)

    def _shared_out(self, step: Indices) -> Indices:
        """The samples of a step, longest first, each in the batch with the fewest tokens that has room."""
        size = len(step) // self._batches
        chunks: list[list[int]] = [[] for _ in range(self._batches)]
        totals = np.zeros(self._batches)
        for index in step:
            shortest = int(totals.argmin())
            chunks[shortest].append(int(index))
            totals[shortest] = np.inf if len(chunks[shortest]) == size else totals[shortest] + self._lengths[index]
        return np.array([index for chunk in chunks for index in chunk])
