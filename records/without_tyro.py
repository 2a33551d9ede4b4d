"""Stand-ins for tyro's marks on option types: option classes can be imported on a machine without tyro.

Only ``records.command`` makes a command line from the marks, and it needs tyro itself.
"""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class conf:  # noqa: N801
    """The marks of ``tyro.conf``, each a distinct object."""

    Fixed: Any = object()
    Suppress: Any = object()
    DisallowNone: Any = object()
    UseAppendAction: Any = object()
    FlagCreatePairsOff: Any = object()

    class arg:  # noqa: N801
        """The mark ``tyro.conf.arg``: the name and help text of an option."""

        def __init__(self, **facts: Any) -> None:
            self.name: str | None = facts.get("name")


class constructors:  # noqa: N801
    """The parts of ``tyro.constructors`` that option types use."""

    class PrimitiveConstructorSpec(Generic[T]):
        """How an option is written as text."""

        def __init__(self, **facts: Any) -> None:
            self.facts = facts
