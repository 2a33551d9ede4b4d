"""What the options of ``layerwise-finetune`` and its ``compare`` have in common."""

COMMAND = "layerwise-finetune"
MODEL, PLAN, DATA, HOW, RUN = "The model", "What trains", "The data", "How it trains", "The run"  # panels of --help


def parts_of(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list; none of `none`."""
    return () if text.strip() in ("", "none") else tuple(part.strip() for part in text.split(","))
