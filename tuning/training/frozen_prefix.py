"""Store the output of the frozen layers below the lowest trained block, and read it in later epochs.

The first epoch writes the residual stream that enters the lowest trained block, one file per sample. Later epochs read
it, open no picture, and start the model at that block. This is exact, since the frozen layers give the same output in
every epoch.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.llava import Llava
from models.sites import Site
from records.manifest import commit
from records.processes import join_processes, launched
from records.run import check_space
from tasks.checksums import is_whole
from tasks.errors import UserError
from tuning.config import Optimisation
from tuning.data.samples import Samples
from tuning.plan.resolve import Resolved
from tuning.training.sharding import will_shard


class KeptPrefix:
    """The residual stream of each sample that enters block ``first``, or the final norm if no block trains."""

    def __init__(
        self,
        llava: Llava,
        resolved: Resolved,
        samples: Samples,
        folder: Path,
        *,
        optimisation: Optimisation,
        bf16: bool = False,
    ) -> None:
        """Create ``folder``; delete prefixes in it that belong to another model, data set or plan.

        Raises ``UserError`` without a frozen prefix or a second epoch, under FSDP, or if the disk is too small.
        """
        if will_shard():
            raise UserError("keep-prefix must have the full model in every process, got FSDP. Leave one of them out.")
        if resolved.below_blocks or resolved.plan.method == "lisa":
            raise UserError(
                f"keep-prefix must have frozen layers below the trained ones, got the plan {resolved.plan.label!r}. "
                "Train neither projector, vision, embeddings nor with lisa, or leave out --keep-prefix."
            )
        per_step = optimisation.batch_size * optimisation.grad_accum * launched()
        epochs = optimisation.epochs if optimisation.steps is None else optimisation.steps * per_step / len(samples)
        if epochs <= 1:
            raise UserError(
                f"keep-prefix must have a second epoch, which reads what the first stores, got {epochs:.3g} epochs. "
                "Give --epochs 2 or more, or leave it out."
            )
        self.first = resolved.first_block
        self._llava, self._folder = llava, folder
        identity = json.dumps([llava.weight_hash, samples.source.digest, asdict(samples.prompt_format), bf16])
        mark, wanted = folder / "identity.txt", f"{identity} block {self.first}"
        processes = join_processes(str(llava.device))
        if processes.is_main:
            if folder.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8", errors="replace") != wanted):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(wanted, encoding="utf-8")
        processes.wait()
        existing = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        needed = int(samples.lengths.sum()) * llava.d_model * (2 if bf16 else 4) - existing
        check_space(max(0, needed), folder, what="keep-prefix", advice="Leave it out, or choose another --out.")

    def read(self, sample: int) -> Float[Tensor, "pos d_model"] | None:
        """The stored prefix of a sample, or None."""
        path = self._path(sample)
        return load_file(path)["resid_pre"] if is_whole(path) else None

    def has(self, sample: int) -> bool:
        """True if the prefix of a sample is stored, as it was written."""
        return is_whole(self._path(sample))

    @contextmanager
    def writing(self, samples: Int[Tensor, " batch"], lengths: Int[Tensor, " batch"]) -> Iterator[None]:
        """Context manager: the forward pass of one batch writes the input of block ``first``, one file per sample."""
        rows = [int(sample) for sample in samples]

        def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            resid = args[0] if args else kwargs["hidden_states"]
            for row, sample in enumerate(rows):
                kept = resid[row, : int(lengths[row])].detach().to("cpu").contiguous().clone()
                commit(self._path(sample), save({"resid_pre": kept}))

        handle = self._entry().register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def blocks_above(self) -> Iterator[None]:
        """Context manager: the language model starts at block ``first``."""
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
        shelf = self._folder / f"{sample // 1000:05d}"  # one folder with a million files is slow
        shelf.mkdir(exist_ok=True)
        return shelf / f"{sample:08d}.safetensors"
