"""The command line that is made from dataclasses, on a command made for the purpose, and on the project's own."""

import importlib
import io
import resource
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import pytest
from rich.table import Table

from records.command import Show, Subcommand, Terminal, run_command
from records.options import (
    ConfigFile,
    DryRun,
    Images,
    ModelOptions,
    NumberList,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Repeated,
    Seed,
    SkipBad,
    named,
    options_of,
    settings_of,
)
from records.run import FinishedRun
from tasks.errors import UserError
from tuning.instructions.config import GenerateConfig
from tuning.mix.config import MixConfig


@dataclass(frozen=True)
class Sheep:
    """Count sheep."""

    model: ModelOptions = field(default_factory=ModelOptions)
    names: Annotated[Repeated[str], named("name")] = ()
    """A sheep."""
    source: Annotated[Repeated[str], named("from")] = ()
    """A meadow."""
    count: OrDefault[int] = None
    """How many. [default: all]"""
    rate: float = 1.0
    """Sheep per second."""
    awake: bool = True
    """Stay awake."""
    pens: NumberList = (0,)
    """Numbers of pens."""
    images: Images = None
    skip_bad: SkipBad = False
    preprocess: Preprocess = "pad"
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None


class Call(NamedTuple):
    code: int
    out: str
    err: str
    options: object


