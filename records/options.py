"""Options that several commands share. A dataclass field is the option, the YAML key and the manifest entry.

    @dataclass(frozen=True)
    class CountOptions:
        model: ModelOptions = field(default_factory=ModelOptions)  # a nested dataclass: options without a prefix
        limit: OrDefault[int] = None
        '''At most so many examples. [default: all]'''                # the docstring below a field is its help text
        targets: Annotated[Repeated[str], named("target")] = ()       # --target a --target b
        skip_bad: Flag = False                                        # --skip-bad
        controls: bool = True                                         # --controls, --no-controls
        seed: Seed = 0
        out: Out = None
        overwrite: Overwrite = False
        dry_run: DryRun = False
        config: ConfigFile = None

``records.command`` makes the command line; ``settings_of`` makes the manifest's settings.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from tasks.errors import UserError, shown

try:
    from tyro import conf, constructors
except ModuleNotFoundError:  # without a command line the marks on option types have no effect
    from records.without_tyro import conf, constructors  # type: ignore[no-redef]

T = TypeVar("T")


def named(option: str) -> Any:
    """Give an option a name that differs from its field's."""
    return conf.arg(name=option)


# None is the default; the help text says what None means.
OrDefault = Annotated[T | None, conf.DisallowNone, conf.arg(help_behavior_hint=lambda default: "")]
Repeated = Annotated[tuple[T, ...], conf.UseAppendAction]
NotAnOption = Annotated[T, conf.Fixed, conf.Suppress]  # the command derives it from another option
Flag = Annotated[bool, conf.FlagCreatePairsOff, conf.arg(help_behavior_hint=lambda default: "")]


def _comma_list(kind: type) -> Any:
    """A tuple written as comma-separated text; `none` for an empty one."""
    return constructors.PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda texts: tuple(
            kind(part.strip()) for part in texts[0].split(",") if texts[0].strip() not in ("", "none")
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "none"],
    )


NameList = Annotated[tuple[str, ...], _comma_list(str)]
NumberList = Annotated[tuple[int, ...], _comma_list(int)]
DtypeName = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager"]
Preprocess = Annotated[
    Literal["pad", "hf"],
    conf.arg(help="Pad pictures to a square as LLaVA-1.5 does, or use the checkpoint's own picture processor (hf)."),
]
Images = Annotated[
    OrDefault[Path], conf.arg(help="Folder of the picture paths in the file. [default: the file's own folder]")
]
FollowLinks = Annotated[
    Flag, conf.arg(help="Follow links in the picture folder that lead out of it. Otherwise such pictures are an error.")
]
SkipBad = Annotated[Flag, conf.arg(help="Leave out examples that cannot be used, and list them in skipped.csv.")]
Seed = Annotated[int, conf.arg(help="Seed of every random draw.")]
Out = Annotated[OrDefault[Path], conf.arg(help="Run directory. [default: a folder in runs/ named after the settings]")]
Overwrite = Annotated[Flag, conf.arg(help="Replace the run in the directory instead of resuming it.")]
DryRun = Annotated[Flag, conf.arg(help="Check everything, print what the run takes, and stop.")]
ConfigFile = Annotated[
    OrDefault[Path], conf.arg(help="YAML file whose keys are these options; the command line takes precedence.")
]
LARGEST = 2**32  # whole numbers of options are smaller: counts and seeds
MOST_NEW_TOKENS = 2**16  # of an answer: memory is taken for all of them
# These do not change the results, so runs that differ only in them are equal.
NOT_SETTINGS = ("out", "overwrite", "dry_run", "config", "follow_links")


