"""Metrics of one batch of pairs, and their file: ``BatchValues.write``, ``BatchValues.read``."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from records.manifest import commit
from tasks.checksums import is_whole


@dataclass(frozen=True, eq=False)
class BatchValues:
    """Metrics of a batch by pair: in every cell, in the clean run and in the corrupt run.

    If ``values`` are estimated by attribution patching, ``exact`` may hold the exactly patched values; else it is None.
    """

    values: Float[Tensor, "cell metric example"]
    clean: Float[Tensor, "metric example"]
    corrupt: Float[Tensor, "metric example"]
    exact: Float[Tensor, "cell metric example"] | None = None

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"values": self.values, "clean": self.clean, "corrupt": self.corrupt}
        if self.exact is not None:
            tensors["exact"] = self.exact
        commit(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    @staticmethod
    def read(path: Path, shape: tuple[int, int, int], *, exact: bool = False) -> "BatchValues | None":
        """The batch in a file; None if it is damaged or its values do not have ``shape`` (cells, metrics, examples)."""
        if not is_whole(path):
            return None
        try:
            found = load_file(path)
        except (OSError, SafetensorError):
            return None
        wanted = {"values": shape, "clean": shape[1:], "corrupt": shape[1:], **({"exact": shape} if exact else {})}
        if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
            return None
        return BatchValues(**found)
