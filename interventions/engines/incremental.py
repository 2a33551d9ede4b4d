"""The incremental engine: it computes only what a cell can change, for many cells in one pass over the layers.

Each cell of a chunk starts at the first layer that it changes. In a layer, only positions that equal neither run
(``needed_positions``) are computed: the queries of all cells are packed into one row and pass one native decoder layer
together. They attend to keys of the base run and the other run, which all cells share, and to their own. ``README.md``
has an example.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.engines.base_runs import Base, Prefix, Read, at_slots
from interventions.engines.chunks import Chunk, plan_chunks
from interventions.engines.edits import Cell
from interventions.engines.needed_positions import Inside, LayerEdits, Step, mark, start, step
from interventions.engines.packing import Pack, pack
from interventions.engines.write_values import value_rows
from models.cached_blocks import KeysValues, Run, inference, run_block, run_keys_values
from models.hooks import Change, edited, recorded
from models.llava import Llava
from models.sites import Site

# Largest number of logits in memory at a time: 256 MB.
_MOST_LOGITS = 2**26


def run_incremental(
    llava: Llava, base: Base, cells: Sequence[Cell], read: Read, cells_at_once: int | None
) -> list[Tensor]:
    """The result of ``read`` on the logits of each cell; see ``engine.run_cells``."""
    results: dict[int, Tensor] = {}
    prefix = base.prefix
    assert prefix is not None  # checked
    for chunk in plan_chunks(llava, prefix, cells, cells_at_once):
        with inference(llava):
            computed = _ChunkRun(llava, prefix, chunk)
            computed.run()
        n_slots = base.readout.numel() * base.logits.shape[-1]
        at_once = max(1, _MOST_LOGITS // max(1, n_slots))
        for first in range(0, len(chunk.cells), at_once):
            group = range(first, min(first + at_once, len(chunk.cells)))
            with inference(llava):
                found = computed.logits(base, group)
            for cell, logits in zip(group, found, strict=True):
                # Outside inference mode, so that ``read`` gets an ordinary tensor.
                results[chunk.cells[cell]] = read(at_slots(base.readout, logits))
    return [results[number] for number in range(len(cells))]


class _Flat(NamedTuple):
    """Flat indices of positions of cells."""

    example: Int[Tensor, " n"]
    cell: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]


class _OtherValues(NamedTuple):
    """The other run's values at a site: rows, and the row of each position."""

    rows: Tensor
    row_of: Int[Tensor, "example pos"]


