"""The settings of ``layerwise-finetune mix``, and the parts of LLaVA-1.5's mix by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from records.manifest import RunKind
from records.options import ConfigFile, DryRun, OrDefault, Out, Overwrite, Repeated, Seed, SkipBad, named, settings_of
from tasks.errors import UserError
from tasks.prompts import BOX, CAPTION, LETTER, REGION, SHORT

DATA = "mix.json"
RUN = RunKind("layerwise-finetune mix", writes=(DATA, "skipped.csv"))
FORMATS = {"none": "", "short": SHORT, "letter": LETTER, "caption": CAPTION, "region": REGION, "box": BOX}


class Published(NamedTuple):
    """A part of LLaVA-1.5's mix: its thousands of samples, and its format prompt."""

    thousands: int
    format: str


# Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744, table 7.
PUBLISHED = {
    "llava": Published(158, "none"),
    "sharegpt": Published(40, "none"),
    "vqav2": Published(83, "short"),
    "gqa": Published(72, "short"),
    "okvqa": Published(9, "short"),
    "ocrvqa": Published(80, "short"),
    "aokvqa": Published(66, "letter"),
    "textcaps": Published(22, "caption"),
    "refcoco": Published(48, "region"),
    "vg": Published(86, "box"),
}


class PartSpec(NamedTuple):
    """One part: a file, how much of it, and how its samples are written.

    Example:
        >>> parse_part("gqa=gqa.json,share=0.5,prefix=gqa/images")
        PartSpec(name='gqa', path=PosixPath('gqa.json'), share=0.5, take=None, format='short', prefix='gqa/images',
            join=True)
    """

    name: str
    path: Path
    share: float = 1.0
    take: int | None = None
    format: str = "none"
    prefix: str = ""
    join: bool = True


def parse_part(text: str) -> PartSpec:
    """A part from ``NAME=FILE[,share=S|,take=N][,format=F][,prefix=FOLDER][,join=no]``.

    Raises:
        UserError: If it is written in another way.
    """
    first, *given = text.split(",")
    name, equals, path = first.partition("=")
    if not equals or not path or not name or not all(c.isalnum() or c in "-_" for c in name):
        raise UserError(
            f"part must be NAME=FILE with options after commas, got {text!r}. See layerwise-finetune mix --help."
        )
    options: dict[str, str] = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not equals or key not in ("share", "take", "format", "prefix", "join") or key in options:
            raise UserError(
                f"options of a part must be share, take, format, prefix and join, each once, got {option!r}."
            )
        options[key] = value
    if "share" in options and "take" in options:
        raise UserError(f"part must have share or take, got both in {text!r}.")
    default = PUBLISHED[name].format if name in PUBLISHED else "none"
    chosen = options.get("format", default)
    if chosen not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {chosen!r} in part {name}.")
    if options.get("join", "yes") not in ("yes", "no"):
        raise UserError(f"join must be yes or no, got {options['join']!r} in part {name}.")
    take = _number(options["take"], "take", name) if "take" in options else None
    share = _number(options.get("share", "1"), "share", name)
    if not 0 < share <= 1:
        raise UserError(f"share must be in (0, 1], got {share:g} in part {name}.")
    if take is not None and (take < 1 or take != int(take)):
        raise UserError(f"take must be a whole number >= 1, got {options['take']!r} in part {name}.")
    return PartSpec(
        name,
        Path(path),
        share,
        None if take is None else int(take),
        chosen,
        options.get("prefix", "").strip("/"),
        options.get("join", "yes") == "yes",
    )


def _number(text: str, what: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 2**32:
        raise UserError(f"{what} must be a number, got {text!r} in part {name}.")
    return value


@dataclass(frozen=True)
class MixConfig:
    """Write one training file from several.

    Example:
        >>> MixConfig(parts=("gqa=gqa.json",)).specs[0].format
        'short'
    """

    parts: Annotated[Repeated[str], named("part")] = ()
    """`NAME=FILE`, then any of `,share=0.5`, `,take=1000`, `,format=none|short|letter|caption|region|box`,
    `,prefix=FOLDER` before the picture paths, `,join=no`. FILE is LLaVA's JSON, or a JSONL or Parquet table with
    image, question and answer, whose rows about one picture become one conversation unless join=no. The names llava,
    sharegpt, vqav2, gqa, okvqa, ocrvqa, aokvqa, textcaps, refcoco and vg have the format of LLaVA-1.5."""
    images: OrDefault[Path] = None
    """Folder in which every picture must exist. [default: pictures are not looked for]"""
    skip_bad: SkipBad = False
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the seed."""
        if self.seed < 0:
            raise UserError(f"seed must be >= 0, got {self.seed}.")

    @property
    def specs(self) -> tuple[PartSpec, ...]:
        """The parts.

        Raises:
            UserError: If there is none, one is written in another way, or two have one name.
        """
        specs = tuple(map(parse_part, self.parts))
        if not specs:
            raise UserError("part must be given at least once, got none. Give --part NAME=FILE.")
        names = [spec.name for spec in specs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"part must have a name of its own, got {twice!r} twice.")
        return specs

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or ``runs/mix``."""
        return self.out or Path("runs") / "mix"
