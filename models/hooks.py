"""Hooks that read or change values at sites; all are removed when their context ends.

``with recorded(llava, sites) as values:`` stores the values of a forward, and ``with edited(llava, {site: change}):``
changes them. A ``Recorder`` stores selected rows and tokens and stops the forward after the last site.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.adapter import Adapter, cache_in
from models.sites import Site
from tasks.errors import UserError

# From the value at a site (q, k, v, z with an axis for heads) to its replacement.
Change = Callable[[Tensor], Tensor]
Pool = Literal["none", "mean", "max", "box"]


class CaptureError(UserError):
    """The activations of a run cannot be used: a site did not fire, or values are not finite."""


@contextmanager
def recorded(llava: Adapter, sites: Iterable[Site]) -> Iterator[dict[Site, Tensor]]:
    """Yield the values of the forward pass inside the context, by site; q, k, v and z have an axis for the heads.

    Raises:
        UserError: If the model lacks a site or it is a pattern.
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
    """Change the values at sites in every forward pass inside the context.

    A change returns a new tensor and does not modify its argument. A change at ``resid_mid`` reaches both the MLP and
    the sum after it. Hooks that are already on the modules, such as those by which transformers collects hidden states,
    get the changed values.

    Raises:
        UserError: If the model lacks a site or it is a pattern.
        CaptureError: If a site did not fire.
    """
    fired: set[Site] = set()
    handles: list[RemovableHandle] = []
    try:
        # Each hook is placed before the existing ones, so the last site of a module is hooked first.
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
    """The columns of a batch that the current forward of the language model computes: ``start`` to ``stop``."""

    start: int = 0
    stop: int = 0


