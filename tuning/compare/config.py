"""The options of ``layerwise-finetune compare``. See ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    Flag,
    FollowLinks,
    Images,
    ModelOptions,
    NameList,
    NumberList,
    OrDefault,
    Overwrite,
    Preprocess,
    SkipBad,
    named,
    settings_of,
)
from tuning.config import NOT_SETTINGS, SCENES, Optimisation, RunOptions

TABLE = "compare.csv"
RUN = RunKind(
    "layerwise-finetune compare", writes=("runs", TABLE, "costs.json", "samples.json", "skipped-*.csv"), last=TABLE
)


@dataclass(frozen=True)
class CompareData:
    """The data that all plans are trained and scored on.

    Example:
        >>> CompareData("mix.json", eval_specs=("pope.jsonl",)).score_scenes
        100
    """

    spec: Annotated[str, named("data")] = SCENES
    """`scenes`, a JSON file in LLaVA's layout (any size), or a JSONL or Parquet file of questions."""
    images: Images = None
    follow_links: FollowLinks = False
    scenes: int = 4000
    """Scenes trained on, if the data are scenes."""
    limit: OrDefault[int] = None
    """Train on only the first N samples. [default: all]"""
    eval_specs: Annotated[NameList, named("eval-data")] = (SCENES,)
    """What is scored, comma-separated: `scenes` (seen and unseen drawings, and a caption in words), and files of
    questions with short answers. Each file is a condition with the file's name.
    """
    eval_benchmarks: Annotated[NameList, named("eval")] = ()
    """Benchmarks that are answered and scored by their official rules, comma-separated: `benchmark:pope=FOLDER`. See
    `benchmark-eval --help`. [default: none]"""
    score_scenes: int = 100
    """Number of scenes scored of each kind."""
    eval_limit: OrDefault[int] = None
    """Largest number of samples of each file, and of questions of each benchmark, that are scored. [default: all]"""
    skip_bad: SkipBad = False
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class CompareConfig:
    """Train and score several plans side by side.

    Example:
        >>> CompareConfig(plans=("full", "middle band")).seeds
        (0,)
    """

    model: ModelOptions = field(default_factory=lambda: ModelOptions(name="smol-stage1"))
    reference: OrDefault[str] = None
    """A tuned model to score beside the plans, for example `smol`. [default: none]"""
    plans: NameList = ()
    """Names of the plans to run, comma-separated: start, full, middle band, complement, first, last, evenly spread,
    random layers, LoRA everywhere, LoRA on the band, LISA on the band, projector only. [default: all but LISA]"""
    band: OrDefault[str] = None
    """The middle band as a layer spec. [default: 6-16 of 32, scaled]"""
    token_plan: OrDefault[str] = None
    """A token plan such as `6-16:hide`. The plans `full under the token plan` and `middle band under the token plan`
    train and are scored under it; they run after the others. [default: none]"""
    train: NameList = ("projector",)
    """Other parts that train beside the layers of every partial plan, comma-separated."""
    lora_rank: int = 32
    """Rank of LoRA's factors; alpha is twice the rank."""
    seeds: NumberList = (0,)
    """Seeds of the order of the data, comma-separated; every plan runs with each."""
    data: CompareData = field(default_factory=CompareData)
    optimisation: Optimisation = field(default_factory=Optimisation)
    lora_lr: float = 2e-4
    """Peak learning rate of LoRA's factors."""
    run: RunOptions = field(default_factory=lambda: RunOptions(save_every=50))
    timing_rounds: int = 3
    """Rounds in which steps of plans that have no timing yet alternate with steps of full; 0 for none."""
    keep_weights: Flag = False
    """Keep each tuned model that this call finishes, as a single run writes it."""
    out: Path = Path("runs/compare")
    """The folder of the comparison."""
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    @property
    def settings(self) -> dict[str, Any]:
        """Every option that decides the results; plans and seeds may be added to a comparison.

        They name files; digests of the files are in the manifest, digests of the samples used in ``samples.json``.
        """
        more = ("plans", "reference", "seeds", "seed", "images", "skip_bad", "timing_rounds", "keep_weights")
        benchmarks = {"eval": sorted(spec.partition("=")[0] for spec in self.data.eval_benchmarks)}
        files = {"data": Path(self.data.spec).name, "eval_data": sorted(Path(s).name for s in self.data.eval_specs)}
        # scores of finished runs are kept, so the limit on scored samples must stay the same
        no_settings = {*NOT_SETTINGS, *more} - {"eval_limit"}
        # comparisons without benchmarks have no such entry, also those of older versions
        given = benchmarks if self.data.eval_benchmarks else {}
        return settings_of(self, without=(*no_settings, "eval")) | files | given
