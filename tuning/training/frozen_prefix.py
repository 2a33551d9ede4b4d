"""Store the output of the frozen layers below the lowest trained block, and read it in later epochs.

The first epoch writes the residual stream that enters the lowest trained block, one file per sample. Later epochs read
it, open no picture, and run the model from that block on. This is exact: a position depends on itself, on earlier
positions and on the layers below.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.llava import Llava
from models.sites import Site
from records.processes import join_processes, launched
from records.run import check_space
from tasks.errors import UserError
from tuning.config import Optimisation
from tuning.data.samples import Samples
from tuning.plan.resolve import Resolved
from tuning.training.sharding import will_shard


class KeptPrefix:
    """The residual stream that enters block ``first`` (or the final norm, past the last block), by sample."""

    def __init__(self, llava: Llava, resolved: Resolved, folder: Path, *, identity: str) -> None:
        """Create the folder; delete what it holds of another model, data set or plan.

        Args:
            llava: The model.
            resolved: The plan; the prefix ends at its ``first_block``.
            folder: Folder of the files.
            identity: Identifies weights, data and prompt format.

        Raises:
            UserError: If the plan trains a part below the first block.
        """
        if resolved.below_blocks or resolved.plan.method == "lisa":
            raise UserError(
                "keep-prefix must have a frozen part to keep, got a plan that trains what feeds the first block "
                f"({resolved.plan.label}). Leave out projector, vision, embeddings and lisa, or --keep-prefix."
            )
        self.first = resolved.first_block
        self._llava, self._folder = llava, folder
        mark = folder / "identity.txt"
        wanted = f"{identity} block {self.first}"
        processes = join_processes(str(llava.device))
        if processes.is_main:
            if folder.exists() and (not mark.is_file() or mark.read_text() != wanted):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(wanted)
        processes.wait()

    def check_disk(self, n_tokens: int, *, n_bytes: int = 4) -> None:
        """Check that the disk has room for the prefix, less what is stored already.

        Args:
            n_tokens: Tokens of all samples.
            n_bytes: Bytes per number.

        Raises:
            UserError: If it has not.
        """
        existing = sum(file.stat().st_size for file in self._folder.glob("*/*.safetensors"))
        needed = max(0, n_tokens * self._llava.d_model * n_bytes - existing)
        check_space(needed, self._folder, what="keep-prefix", advice="Leave it out, or choose another --out.")

    def read(self, sample: int) -> Float[Tensor, "pos d_model"] | None:
        """The stored prefix of a sample, or None."""
        path = self._path(sample)
        return load_file(path)["resid_pre"] if path.is_file() else None

    def has(self, sample: int) -> bool:
        """True if the prefix of a sample is stored."""
        return self._path(sample).is_file()

    @contextmanager
    def writing(self, samples: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"]) -> Iterator[None]:
        """Store the prefix of one batch during its forward pass within the block."""
        rows = [int(sample) for sample in samples]

        def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            resid = args[0] if args else kwargs["hidden_states"]
            for row, sample in enumerate(rows):
                path = self._path(sample)
                partial = path.with_suffix(f".{os.getpid()}.partial")  # two processes may have the same sample
                kept = resid[row, : int(lengths[row])].detach().to("cpu").contiguous().clone()
                save_file({"resid_pre": kept}, partial)
                partial.replace(path)

        handle = self._entry().register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def blocks_above(self) -> Iterator[None]:
        """Within the block, the language model consists of block ``first`` and those above."""
        language = self._llava.language_model
        whole = self._llava.blocks
        language.layers = nn.ModuleList(list(whole)[self.first :])
        try:
            yield
        finally:
            language.layers = whole

    def _entry(self) -> nn.Module:
        if self.first < self._llava.n_layers:
            return self._llava.blocks[self.first]
        return self._llava.module_at(Site("language_model", None, "final_norm"))

    def _path(self, sample: int) -> Path:
        shelf = self._folder / f"{sample // 1000:05d}"  # a folder of a million files is slow
        shelf.mkdir(exist_ok=True)
        return shelf / f"{sample:08d}.safetensors"


def make_keeper(
    llava: Llava, resolved: Resolved, samples: Samples, folder: Path, *, optimisation: Optimisation, bf16: bool = False
) -> KeptPrefix:
    """A ``KeptPrefix`` for all samples.

    Raises:
        UserError: If the plan has no frozen prefix, there is only one epoch, the model is sharded, or the disk is too
            small.
    """
    if will_shard():
        raise UserError("keep-prefix must have the whole model in every process, got FSDP. Leave one of them out.")
    identity = json.dumps([llava.weight_hash, samples.source.digest, asdict(samples.prompt_format), bf16])
    keeper = KeptPrefix(llava, resolved, folder, identity=identity)
    per_step = optimisation.batch_size * optimisation.grad_accum * launched()
    epochs = optimisation.epochs if optimisation.steps is None else optimisation.steps * per_step / len(samples)
    if epochs <= 1:
        raise UserError(
            f"keep-prefix must have a second epoch that reads what the first kept, got {epochs:.3g} epochs. "
            "Give --epochs 2 or more, or leave it out."
        )
    keeper.check_disk(int(samples.lengths.sum()), n_bytes=2 if bf16 else 4)
    return keeper
