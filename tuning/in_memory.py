"""Tune a model in a notebook: ``tune(llava, "rows.jsonl", layers="6-15")`` trains as ``layerwise-finetune`` does."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.llava import Llava
from models.loading.quantised import quantised_as
from records.options import ModelOptions
from tasks.dataset import Dataset
from tasks.example import Example
from tasks.examples_from import content_hash
from tuning.config import DataOptions, Optimisation, PlanOptions, TuningConfig
from tuning.data.sources import TableFile
from tuning.plan.plan import Method
from tuning.run import FinishedTuning, run_tuning


def tune(
    llava: Llava | str,
    data: str | Path | Sequence[Example] | Dataset,
    *,
    layers: str | None = None,
    train: str | None = None,
    method: Method = "full",
    images: str | Path | None = None,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 8,
    learning_rate: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> FinishedTuning:
    """Train some layers on your data with LLaVA-1.5's second stage, and save the model.

    The weights are those of ``layerwise-finetune`` with the same options.

    Args:
        llava: A model in memory (a float32 copy is trained), or a name or folder.
        data: Examples with answers, or a file: LLaVA's JSON, or JSONL or Parquet with ``question`` and ``answer``.
        layers: Blocks of the language model, such as ``6-15`` or ``every:4``; all if None.
        train: Other parts, comma-separated, such as ``projector,lm_head``. If None, the projector, or all parts but the
            vision tower if ``layers`` is None too.
        method: Full weights, LoRA factors, or LISA.
        images: Folder of the picture paths in the file; the file's folder if None.
        steps: Optimizer steps in all, instead of epochs.
        epochs: Passes over the data.
        batch_size: Examples per step.
        learning_rate: Peak learning rate; LLaVA-1.5's if None: 2e-5, and 2e-4 for LoRA factors.
        seed: Seed of the order of the data and of new weights.
        out: Run directory, where a killed run resumes; a temporary folder, which is not deleted, if None.

    Returns:
        The finished run. Its ``folder`` opens in plain transformers.

    Raises:
        UserError: If an option, the data or the model cannot be used.

    Example:
        >>> from models import load
        >>> from tasks.scenes.datasets import scenes_dataset
        >>> llava = load("random:tiny")
        >>> tuned = tune(llava, scenes_dataset(n=2, size=llava.image_size), layers="1", steps=1)
        >>> load(tuned.folder).n_layers, tuned.cost["steps"]
        (4, 1)
    """
    source = None if isinstance(data, str | Path) else TableFile(_dataset(data))
    model = ModelOptions(llava) if isinstance(llava, str) else ModelOptions(
        llava.id, device=str(llava.device), dtype="float32", attn=llava.attention, quantize=quantised_as(llava.model)
    )  # fmt: skip
    config = TuningConfig(
        model,
        PlanOptions(layers, train, method),
        DataOptions(str(data) if source is None else source.name, None if images is None else Path(images)),
        Optimisation(epochs, steps, batch_size, lr=learning_rate, projector_lr=learning_rate, seed=seed),
        out=Path(tempfile.mkdtemp(prefix="laccolith-") if out is None else out),
    )
    finished = run_tuning(config, llava=None if isinstance(llava, str) else llava, source=source)
    assert isinstance(finished, FinishedTuning)  # one process, no dry run
    return finished


def _dataset(examples: Sequence[Example] | Dataset) -> Dataset:
    """The examples with a digest, which decides whether a run resumes."""
    if isinstance(examples, Dataset):
        return examples
    described = [(e.id, e.question, e.answer, [content_hash(p.open()) for p in e.pictures]) for e in examples]
    return Dataset("examples", examples, (), hashlib.sha256(repr(described).encode()).hexdigest()[:16])