@dataclass(frozen=True)
class ModelOptions:
    """The model and how it runs.

    Example:
        >>> ModelOptions("smol-stage1", device="cuda").attn
        'sdpa'
    """

    name: Annotated[str, named("model")] = "smol"
    """`smol`, `smol-stage1`, a checkpoint folder, a Hugging Face id, or `random:llava-1.5-7b`."""
    revision: OrDefault[str] = None
    """Branch, tag or commit of a Hugging Face id."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1` or `mps`."""
    dtype: OrDefault[DtypeName] = None
    """Floating-point type of the weights. [default: float32 on a CPU, else the checkpoint's]"""
    attn: Attention = "sdpa"
    """Implementation of attention."""
    quantize: OrDefault[Literal["4bit", "8bit"]] = None
    """Store the matrices of the language model's blocks in 4 or 8 bits; needs bitsandbytes. Training: LoRA alone."""
    device_map: OrDefault[Literal["auto"]] = None
    """`auto` leaves blocks that do not fit on the device in main memory. Not for training."""


class Option(NamedTuple):
    """One option of a dataclass."""

    name: str
    """As on the command line, without the dashes."""
    value: Any
    """The field's value, or its default if the dataclass is given as a type."""
    paired: bool
    """True for a flag that also has a form with `--no-`."""
    joined: bool = False
    """True for a list that is written as one comma-separated text."""


def check_ranges(*ranges: tuple[str, int | None, int, int]) -> None:
    """Check whole numbers of options before anything is built from them.

    Args:
        ranges: Name, value (None if it is not given), smallest and largest value of each.

    Raises:
        UserError: If one is out of range; a number that is too large is a slip of the keyboard.

    Example:
        >>> check_ranges(("limit", 0, 1, 10))
        Traceback (most recent call last):
        tasks.errors.UserError: limit must be >= 1, got 0.
    """
    for name, value, lowest, highest in ranges:
        if value is not None and value < lowest:
            raise UserError(f"{name} must be >= {lowest}, got {value}.")
        if value is not None and value > highest:
            raise UserError(f"{name} must be at most {highest}, got {value}.")


def options_of(options: Any) -> Iterator[Option]:
    """Every option of a dataclass instance, including options of nested dataclasses."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from options_of(value)
            continue
        marks = getattr(hints[field.name], "__metadata__", ())
        if conf.Fixed in marks:
            continue
        names = [mark.name for mark in marks if getattr(mark, "name", None)]
        name = names[-1] if names else field.name.replace("_", "-")
        joined = any(isinstance(mark, constructors.PrimitiveConstructorSpec) for mark in marks)
        yield Option(name, value, isinstance(value, bool) and conf.FlagCreatePairsOff not in marks, joined)


def check_texts(options: Any) -> None:
    r"""Check the texts and paths of a command line: no file's name holds a null byte.

    Raises:
        UserError: If one does, as texts from YAML can.

    Example:
        >>> check_texts(ModelOptions("folder\0"))
        Traceback (most recent call last):
        tasks.errors.UserError: model must have no null bytes, got 'folder\x00'. Check the text.
    """
    for option in options_of(options):
        for value in option.value if isinstance(option.value, tuple) else (option.value,):
            if isinstance(value, str | Path) and "\0" in str(value):
                raise UserError(f"{option.name} must have no null bytes, got {shown(str(value))}. Check the text.")


def settings_of(options: Any, *, without: tuple[str, ...] = NOT_SETTINGS) -> dict[str, Any]:
    """The settings of a manifest: every option, its name with underscores and its value as JSON returns it.

    Raises:
        UserError: If a number is not finite, or too large for anything that a command counts.
    """
    values: dict[str, Any] = {}
    for option in options_of(options):
        value = values[option.name.replace("-", "_")] = plain(option.value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{option.name} must be a finite number, got {number}. Give another one.")
            if isinstance(number, int) and abs(number) > LARGEST:
                raise UserError(f"{option.name} must be between -2^32 and 2^32, got {number}. Give a smaller number.")
    return {name: value for name, value in values.items() if name not in without}


def plain(value: Any) -> Any:
    """``value`` as JSON returns it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def slug(text: str) -> str:
    """The name of a model or a file as part of a folder's name."""
    stem = text.rstrip("/").rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".parquet")
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in stem) or "run"
