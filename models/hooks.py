"""Hooks that read or change a run at sites, undone when the block of code ends.

``with recorded(llava, sites) as values:`` fills ``values`` as the forward inside passes the sites, and
``with edited(llava, {site: change}):`` replaces what stands there by ``change`` of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from models.adapter import Adapter
from models.recording import CaptureError
from models.sites import Site
from tasks.errors import UserError

# Takes the value at a site (q, k, v, z with an axis for the heads) and returns what shall stand there.
Change = Callable[[Tensor], Tensor]


@contextmanager
def recorded(llava: Adapter, sites: Iterable[Site]) -> Iterator[dict[Site, Tensor]]:
    """The values of the forward that runs inside, by site; q, k, v and z with an axis for the heads.

    Args:
        llava: The model.
        sites: Any but patterns.

    Raises:
        ValueError: If the model lacks a site or it is a pattern.
        CaptureError: If a site did not fire.
    """
    values: dict[Site, Tensor] = {}
    wanted = list(sites)
    handles: list[RemovableHandle] = []
    try:
        for site in wanted:
            handles.append(_hook(llava, site, partial(_keep, values, site), prepend=False))
        yield values
    finally:
        for handle in handles:
            handle.remove()
    _check_fired(llava, wanted, values)


@contextmanager
def edited(llava: Adapter, changes: Mapping[Site, Change]) -> Iterator[None]:
    """Changes what stands at the sites in every forward that runs inside.

    A change at ``resid_mid`` reaches both readers of the stream there, the MLP and the sum behind it. Hooks that are
    already on the modules, those by which transformers collects hidden states among them, see the changed values.

    Args:
        llava: The model.
        changes: By site, any but patterns; a change returns a new tensor and leaves the one it gets alone.

    Raises:
        ValueError: If the model lacks a site or it is a pattern.
        CaptureError: If a site did not fire.
    """
    fired: set[Site] = set()
    handles: list[RemovableHandle] = []
    try:
        # Each hook is put before those that are there, so the last site of a module comes first.
        for site in sorted(changes, reverse=True):
            change = partial(_noting, fired, site, changes[site])
            if site.name == "resid_mid":
                handles += _Middle(change).hook(llava, site)
            else:
                handles.append(_hook(llava, site, change, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
    _check_fired(llava, changes, fired)


class Columns:
    """The columns of a batch that the language model computes in the present forward: ``start`` to ``stop``."""

    start: int = 0
    stop: int = 0


@contextmanager
def tracked_columns(llava: Adapter) -> Iterator[Columns]:
    """The columns of the forward that runs: with a cache, each step of generation computes only a new one."""
    columns = Columns()

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        columns.start = 0 if cache is None else int(cache.get_seq_length())
        columns.stop = columns.start + kwargs["inputs_embeds"].shape[1]

    handle = llava.language_model.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    try:
        yield columns
    finally:
        handle.remove()


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden state that a module is called with, by position or by name."""
    value = args[0] if args else kwargs["hidden_states"]
    assert isinstance(value, Tensor)
    return value


def with_first_argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another hidden state."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    return args, {**kwargs, "hidden_states": value}


def first_output(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, Tensor)
    return value


def with_first_output(output: Any, value: Tensor) -> Any:
    """The same output with another first value."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _hook(llava: Adapter, site: Site, change: Change, *, prepend: bool) -> RemovableHandle:
    tap = llava.tap(site)
    if tap.side == "pattern":
        raise UserError(f"site must not be a pattern, got {str(site)!r}. Attention edges are removed by masks.")
    by_head = change if tap.d_head is None else partial(_by_head, tap.d_head, change)
    if tap.side == "in":
        return tap.module.register_forward_pre_hook(
            lambda module, args, kwargs: with_first_argument(args, kwargs, by_head(first_argument(args, kwargs))),
            with_kwargs=True,
            prepend=prepend,
        )
    return tap.module.register_forward_hook(
        lambda module, args, output: with_first_output(output, by_head(first_output(output))), prepend=prepend
    )


class _Middle:
    """The MLP's norm reads the changed stream, and the block's output is the changed stream plus what the MLP wrote."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._stream: list[Tensor] = []
        self._written: list[Tensor] = []

    def hook(self, llava: Adapter, site: Site) -> list[RemovableHandle]:
        mlp, block = (llava.module_at(Site(site.part, site.layer, name)) for name in ("mlp_out", "resid_post"))
        return [
            llava.module_at(site).register_forward_pre_hook(self._before_norm, with_kwargs=True, prepend=True),
            mlp.register_forward_hook(self._after_mlp),  # behind a change of mlp_out
            block.register_forward_hook(self._after_block, prepend=True),
        ]

    def _before_norm(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._stream = [self._change(first_argument(args, kwargs))]
        return with_first_argument(args, kwargs, self._stream[0])

    def _after_mlp(self, module: Any, args: Any, output: Any) -> None:
        self._written = [first_output(output)]

    def _after_block(self, module: Any, args: Any, output: Any) -> Any:
        return with_first_output(output, self._stream.pop() + self._written.pop())


def _keep(values: dict[Site, Tensor], site: Site, value: Tensor) -> Tensor:
    values[site] = value
    return value


def _noting(fired: set[Site], site: Site, change: Change, value: Tensor) -> Tensor:
    fired.add(site)
    return change(value)


def _by_head(d_head: int, change: Change, value: Tensor) -> Tensor:
    return change(value.unflatten(-1, (-1, d_head))).flatten(-2)


def _check_fired(llava: Adapter, wanted: Iterable[Site], fired: Iterable[Site]) -> None:
    seen = set(fired)
    for site in wanted:
        if site not in seen:
            raise CaptureError(
                f"site {str(site)!r} must fire in the forward pass of {llava.id}, got nothing. "
                "The model's code does not call the module that the site stands at."
            )