@contextmanager
def tracked_columns(llava: Adapter) -> Iterator[Columns]:
    """The columns of the current forward; with a cache, each step of generation computes only one new column."""
    columns = Columns()

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_in(kwargs)
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
    """The same output with another first element."""
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
    """Changes ``resid_mid``: the input of the MLP's norm, and the stream that the MLP's output is added to."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._stream: list[Tensor] = []
        self._written: list[Tensor] = []

    def hook(self, llava: Adapter, site: Site) -> list[RemovableHandle]:
        mlp, block = (llava.module_at(Site(site.part, site.layer, name)) for name in ("mlp_out", "resid_post"))
        return [
            llava.module_at(site).register_forward_pre_hook(self._before_norm, with_kwargs=True, prepend=True),
            mlp.register_forward_hook(self._after_mlp),  # after a change of mlp_out
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
    heads = rearrange(value, "... (head d_head) -> ... head d_head", d_head=d_head)
    return rearrange(change(heads), "... head d_head -> ... (head d_head)")


def _check_fired(llava: Adapter, wanted: Iterable[Site], fired: Iterable[Site]) -> None:
    seen = set(fired)
    for site in wanted:
        if site not in seen:
            raise CaptureError(
                f"site {str(site)!r} must fire in the forward pass of {llava.id}, got nothing. "
                "The model's code does not call the module of the site."
            )


class Selection(NamedTuple):
    """Which values to take from a run: selected row s, slot m is run row ``row[s, m]``, token ``token[s, m]``."""

    row: Int[Tensor, "select slot"]
    token: Int[Tensor, "select slot"]
    mask: Bool[Tensor, "select slot"]
    of_example: tuple[int, ...]  # examples that want the same values share a selection

    def mask_of_examples(self) -> Bool[Tensor, "example slot"]:
        """True where an example has a value in a slot."""
        return self.mask[torch.tensor(self.of_example, device=self.mask.device)]


class _Stop(Exception):  # noqa: N818
    pass


class Recorder:
    """Hooks on the sites of one part that store the selected values during a forward."""

    def __init__(self, llava: Adapter, sites: Sequence[Site], selection: Selection, pool: Pool) -> None:
        """``sites`` belong to one part; ``selection`` names rows and tokens of its run."""
        self._llava, self._sites, self._selection, self._pool = llava, sites, selection, pool
        self._values: dict[Site, Tensor] = {}
        self._finite: dict[Site, Tensor] = {}
        self._stop = False
        self._span = _common_span(selection)
        self._padded = not bool(selection.mask.all())

    def run(self, forward: Callable[[], object], *, stop: bool = True) -> None:
        """Run ``forward`` with the hooks; with ``stop``, end it after the last wanted site."""
        self._stop = stop
        handles: list[RemovableHandle] = []
        try:
            for site in self._sites:
                handles += self._hook(site)
            forward()
        except _Stop:
            if not self._stop:  # raised by an outer recorder
                raise
        finally:
            for handle in handles:
                handle.remove()

    def finished(self, names: Sequence[str]) -> dict[Site, Tensor]:
        """The values by site; raise ``CaptureError`` if a site did not fire, or an example's values are not finite."""
        for site in self._sites:
            if site not in self._values:
                raise CaptureError(
                    f"site {str(site)!r} must fire in the forward pass of {self._llava.id}, got nothing. "
                    "The model's code does not call the module of the site."
                )
        if self._sites:
            finite = torch.stack([self._finite[site] for site in self._sites])
            if not bool(finite.all()):
                which, row = (~finite).nonzero()[0].tolist()
                example = self._selection.of_example.index(row)
                raise CaptureError(
                    f"activations must be finite, got NaN or infinity at site {str(self._sites[which])!r} in example "
                    f"{names[example]!r}. Check its picture, or run in float32 or bfloat16."
                )
        return self._values

    def _hook(self, site: Site) -> list[RemovableHandle]:
        tap = self._llava.tap(site)
        if tap.side == "pattern":
            return self._hook_pattern(site, tap.module)

        def take(value: Tensor) -> Tensor:
            self._take(site, value)
            return value

        return [_hook(self._llava, site, take, prepend=False)]

    def _hook_pattern(self, site: Site, attention: nn.Module) -> list[RemovableHandle]:
        """Hooks that compute attention weights from queries and keys as eager attention does, for any kernel."""
        parts: dict[str, Tensor] = {}

        def keep(name: str) -> RemovableHandle:
            tap = self._llava.tap(Site(site.part, site.layer, name))
            assert tap.d_head is not None
            by_head = partial(rearrange, pattern="batch pos (head d) -> batch head pos d", d=tap.d_head)
            return tap.module.register_forward_hook(lambda m, args, output: parts.__setitem__(name, by_head(output)))

        def weigh(module: nn.Module, args: object, output: object) -> None:
            weights = attention_pattern(self._llava, site, parts.pop("q"), parts.pop("k"))
            self._take(site, weights.transpose(1, 2))

        return [keep("q"), keep("k"), attention.register_forward_hook(weigh)]

    def _take(self, site: Site, value: Tensor) -> None:
        """Select, check and pool one value; end the run if it was the last."""
        row, token, mask, _ = self._selection
        whole = self._span is not None and value.shape[0] == row.shape[0]  # all rows of the run
        picked = value[:, self._span] if whole else value[row, token]
        inside = mask.reshape(*mask.shape, *[1] * (picked.dim() - 2))
        if self._pool == "none":
            # a copy even of a view, so that a few tokens do not keep the full run in memory
            kept = picked.masked_fill(~inside, 0) if self._padded else picked.clone()
            self._values[site] = kept
        elif self._pool == "max":
            self._values[site] = picked.amax(1)  # padded slots repeat a wanted position
        # One NaN or infinity makes the sum NaN or infinite, so one pass is enough.
        total = (picked.masked_fill(~inside, 0) if self._padded else picked).sum(1, dtype=torch.float32)
        self._finite[site] = torch.isfinite(total).flatten(1).all(1)
        if self._pool not in ("none", "max"):
            self._values[site] = (total / inside.sum(1)).to(value.dtype)
        if self._stop and len(self._values) == len(self._sites):
            raise _Stop


def _common_span(selection: Selection) -> slice | None:
    """The span of tokens if every row of the run is selected, in order, with the same consecutive tokens; else None."""
    row, token, _, _ = selection
    n, length = token.shape
    first = int(token[0, 0])
    every = torch.equal(row, torch.arange(n, device=row.device)[:, None].expand(n, length))
    consecutive = torch.equal(token, torch.arange(first, first + length, device=token.device).expand(n, length))
    return slice(first, first + length) if every and consecutive else None


def attention_pattern(llava: Adapter, site: Site, q: Tensor, k: Tensor) -> Tensor:
    """Attention weights, ``batch head query key``, from queries and keys before rotation, ``batch head pos d_head``.

    Rows must start at position 0. The language model rotates both, shares keys among groups of heads and is causal; the
    vision tower does none of this. The softmax is taken in float32, as transformers' eager attention does.
    """
    language = site.part == "language_model"
    if language:
        position_ids = torch.arange(q.shape[-2], device=q.device)[None]
        cos, sin = (part[:, None] for part in llava.rotary(q, position_ids))
        q, k = (part * cos + _turned(part) * sin for part in (q, k))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-1, -2) * llava.attention_scale(site)
    if language:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype)


def _turned(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) by halves; rotary embeddings multiply this with the sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
