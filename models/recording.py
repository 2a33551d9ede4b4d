"""The hooks behind ``capture``: they take the selected values of a run as they pass, and end it behind the last one.

A ``Recorder`` serves one part of the stack (vision tower, projector, language model); recorders nest, since the parts
of one forward pass do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.adapter import Adapter
from models.sites import Site
from tasks.errors import UserError

Pool = Literal["none", "mean", "max", "box"]


class CaptureError(UserError):
    """A run whose activations cannot be used: a site did not fire, or values are not finite."""


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
    """Hooks on the sites of one part, taking the selected values as they pass."""

    def __init__(self, llava: Adapter, sites: Sequence[Site], selection: Selection, pool: Pool) -> None:
        """``sites`` of one part; ``selection`` speaks of that part's rows and tokens."""
        self._llava, self._sites, self._selection, self._pool = llava, sites, selection, pool
        self._values: dict[Site, Tensor] = {}
        self._finite: dict[Site, Tensor] = {}
        self._stop = False
        self._span = _common_span(selection)
        self._padded = not bool(selection.mask.all())

    def run(self, forward: Callable[[], object], *, stop: bool = True) -> None:
        """Runs ``forward`` under the hooks; with ``stop`` no further than the last wanted site."""
        self._stop = stop
        handles: list[RemovableHandle] = []
        try:
            for site in self._sites:
                handles += self._hook(site)
            forward()
        except _Stop:
            if not self._stop:  # an outer recorder's
                raise
        finally:
            for handle in handles:
                handle.remove()

    def finished(self, names: Sequence[str]) -> dict[Site, Tensor]:
        """The values by site, checked.

        Raises:
            CaptureError: If a site did not fire, or an example's values are not finite.
        """
        for site in self._sites:
            if site not in self._values:
                raise CaptureError(
                    f"site {str(site)!r} must fire in the forward pass of {self._llava.id}, got nothing. "
                    "The model's code does not call the module that the site stands at."
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

        def take(value: Tensor) -> None:
            self._take(site, value if tap.d_head is None else _heads(value, tap.d_head))

        if tap.side == "in":
            return [
                tap.module.register_forward_pre_hook(
                    lambda m, args, kwargs: take(_first(args, kwargs)), with_kwargs=True
                )
            ]
        return [tap.module.register_forward_hook(lambda m, args, output: take(_head_of(output)))]

    def _hook_pattern(self, site: Site, attention: nn.Module) -> list[RemovableHandle]:
        """The attention weights from queries and keys as they pass, by eager attention's arithmetic, for any kernel."""
        parts: dict[str, Tensor] = {}

        def keep(name: str) -> RemovableHandle:
            tap = self._llava.tap(Site(site.part, site.layer, name))
            width = tap.d_head
            assert width is not None
            return tap.module.register_forward_hook(
                lambda m, args, output: parts.__setitem__(name, _heads(output, width).transpose(1, 2))
            )

        def weigh(module: nn.Module, args: object, output: object) -> None:
            weights = attention_pattern(self._llava, site, parts.pop("q"), parts.pop("k"))
            self._take(site, weights.transpose(1, 2))

        return [keep("q"), keep("k"), attention.register_forward_hook(weigh)]

    def _take(self, site: Site, value: Tensor) -> None:
        """Selects, checks and pools one value; ends the run if it was the last."""
        row, token, mask, _ = self._selection
        whole = self._span is not None and value.shape[0] == row.shape[0]  # all rows of the run, none left out
        picked = value[:, self._span] if whole else value[row, token]
        inside = mask.reshape(*mask.shape, *[1] * (picked.dim() - 2))
        if self._pool == "none":
            # a copy even of a view: a few tokens must not keep the whole run alive
            kept = picked.masked_fill(~inside, 0) if self._padded else picked.clone()
            self._values[site] = kept
        elif self._pool == "max":
            self._values[site] = picked.amax(1)  # padded slots repeat a wanted position
        # One NaN or infinity makes a sum NaN or infinite: no pass over the values of its own.
        total = (picked.masked_fill(~inside, 0) if self._padded else picked).sum(1, dtype=torch.float32)
        self._finite[site] = torch.isfinite(total).flatten(1).all(1)
        if self._pool not in ("none", "max"):
            self._values[site] = (total / inside.sum(1)).to(value.dtype)
        if self._stop and len(self._values) == len(self._sites):
            raise _Stop


def _common_span(selection: Selection) -> slice | None:
    """The tokens, where every row of the run is selected in turn and gives the same consecutive ones."""
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
    """(a, b) -> (-b, a) by halves: what rotary embeddings multiply with the sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _heads(value: Tensor, d_head: int) -> Tensor:
    """``... (head d_head)`` -> ``... head d_head``."""
    return value.view(*value.shape[:-1], -1, d_head)


def _first(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """The hidden state that a module is called with, by position or by name."""
    value = args[0] if args else kwargs.get("hidden_states")
    assert isinstance(value, Tensor)
    return value


def _head_of(output: object) -> Tensor:
    """A module's output, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    assert isinstance(value, Tensor)
    return value
