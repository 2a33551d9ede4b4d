"""Interventions as one text without commas, as ``--model_args`` of lmms-eval needs it.

An intervention is ``OPERATION:WHERE:LAYERS``; several are joined by ``+``:

    knockout:image->last:8-15        the last position and all generated ones do not attend to the image
    skip:image:16-31                 image tokens skip these blocks
    ablate:attn_out@image:3          the output of attention at image tokens is zero
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from interventions.in_memory.context_managers import ablated, knocked_out, skipped
from interventions.plan.options import FLOW
from models.llava import Llava
from tasks.errors import UserError

Operation = Literal["knockout", "skip", "ablate"]


@dataclass(frozen=True)
class NamedIntervention:
    """One intervention of a text; see the module's docstring.

    Example:
        >>> parse_interventions("skip:image:16-31")[0].layers
        '16-31'
    """

    operation: Operation
    where: str
    layers: str

    @contextmanager
    def applied(self, llava: Llava) -> Iterator[None]:
        """Change every run of the model while the context is open."""
        if self.operation == "knockout":
            source, _, target = self.where.partition(FLOW)
            with knocked_out(llava, source=source, target=target, layers=self.layers):
                yield
        elif self.operation == "skip":
            with skipped(llava, layers=self.layers, tokens=self.where):
                yield
        else:
            site, _, tokens = self.where.partition("@")
            with ablated(llava, site, layers=self.layers, tokens=tokens, kind="zero"):
                yield


def parse_interventions(text: str) -> tuple[NamedIntervention, ...]:
    """The interventions of a text; none if it is empty.

    Raises:
        UserError: If the text has another form. Layers and groups are checked when the model runs.

    Example:
        >>> [one.operation for one in parse_interventions("knockout:image->last:0-3+ablate:mlp_out@all:2")]
        ['knockout', 'ablate']
    """
    found = []
    for part in text.split("+") if text.strip() else ():
        operation, first, rest = part.strip().partition(":")
        where, second, layers = rest.rpartition(":")
        if operation not in get_args(Operation) or not (first and second and where and layers):
            raise UserError(
                f"intervention must be OPERATION:WHERE:LAYERS with knockout, skip or ablate, got {part!r}. Write "
                "knockout:image->last:8-15."
            )
        mark = {"knockout": FLOW, "ablate": "@"}.get(operation, "")
        sides = where.split(mark) if mark else [where]
        if len(sides) != (2 if mark else 1) or not all(sides):
            form = {"knockout": "SOURCE->TARGET", "ablate": "SITE@TOKENS"}[operation]
            raise UserError(f"intervention {operation} must be {operation}:{form}:LAYERS, got {part!r}.")
        found.append(NamedIntervention(operation, where, layers))  # type: ignore[arg-type]
    return tuple(found)


@contextmanager
def intervening(llava: Llava, interventions: tuple[NamedIntervention, ...]) -> Iterator[None]:
    """Apply interventions while the context is open; at one site the first one acts first."""
    with ExitStack() as stack:
        for one in interventions:
            stack.enter_context(one.applied(llava))
        yield
