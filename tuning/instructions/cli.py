"""``generate-instructions``: the command line of instruction data."""

from collections.abc import Sequence
from typing import Any

from records.command import Show, Subcommand, Terminal, run_command
from tuning.instructions.config import GenerateConfig

ABOUT = """Write instruction data in LLaVA's layout from captions and boxes, with a language model at a chat server.

The three kinds are those of LLaVA-Instruct-158K: conversation, detailed description, complex reasoning. Any
OpenAI-compatible server works. The same command resumes a run that was killed; a reply that is in the log is never
asked for again. layerwise-finetune trains on the file at once.

Examples:
  generate-instructions --captions captions_train2017.json --boxes instances_train2017.json --model NAME --dry-run
  generate-instructions --captions photos.jsonl --model NAME --url http://localhost:8000/v1 --out runs/instructions
  generate-instructions --captions photos.jsonl --model NAME --url https://HOST/v1 --prices prices.yaml --max-cost 5
  generate-instructions --captions photos.jsonl --model NAME --reply-format text --shares 1:0:0 --samples 50
  generate-instructions show runs/instructions    print what a run made again"""


def _run(config: GenerateConfig, terminal: Terminal) -> Any:
    from tuning.instructions.generate import run_generate  # pandas takes a second, which --help must not

    return run_generate(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from tuning.instructions.generate import finished_generate

    return finished_generate(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``generate-instructions``."""
    subcommands = (Subcommand("run", GenerateConfig, _run), Subcommand("show", Show, _show))
    run_command("generate-instructions", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
