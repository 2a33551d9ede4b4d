"""``benchmark-eval``: the command line of benchmarks."""

from collections.abc import Sequence
from typing import Any

from records.command import Show, Subcommand, Terminal, run_command
from records.evaluation.config import EvaluationConfig, MakePopeConfig, ScoreConfig

ABOUT = """Answer the questions of LLaVA-1.5's twelve benchmarks with a model, and score the answers.

Question files are those of LLaVA's evaluation bundle, or Parquet files of lmms-lab. Prompts, answer files and upload
files are the authors'; scores follow the official rules. The same command resumes a run that was killed.

Examples:
  benchmark-eval --benchmark pope=data/pope --benchmark mme=data/MME --model runs/band --device cuda
  benchmark-eval --benchmark gqa=data/gqa --token-plan leave@16 --limit 500
  accelerate launch --num_processes 2 -m records.evaluation.cli --benchmark gqa=data/gqa --out runs/gqa
  benchmark-eval score pope --answers answers.jsonl --questions data/pope --json
  benchmark-eval make-pope --out data/pope-scenes --pictures 100
  benchmark-eval show runs/gqa                       print a run's table again"""


def _run(config: EvaluationConfig, terminal: Terminal) -> Any:
    from records.evaluation.run import run_benchmark_eval  # torch takes seconds, which --help must not

    return run_benchmark_eval(config, **terminal._asdict())


def _score(config: ScoreConfig, terminal: Terminal) -> str:
    from records.evaluation.score_file import score_file

    found = score_file(config)
    return found.to_json() if config.json else str(found)


def _make_pope(config: MakePopeConfig, terminal: Terminal) -> str:
    from records.evaluation.make_pope import make_pope

    return make_pope(config)


def _show(options: Show, terminal: Terminal) -> Any:
    from records.evaluation.run import finished_benchmark_eval

    return finished_benchmark_eval(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``benchmark-eval``."""
    subcommands = (
        Subcommand("run", EvaluationConfig, _run),
        Subcommand("score", ScoreConfig, _score),
        Subcommand("make-pope", MakePopeConfig, _make_pope),
        Subcommand("show", Show, _show),
    )
    run_command("benchmark-eval", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