class _ChunkRun:
    """The run of one chunk through the layers."""

    def __init__(self, llava: Llava, prefix: Prefix, chunk: Chunk) -> None:
        self._llava, self._prefix, self._chunk = llava, prefix, chunk
        self._status = start(chunk.first_layers, prefix.facts)
        # The residual stream of positions that equal neither run, and the row of each position.
        self._own: Tensor = prefix.run.resid[0].new_zeros(0, llava.d_model)
        self._row_of = torch.zeros(self._status.base.shape, dtype=torch.int64, device=self._own.device)

    def run(self) -> None:
        """Run all cells up to the output of the last block."""
        llava, chunk = self._llava, self._chunk
        computed: list[tuple[_Flat, Tensor]] = []
        for layer in range(chunk.first_layers[0], llava.n_layers + 1):
            edits = chunk.layers[layer]
            self._enter(layer, edits, computed)
            if layer == llava.n_layers:
                break
            n = bisect_right(chunk.first_layers, layer)
            following, last = chunk.layers[layer + 1], layer == llava.n_layers - 1
            asked = step(self._status.first(n), edits, following, self._prefix.facts, last=last)
            computed = self._block(layer, edits, asked)
            self._status.base[:, :n] = asked.after.base
            self._status.other[:, :n] = asked.after.other

    def _enter(self, layer: int, edits: LayerEdits, computed: list[tuple[_Flat, Tensor]]) -> None:
        """Store the output of the block below, and apply writes at the input of ``layer``."""
        where = [
            None if edit.rows is None else edit.mask.nonzero(as_tuple=True)  # the other run's rows are not stored
            for edit in edits.between
        ]
        n_rows = sum(len(rows) for _, rows in computed) + sum(len(w[0]) for w in where if w is not None)
        self._own = self._prefix.run.resid[layer].new_zeros(n_rows, self._llava.d_model)
        self._row_of.zero_()
        stored = 0
        for flat, rows in computed:
            stored = self._store(stored, flat, rows)
        for edit, place in zip(edits.between, where, strict=True):
            if place is not None:
                assert edit.rows is not None
                example, pos = place
                flat = _Flat(example, torch.full_like(example, edit.cell), pos)
                rows = edit.rows(example, pos).to(self._own.device, self._own.dtype)
                stored = self._store(stored, flat, self._resid(layer, flat) + rows if edit.add else rows)
            mark(self._status, edit, self._prefix.facts)

    def _store(self, stored: int, flat: _Flat, rows: Tensor) -> int:
        """Store the residual stream of some positions after the first ``stored`` rows."""
        end = stored + len(rows)
        self._own[stored:end] = rows
        self._row_of[flat] = torch.arange(stored, end, device=self._own.device)
        return end

    def _resid(self, layer: int, at: _Flat) -> Float[Tensor, "n d_model"]:
        """The residual stream at the input of ``layer``, from the run that a position equals, or its own."""
        prefix = self._prefix
        rows = prefix.run.resid[layer][at.example, at.pos]
        base, other = self._status.base[at], self._status.other[at]
        if prefix.other is not None and bool((theirs := other & ~base).any()):
            rows[theirs] = prefix.other.resid[layer][at.example[theirs], at.pos[theirs]]
        if bool((own := ~(base | other)).any()):
            rows[own] = self._own[self._row_of[_Flat(*(part[own] for part in at))]]
        return rows

    def _block(self, layer: int, edits: LayerEdits, asked: Step) -> list[tuple[_Flat, Tensor]]:
        """The residual stream after a block at positions that equal neither run."""
        found: list[tuple[_Flat, Tensor]] = []
        if bool(asked.held.any()):
            held = _Flat(*asked.held.nonzero(as_tuple=True))
            found.append((held, self._resid(layer, held)))
        queries, servers = pack(asked.compute), pack(asked.serve)
        if queries is None:
            return found
        others = self._other_values(layer, edits, asked)
        served = None if servers is None else self._serve(layer, edits, servers, others)
        resid, position_ids = self._packed(layer, queries)
        earlier, allowed = self._attention(layer, edits, asked, queries, servers, served)
        with edited(self._llava, _changes(edits.inside, queries, others, None)):
            output = run_block(self._llava, layer, resid, position_ids, earlier, allowed)
        found.append((_Flat(queries.example, queries.cell, queries.pos), output[queries.example, queries.slot]))
        return found

    def _serve(self, layer: int, edits: LayerEdits, servers: Pack, others: dict[Site, _OtherValues]) -> KeysValues:
        """Keys and values of positions whose output is not needed."""
        resid, position_ids = self._packed(layer, servers)
        with edited(self._llava, _changes(edits.inside, servers, others, ("k", "v"))):
            return run_keys_values(self._llava, layer, resid, position_ids)

    def _packed(self, layer: int, packed: Pack) -> tuple[Tensor, Tensor]:
        """The residual stream and the position ids of packed positions."""
        resid = packed.spread(self._resid(layer, _Flat(packed.example, packed.cell, packed.pos)), 0)
        return resid, packed.spread(self._prefix.position_ids[packed.example, packed.pos], 0)

    def _attention(
        self, layer: int, edits: LayerEdits, asked: Step, queries: Pack, servers: Pack | None, served: KeysValues | None
    ) -> tuple[list[KeysValues], Bool[Tensor, "example head query key"]]:
        """Keys and values that the queries do not compute themselves, and the mask of queries and keys."""
        prefix, n = self._prefix, asked.own.shape[1]
        facts = prefix.facts
        n_examples = len(facts.relevant)
        outside = facts.relevant.shape[1]  # the column of an empty slot, after all others
        row = torch.arange(n_examples, device=facts.relevant.device)[:, None]
        query_cell, query_pos = queries.spread(queries.cell, 0), queries.spread(queries.pos, -1)
        earlier: list[KeysValues] = []
        allowed: list[Tensor] = []
        columns: list[Tensor] = []
        base, other = self._status.first(n)
        shared = base & ~asked.own & facts.relevant[:, None]
        runs: list[tuple[Run | None, Tensor]] = [
            (prefix.run, shared),
            (prefix.other, other & ~base & ~asked.own & facts.relevant[:, None]),
        ]
        newest = int(queries.pos.max())
        active = torch.zeros(n_examples, n, 1, dtype=torch.bool, device=base.device)
        active[queries.example, queries.cell] = True
        for run, source in runs:
            seen = (source & active).flatten(0, 1).any(0)[: newest + 1].nonzero().flatten()
            if run is not None and len(seen):
                earlier.append(run.cached[layer].at(seen))
                allowed.append(source[:, :, seen][row, query_cell] & (seen <= query_pos[..., None]))
                columns.append(seen.expand(n_examples, -1))
        for packed, keys in ((servers, served), (queries, None)):
            if packed is None:
                continue
            if keys is not None:
                earlier.append(keys)
            key_pos, key_cell = packed.spread(packed.pos, outside), packed.spread(packed.cell, 0)
            is_own = packed.spread(asked.own[packed.example, packed.cell, packed.pos], False)
            sees = (key_cell[:, None] == query_cell[..., None]) & (key_pos[:, None] <= query_pos[..., None])
            allowed.append(sees & is_own[:, None])
            columns.append(key_pos)
        # An empty slot attends to itself, because a softmax needs at least one key.
        empty = query_pos < 0
        allowed[-1] |= torch.diag_embed(empty)
        together = torch.cat(allowed, -1)[:, None]
        return earlier, self._cut(together, torch.cat(columns, -1), edits, queries)

    def _cut(
        self, allowed: Tensor, key_pos: Tensor, edits: LayerEdits, queries: Pack
    ) -> Bool[Tensor, "example head query key"]:
        """The mask without the edges that the cells cut."""
        if any(cut.heads is not None for _, cut in edits.cuts):
            allowed = allowed.repeat(1, self._llava.n_heads, 1, 1)
        last_column = self._prefix.facts.relevant.shape[1] - 1
        for cell, cut in edits.cuts:
            chosen = ((queries.cell == cell) & cut.queries[queries.example, queries.pos]).nonzero().flatten()
            if not len(chosen):
                continue
            example, slot, pos = queries.example[chosen], queries.slot[chosen], queries.pos[chosen]
            keys = key_pos[example]
            left = ~cut.keys[example[:, None], keys.clamp(max=last_column)] | (keys == pos[:, None])
            if cut.heads is None:
                allowed[example, :, slot] &= left[:, None]
            else:
                heads = torch.tensor(cut.heads, device=allowed.device)
                allowed[example[:, None], heads, slot[:, None]] &= left[:, None]
        return allowed

    def _other_values(self, layer: int, edits: LayerEdits, asked: Step) -> dict[Site, _OtherValues]:
        """The other run's values inside a block, recomputed at the positions where cells write them."""
        llava, prefix, facts = self._llava, self._prefix, self._prefix.facts
        taken: dict[Site, Tensor] = {}
        for edit in edits.inside:
            if isinstance(edit.write.value, str):
                used = asked.compute[:, edit.cell] | asked.serve[:, edit.cell]
                where = taken.setdefault(edit.write.site, torch.zeros_like(facts.relevant))
                where |= edit.mask & used
        taken = {site: where for site, where in taken.items() if bool(where.any())}
        if not taken:
            return {}
        other, real, position_ids = prefix.other, prefix.other_real, prefix.other_position_ids
        assert other is not None  # checked
        assert real is not None
        assert position_ids is not None
        anywhere = torch.stack(list(taken.values())).any(0)
        packed = pack(anywhere[:, None])
        assert packed is not None
        resid = packed.spread(other.resid[layer][packed.example, packed.pos], 0)
        ids = packed.spread(position_ids[packed.example, packed.pos], 0)
        with recorded(llava, taken) as values:
            if all(site.name in ("q", "k", "v") for site in taken):
                run_keys_values(llava, layer, resid, ids)
            else:
                query_pos = packed.spread(packed.pos, -1)
                earlier = torch.arange(real.shape[1], device=real.device) <= query_pos[..., None]
                own = torch.diag_embed(query_pos < 0)  # the cache already holds the queries' own keys
                allowed = torch.cat([earlier & real[:, None], own], -1)[:, None]
                run_block(llava, layer, resid, ids, [other.cached[layer]], allowed)
        row_of = torch.zeros(real.shape, dtype=torch.int64, device=real.device)
        row_of[packed.example, packed.pos] = torch.arange(len(packed.pos), device=real.device)
        return {site: _OtherValues(value[packed.example, packed.slot], row_of) for site, value in values.items()}

    def logits(self, base: Base, group: range) -> list[Float[Tensor, "used vocab"]]:
        """The logits of some cells at the used slots of the readout, in order."""
        llava, n_layers = self._llava, self._llava.n_layers
        example, slot = (base.readout >= 0).nonzero(as_tuple=True)
        pos = base.readout[example, slot]
        unchanged = base.logits[example, slot]
        at = _Flat(
            example.repeat(len(group)),
            torch.arange(group.start, group.stop, device=pos.device).repeat_interleave(len(pos)),
            pos.repeat(len(group)),
        )
        changed = ~self._status.base[at]
        for edit in self._chunk.final:
            changed |= (at.cell == edit.cell) & edit.mask[at.example, at.pos]
        if not bool(changed.any()):
            return [unchanged] * len(group)
        rows = _Flat(*(part[changed] for part in at))
        with edited(llava, self._final_changes(rows)):
            computed = llava.unembed(self._resid(n_layers, rows)[None])[0].float()
        logits = unchanged.repeat(len(group), 1)
        logits[changed] = computed
        return list(logits.split(len(pos)))

    def _final_changes(self, rows: _Flat) -> dict[Site, Change]:
        """The writes at the output of the final norm, for the rows that are read."""
        if not self._chunk.final:
            return {}
        site, other = self._chunk.final[0].write.site, self._prefix.other
        norm = self._llava.module_at(site)
        # Computed before the hook is placed, because the hook would change these too.
        theirs = None if other is None else norm(other.resid[-1][rows.example, rows.pos])
        return {site: partial(_write_final, self._chunk.final, rows, theirs)}