@pytest.fixture
def count(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs ``count-sheep`` and returns what it printed and the options that it was given."""

    def call(*arguments: object) -> Call:
        seen: list[object] = []

        def run(options: Sheep, terminal: Terminal) -> object:
            seen.append(options)
            if options.rate < 0:
                raise UserError("rate must be\n>= 0, got less")
            if options.rate == 0:
                raise KeyboardInterrupt
            if options.dry_run:
                return "3 sheep"
            results = pd.DataFrame({"a": [1]})
            return FinishedRun(Path("runs/x"), results, Table("sheep"), (Path("a.png"),), ("one left out",))

        def show(options: Show, terminal: Terminal) -> object:
            seen.append(options)
            return None

        code = 0
        try:
            run_command(
                "count-sheep",
                (Subcommand("run", Sheep, run), Subcommand("show", Show, show)),
                [str(argument) for argument in arguments],
                about="Count sheep.\n\nExamples:\n  count-sheep --name Dolly",
            )
        except SystemExit as end:
            code = int(end.code or 0)
        return Call(code, *capsys.readouterr(), seen[-1] if seen else None)

    return call


OPTIONS: dict[str, object] = {
    "model": "here",
    "revision": "abc",
    "device": "cuda:1",
    "dtype": "bfloat16",
    "attn": "eager",
    "quantize": "4bit",
    "device-map": "auto",
    "count": 3,
    "rate": 2.5,
    "images": "pictures",
    "preprocess": "hf",
    "seed": 9,
    "out": "elsewhere",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shared_option_is_set_by_line_and_by_file(option: str, count, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text(f"{option}: {OPTIONS[option]}\n")
    for arguments in ([f"--{option}", OPTIONS[option]], ["run", f"--config={tmp_path / 'a.yaml'}"]):
        called = count(*arguments)
        values = {given.name: given.value for given in options_of(called.options)}
        assert str(values[option]) == str(OPTIONS[option])
        assert type(values[option]) is type(OPTIONS[option]) or isinstance(values[option], Path)
        assert {given.name: given.value for given in options_of(Sheep())}[option] != values[option]


@pytest.mark.parametrize("given", ['model: "a\\0"', 'images: "\\0"', 'name: [a, "b\\0c"]'])
def test_a_null_byte_in_a_text_or_path_is_one_sentence(given: str, count, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text(f"{given}\n")
    called = count("--config", tmp_path / "a.yaml")
    assert called.code == 2 and called.options is None
    assert "must have no null bytes" in called.err and called.err.count("\n") == 1


def test_flags_and_repeated_options(count, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    called = count("--skip-bad", "--overwrite", "--dry-run", "--no-awake", "--name", "a", "--name=b", "--from", "c")
    assert called.options == Sheep(
        names=("a", "b"), source=("c",), awake=False, skip_bad=True, overwrite=True, dry_run=True
    )
    assert called.out == "3 sheep\n"
    (tmp_path / "a.yaml").write_text(
        "skip_bad: true\nawake: false\noverwrite: false\nname: [a, b]\nfrom: c\nrate: 1e-4\n"
    )
    expected = Sheep(names=("a", "b"), source=("c",), awake=False, skip_bad=True, rate=1e-4, config=tmp_path / "a.yaml")
    assert count("--config", tmp_path / "a.yaml").options == expected


@pytest.mark.parametrize("written", ["'1,2'", "[1, 2]"])
def test_a_list_in_a_file_may_be_a_comma_text_or_a_yaml_list(count, tmp_path: Path, written: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text(f"pens: {written}\n")
    assert count("--config", tmp_path / "a.yaml").options.pens == (1, 2)
    assert count("--pens", "1,2").options.pens == (1, 2)


def test_line_wins_over_file_and_file_over_default(count, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text("seed: 5\nname: [a, b]\nawake: false\ncount: null\n")
    config = ["--config", tmp_path / "a.yaml"]
    called = count(*config, "--seed", 7, "--name", "seed", "--awake").options
    assert (called.seed, called.names, called.awake) == (7, ("seed",), True)
    called = count(*config, "--name", "seed").options
    assert (called.seed, called.names, called.awake, called.count) == (5, ("seed",), False, None)


def test_settings_are_the_options_that_decide_results() -> None:
    settings = settings_of(Sheep(names=("a",), images=Path("x")))
    assert settings["name"] == ["a"]
    assert settings["images"] == "x"
    assert set(settings) == {
        *("model", "revision", "device", "dtype", "attn", "quantize", "device_map", "name", "from", "count"),
        *("rate", "awake", "pens", "images", "skip_bad", "preprocess", "seed"),
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", "-1"], "rate must be >= 0, got less"),
        (["--seeed", "3"], "option must be one of count-sheep, got '--seeed'. Did you mean '--seed'?"),
        (["--seed", "x"], "seed must be a whole number, got 'x'. See count-sheep --help."),
        (["--count", "x"], "count must be a whole number, got 'x'. See count-sheep --help."),
        (["--rate", "x"], "rate must be a number, got 'x'. See count-sheep --help."),
        (["--dtype", "x"], "dtype must be one of bfloat16, float16, float32, got 'x'. See count-sheep --help."),
        (["--name"], "Missing value for argument '--name'. Expected 1 values. See count-sheep --help."),
        (["sheep"], "Unrecognized options: sheep. See count-sheep --help."),
        (["show"], "Missing from count-sheep show: RUN A run directory of this command. (required)."),
        (["--config", "gone.yaml"], "config must be a readable YAML file, got 'gone.yaml'"),
    ],
)
def test_invalid_input_is_one_sentence_and_status_2(count, arguments: list[str], sentence: str) -> None:  # type: ignore[no-untyped-def]
    called = count(*arguments)
    assert (called.code, called.out, called.err.count("\n")) == (2, "", 1)
    assert called.err.startswith(f"count-sheep: {sentence}")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("sed: 3", "an option of count-sheep, got 'sed'. Did you mean 'seed'?"),
        ("unlike: 3", "See --help"),
        ("config: b.yaml", "an option of count-sheep, got 'config'"),
        ("- seed", "mapping of options, got a list"),
        ("seed: [", "readable YAML"),
        ("skip-bad: true\nskip_bad: true", "given once"),
        ("seed: [1, 2]", "seed must be one value, got [1, 2]"),
        ("seed: true", "seed must not be true or false"),
        ("awake: 3", "awake must be true or false, got 3"),
        ("seed: x", "seed must be a whole number, got 'x'"),
    ],
)
def test_invalid_file_is_one_sentence_and_status_2(count, tmp_path: Path, text: str, phrase: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text(text)
    called = count("--config", tmp_path / "a.yaml")
    assert (called.code, called.out, called.err.count("\n")) == (2, "", 1)
    assert phrase in called.err


def test_ctrl_c_is_one_line_that_says_how_to_go_on_and_status_130(count) -> None:  # type: ignore[no-untyped-def]
    called = count("--rate", "0")
    assert (called.code, called.out) == (130, "")
    assert called.err == "count-sheep: interrupted. Start the same command again to go on where it stopped.\n"


def test_ctrl_c_while_the_result_is_printed_is_no_traceback(count, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def interrupted(result: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("records.command._print", interrupted)
    called = count("--dry-run")
    assert (called.code, called.err.count("\n")) == (130, 1)


def test_a_finished_run_is_printed_as_notes_table_and_files(count) -> None:  # type: ignore[no-untyped-def]
    lines = count().out.splitlines()
    assert lines[0] == "one left out"
    assert "sheep" in "".join(lines[1:-2])
    assert lines[-2:] == ["table:  runs/x/results.csv", "figure: a.png"]


def count_named(*arguments: str) -> None:
    """A command that prints text of users: as a note, in the table, in paths and in an error."""

    def run(options: Sheep, terminal: Terminal) -> object:
        if options.rate < 0:
            raise UserError(f"name must be known, got {options.names[0]!r}.")
        terminal.on_note(f"counting {options.names[0]}")
        table = Table("target", title=options.names[0])
        table.add_row(options.names[0])
        return FinishedRun(Path(options.names[0]), pd.DataFrame(), table, (), options.names)

    run_command("count-sheep", (Subcommand("run", Sheep, run),), arguments, about="Count 颜色.")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
@pytest.mark.parametrize("arguments", [("--name", "颜色"), ("--name", "颜色", "--rate", "-1"), ("--help",)])
def test_a_terminal_that_lacks_characters_gets_them_escaped(
    encoding: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        code = 0
        count_named(*arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    for stream in (out, err):
        stream.flush()
    assert code == (2 if "-1" in arguments else 0)
    printed = b"".join(stream.buffer.getvalue() for stream in (out, err))  # type: ignore[attr-defined]
    assert rb"\u989c\u8272" in printed


def test_other_ranks_print_nothing(count, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("RANK", "1")
    assert count("--dry-run").out == ""


def test_help_lists_subcommands_examples_and_defaults(count) -> None:  # type: ignore[no-untyped-def]
    shown = count("--help")
    assert shown.code == 0
    for phrase in ("count-sheep --name Dolly", "show", "report", "--model", "--from", "--no-awake", "[default: all]"):
        assert phrase in shown.out
    assert "RUN" in count("show", "--help").out
    assert count("show", "runs/x").options == Show(Path("runs/x"))
    assert count("--version").out.startswith("count-sheep 0.")


COMMANDS = (
    "probes.cli", "interventions.cli", "tuning.cli", "interventions.token_plans.cli", "probes.activations.cli",
    "tuning.instructions.cli", "records.evaluation.cli", "probes.lenses.cli",
)  # fmt: skip
SHARED = {"seed", "out", "overwrite", "dry-run", "config"}
OF_A_MODEL = {"model", "device", "dtype", "attn", "quantize", "device-map", "revision"}
NO_MODEL = {MixConfig, GenerateConfig}  # they load none


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_is_declared_once_and_every_command_has_the_shared_ones(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = importlib.import_module(module)
    if not hasattr(cli, "run_command"):
        pytest.skip("the command is not on records.command yet")
    made: list[Subcommand] = []
    monkeypatch.setattr(cli, "run_command", lambda name, subcommands, *rest, **options: made.extend(subcommands))
    cli.main([])
    assert "show" in [subcommand.name for subcommand in made]
    for subcommand in made:
        if subcommand.options is not Show:
            options = Counter(option.name for option in options_of(subcommand.options()))
            assert [option for option, times in options.items() if times > 1] == []
            if "device" in options or subcommand.options in NO_MODEL:  # others score a file, or write a small one
                needed = SHARED if subcommand.options in NO_MODEL else SHARED | OF_A_MODEL
                # compare: seeds
                assert {option if option in options else f"{option}s" for option in needed} <= set(options)


def seconds_of(*arguments: str) -> float:
    """Processor time, which other programs on the machine do not change much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def is_quick(module: str) -> bool:
    """Whether ``--help`` takes at most half a second more than a small command line, whose imports transformers has.

    Half a second is meant on a machine that needs an eighth of a second for the small one; slower ones get more.
    """
    small = min(seconds_of("-c", "import typer, rich") for _ in range(2))
    return seconds_of("-m", module, "--help") < 1.5 * small + 0.5 * max(1, small / 0.125)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_without_torch_in_half_a_second_more_than_a_small_command(module: str) -> None:
    assert any(is_quick(module) for _ in range(5))  # other programs may disturb one measurement
    code = f"import sys; import {module}; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_is_written_for_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    command = [sys.executable, "-m", "probes.cli", "--tyro-write-completion", "bash", str(script)]
    subprocess.run(command, check=True)
    assert "--transfer-limit" in script.read_text()
