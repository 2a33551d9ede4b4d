"""``inference-cost``: the command line of token plans."""

from collections.abc import Sequence
from typing import Any

from interventions.token_plans.config import InferenceConfig
from records.command import Show, Subcommand, Terminal, run_command

ABOUT = """Show what image tokens cost at inference, and what a LLaVA-1.5 model keeps without some of them.

A token plan says in which layers of the language model image tokens are computed. Every plan answers every question;
its prefill, cache and decoding are computed in closed form and measured in turn with the full model. The same command
resumes a run that was killed.

Examples:
  inference-cost                          one plan of each kind on the embedded model and scenes
  inference-cost --plans all,leave@16,keep:0.5@2:attention,keep:0.5@2:random@0,6-16
  inference-cost --plans auto:runs/skip-smol-scenes --limit 70
  inference-cost --data questions.jsonl --images photos --model llava-hf/llava-1.5-7b-hf --device cuda
  inference-cost show runs/inference-smol-scenes     print a run's table again
  inference-cost report runs/inference-smol-scenes   write one web page to explore it
  inference-cost --version"""


def _run(config: InferenceConfig, terminal: Terminal) -> Any:
    from interventions.token_plans.sweep import run_inference_cost  # torch takes seconds, which --help must not

    return run_inference_cost(config, **terminal._asdict())


def _show(options: Show, terminal: Terminal) -> Any:
    from interventions.token_plans.sweep import finished_inference_cost

    return finished_inference_cost(options.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``inference-cost``."""
    subcommands = (Subcommand("run", InferenceConfig, _run), Subcommand("show", Show, _show))
    run_command("inference-cost", subcommands, arguments, about=ABOUT)


if __name__ == "__main__":
    main()
