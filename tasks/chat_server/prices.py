"""What requests cost: a table of prices, and a limit that is checked before a request is sent."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tasks.chat_server.request import ChatRequest
from tasks.errors import UserError, one_line, shown
from tasks.files import read_file
from tasks.readers.parse import decode_text, parse_yaml


class CostLimitError(UserError):
    """The next request could exceed the limit of costs."""


class Price(NamedTuple):
    """Dollars per million tokens of prompts and of replies.

    Example:
        >>> Price(2.5, 10.0).cost(prompt_tokens=1_000_000, completion_tokens=100_000)
        3.5
    """

    prompt: int | float = 0.0
    completion: int | float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6

    def most(self, request: ChatRequest) -> float:
        """An upper bound of the dollars of one attempt."""
        return self.cost(request.most_prompt_tokens, request.max_tokens)


def read_price(path: Path, model: str, prefix: str = "") -> Price:
    """The price of ``model`` in a YAML or JSON table ``{model: {prompt: dollars, completion: dollars}}``.

    Raises:
        UserError: If the file cannot be read or has no such row.

    Example:
        >>> _ = Path("prices.yaml").write_text("some-model: {prompt: 2.5, completion: 10}")
        >>> read_price(Path("prices.yaml"), "some-model")
        Price(prompt=2.5, completion=10.0)
    """
    try:
        table = parse_yaml(decode_text(read_file(path)))
    except (OSError, ValueError) as error:
        said = one_line(error)
        raise UserError(f"{prefix}prices must be a readable YAML file, got {str(path)!r} ({said}).") from error
    if not isinstance(table, dict) or model not in table:
        known = ", ".join(map(str, table)) if isinstance(table, dict) else "no rows"
        raise UserError(f"{prefix}prices must have a row for {model!r}, got {known} in {str(path)!r}. Add the model.")
    row = table[model]
    values: list[Any] = [row.get(name) for name in ("prompt", "completion")] if isinstance(row, dict) else []
    if len(values) != 2 or len(row) != 2 or not all(map(_is_price, values)):
        raise UserError(
            f"{prefix}prices of {model!r} must be 'prompt' and 'completion' in dollars per million tokens, got "
            f"{shown(row)}."
        )
    return Price(float(values[0]), float(values[1]))


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


class Budget:
    """Dollars spent and set aside. Threads share it.

    Args:
        limit: Dollars; None for no limit.
        spent: Dollars of earlier runs that count.
        prefix: What the names of options start with in errors.

    Example:
        >>> budget = Budget(1.0, spent=0.25)
        >>> with budget.set_aside(0.5):
        ...     budget.add(0.125)
        >>> budget.spent
        0.375
    """

    def __init__(self, limit: int | float | None = None, spent: int | float = 0.0, prefix: str = "") -> None:
        self.limit, self.spent, self._prefix = limit, float(spent), prefix
        self._held: list[float] = []
        self._changed = threading.Condition()

    @contextmanager
    def set_aside(self, most: float) -> Iterator[None]:
        """Hold ``most`` dollars while a request runs. If they do not fit now, wait for the requests that run.

        Raises:
            CostLimitError: If they do not fit although no request runs.
        """
        with self._changed:
            while self.limit is not None and self.spent + sum(self._held) + most > self.limit:
                if not self._held:
                    raise CostLimitError(
                        f"{self._prefix}max-cost must leave room for the next request (up to ${most:.4f}), got "
                        f"${self.spent:.4f} of ${self.limit:.4f} spent. Raise it and start the same command again; "
                        "replies are kept."
                    )
                self._changed.wait()
            self._held.append(most)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(most)
                self._changed.notify_all()

    def add(self, cost: float) -> None:
        """Count dollars as spent."""
        with self._changed:
            self.spent += cost
