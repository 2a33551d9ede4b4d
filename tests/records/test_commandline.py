"""What the commands share at the terminal, on a command made for the purpose."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from records.terminal import RunByDefault, progress_bar, refuse, with_config
from tasks.errors import UserError


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(cls=RunByDefault)

    @made.command(cls=with_config("count-sheep", frozenset({"name"})))
    def run(
        n: Annotated[int, typer.Option()] = 1,
        name: Annotated[list[str] | None, typer.Option()] = None,
        config: Annotated[Path | None, typer.Option()] = None,
    ) -> None:
        if n < 0:
            refuse("count-sheep", UserError("n must be\n>= 0"))
        typer.echo(f"{n} {name}")

    @made.command()
    def show() -> None:
        typer.echo("shown")

    return made


def test_options_alone_mean_the_default_command_and_names_mean_themselves(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--n", "3"]).stdout == "3 None\n"
    assert CliRunner().invoke(app, ["run"]).stdout == "1 None\n"
    assert CliRunner().invoke(app, ["show"]).stdout == "shown\n"


def test_line_wins_over_file_and_file_over_default(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("n: 5\nname: one\n")
    for config in (["--config", str(tmp_path / "a.yaml")], [f"--config={tmp_path / 'a.yaml'}"]):
        assert CliRunner().invoke(app, config).stdout == "5 ['one']\n"
        assert CliRunner().invoke(app, ["--n", "7", *config]).stdout == "7 ['one']\n"


def test_refusal_is_one_line_on_stderr_and_status_2(app: typer.Typer, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["--n", "-1"])
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (2, "", "count-sheep: n must be >= 0\n")
    (tmp_path / "a.yaml").write_text("m: 5\n")
    outcome = CliRunner().invoke(app, ["--config", str(tmp_path / "a.yaml")])
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("count-sheep: config key must be an option of count-sheep, got 'm'")


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as on_progress:
        on_progress("working", 1, 2)
    assert capsys.readouterr() == ("", "")