def _changes(
    inside: Sequence[Inside], packed: Pack, others: dict[Site, _OtherValues], names: tuple[str, ...] | None
) -> dict[Site, Change]:
    """The writes inside a block, at packed positions, by site."""
    found: dict[Site, list[tuple[Inside, Tensor]]] = {}
    for edit in inside:
        if names is None or edit.write.site.name in names:
            chosen = ((packed.cell == edit.cell) & edit.mask[packed.example, packed.pos]).nonzero().flatten()
            if len(chosen):
                found.setdefault(edit.write.site, []).append((edit, chosen))

    return {site: partial(_write_packed, edits, packed, others.get(site)) for site, edits in found.items()}


def _write_packed(
    edits: Sequence[tuple[Inside, Tensor]], packed: Pack, other: _OtherValues | None, current: Tensor
) -> Tensor:
    """The activation at a site, with each edit applied at its chosen packed positions."""
    current = current.clone()
    for edit, chosen in edits:
        example, slot, pos = packed.example[chosen], packed.slot[chosen], packed.pos[chosen]
        if isinstance(edit.write.value, str):
            assert other is not None
            new = other.rows[other.row_of[example, pos]]
        else:
            new = value_rows(edit.write.value, current.shape[2:], example, pos).to(current.dtype)
        if edit.write.heads is None:
            current[example, slot] = current[example, slot] + new if edit.write.add else new
        else:
            heads = torch.tensor(edit.write.heads, device=current.device)
            at, new = (example[:, None], slot[:, None], heads), new[:, heads]
            current[at] = current[at] + new if edit.write.add else new
    return current


def _write_final(edits: Sequence[Inside], rows: _Flat, theirs: Tensor | None, current: Tensor) -> Tensor:
    """The output of the final norm for some rows, ``1 n d_model``, under edits."""
    current = current.clone()
    for edit in edits:
        chosen = (rows.cell == edit.cell) & edit.mask[rows.example, rows.pos]
        if isinstance(edit.write.value, str):
            assert theirs is not None  # checked
            new = theirs[chosen]
        else:
            new = value_rows(edit.write.value, current.shape[2:], rows.example[chosen], rows.pos[chosen])
        new = new.to(current.dtype)
        current[0, chosen] = current[0, chosen] + new if edit.write.add else new
    return current
