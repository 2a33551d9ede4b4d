"""Settings of ``layerwise-finetune compare``."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from records.settings import plain
from tuning.config import SCENES, Optimisation, RunOptions


@dataclass(frozen=True)
class CompareData:
    """What the plans of a comparison are trained and scored on.

    Args:
        spec: ``"scenes"``, or a file that every plan is trained on.
        images: The folder that the files' picture paths start from.
        scenes: Scenes trained on, where the data are scenes.
        limit: The first so many samples trained on.
        eval_specs: What is scored: ``"scenes"`` (three conditions: seen and unseen drawings, and a caption in words),
            and files, each a condition that is called as the file is.
        score_scenes: Scenes scored, for each of their conditions.
        eval_limit: Samples scored of a file, at most; all where it is None.
        skip_bad: Whether to go on without samples that cannot be used.
    """

    spec: str = SCENES
    images: Path | None = None
    scenes: int = 4000
    limit: int | None = None
    eval_specs: tuple[str, ...] = (SCENES,)
    score_scenes: int = 100
    eval_limit: int | None = None
    skip_bad: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What must agree. Files go by their names, for digests say what is in them; defaults of files are left out.

        So is ``skip_bad``: which samples are used is recorded once they are known.
        """
        given: dict[str, Any] = {
            "data": Path(self.spec).name,
            "limit": self.limit,
            "eval_data": sorted(Path(spec).name for spec in self.eval_specs),
            "eval_limit": self.eval_limit,
        }
        plainest = {"data": SCENES, "limit": None, "eval_data": [SCENES], "eval_limit": None}
        changed = {name: value for name, value in given.items() if value != plainest[name]}
        return {"scenes": self.scenes, "score_scenes": self.score_scenes, **changed}


@dataclass(frozen=True)
class CompareConfig:
    """One comparison.

    Args:
        model: Where every plan starts.
        reference: A tuned model that is scored beside them, or None.
        plans: Names of the default plans to run; all of them where it is empty.
        band: The middle band as a layer spec; 6-16 of 32, scaled, where it is None.
        train: Components that train beside the layers of every partial plan.
        lora_rank: Of the LoRA plans; alpha is twice it.
        seeds: Of the order of data; every plan is run with each.
        data: What all plans are trained and scored on.
        optimisation: Its seed is replaced by each of ``seeds``.
        lora_lr: Peak learning rate of factors.
        options: As for a single run.
        timing_rounds: Rounds in which steps of plans that were not timed yet take turns with that of ``full`` in one
            process; 0 for none.
        keep_weights: Whether the tuned model of each run that this call finishes stays in the run's folder; it is
            scored and forgotten otherwise.
        out: The folder.
    """

    model: str = "smol-stage1"
    reference: str | None = None
    plans: tuple[str, ...] = ()
    band: str | None = None
    train: tuple[str, ...] = ("projector",)
    lora_rank: int = 32
    seeds: tuple[int, ...] = (0,)
    data: CompareData = field(default_factory=CompareData)
    optimisation: Optimisation = field(default_factory=Optimisation)
    lora_lr: float = 2e-4
    options: RunOptions = field(default_factory=RunOptions)
    timing_rounds: int = 3
    keep_weights: bool = False
    out: Path = Path("runs/compare")

    @property
    def settings(self) -> dict[str, Any]:
        """What must agree for the comparison to be resumed; more plans and seeds may be added."""
        named = ("model", "band", "train", "lora_rank", "lora_lr")
        described = {name: plain(getattr(self, name)) for name in named} | self.data.settings
        return {**described, **asdict(self.optimisation), "bf16": self.options.bf16}
