"""Both engines leave nothing behind, and refuse what cannot be run before any forward pass."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from interventions.engines.base_runs import Base
from interventions.engines.edits import OTHER, Cell, Cut, Edit, Hold, Write
from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from models.hooks import CaptureError
from models.inputs import prepare
from models.llava import Llava
from models.sites import Site
from tests.conftest import make_examples
from tests.interventions.engines.engine_runs import (
    ENGINES,
    close,
    last_columns,
    mask_for,
    pair,
    real,
    run,
)


def hooks(llava: Llava) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llava.model.modules())


@pytest.mark.parametrize("engine", ENGINES)
def test_no_hook_is_left_behind_after_an_exception(
    llava: Llava, engine: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    every = real(inputs)
    cell = Cell(
        (
            *(Write(Site("language_model", 1, n), every, OTHER) for n in ("resid_mid", "q", "k", "z", "mlp_out")),
            Write(Site("language_model", 0, "v"), every, torch.zeros(8)),
            Cut(1, every, every),
            Hold(2, every),
        )
    )
    expected = run(llava, base, [cell], engine)[0]
    before, during = hooks(llava), list[int]()

    def fail(*args: object, **kwargs: object) -> Tensor:
        during.append(hooks(llava))
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(llava.blocks[1].mlp, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            run(llava, base, [cell], engine)
    assert during[-1] > before
    assert hooks(llava) == before
    close(run(llava, base, [cell], engine)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_site_that_does_not_fire_is_named(llava: Llava, engine: EngineName, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, other = pair(llava)
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    cell = Cell((Write(Site("language_model", 1, "mlp_out"), real(inputs), torch.zeros(())),))
    monkeypatch.setattr(llava.blocks[1], "forward", lambda hidden_states, **kwargs: hidden_states)
    with pytest.raises(CaptureError, match=r"site 'blocks\.1\.hook_mlp_out' must fire"):
        run(llava, base, [cell], engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_run_is_refused_before_any_forward(
    llava: Llava, engine: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, other = pair(llava, 2)
    every, none = real(inputs), torch.zeros_like(real(inputs))
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs))
    alone = prepare_base(llava, inputs, readout=last_columns(inputs))
    shorter = prepare(llava, [replace(e, question="Is it?") for e in make_examples(2, n_pictures=(1, 2))])
    moved = prepare(llava, make_examples(2, n_pictures=(1, 2)), padding_side="left")
    fewer = prepare(llava, make_examples(2, n_pictures=(1,)))
    z, post = Site("language_model", 1, "z"), Site("language_model", 1, "resid_post")
    tower = Site("vision_tower", 0, "z")
    refused: list[tuple[Base, Edit, str]] = [
        (base, Write(post, none, OTHER), "mask at 'blocks.1.hook_resid_post' must contain at least one position"),
        (base, Write(post, every[:, 1:], OTHER), "must be boolean of shape"),
        (base, Write(post, torch.ones_like(every), OTHER), "must not contain padding"),
        (base, Write(Site("language_model", 1, "pattern"), every, OTHER), "must not be a pattern"),
        (base, Write(Site("language_model", 3, "z"), every, OTHER), r"layer must be in \[0, 3\)"),
        (base, Write(z, every, OTHER, (6,)), r"heads must be in \[0, 6\) and not empty"),
        (base, Write(Site("language_model", 1, "k"), every, OTHER, (2,)), r"heads must be in \[0, 2\)"),
        (base, Write(z, every, OTHER, ()), "not empty"),
        (base, Write(post, every, OTHER, (0,)), "Only q, k, v and z have heads"),
        (base, Write(z, every, torch.zeros(48)), r"value at 'blocks.1.attn.hook_z' must broadcast to \(2, \d+, 6, 8\)"),
        (alone, Write(post, every, OTHER), "other must be given"),
        (alone, Write(tower, mask_for(llava, inputs, tower), OTHER), "other must be given"),
        (base, Write(tower, every, OTHER), "must be boolean of shape"),
        (base, Cut(3, every, every), r"layer of a Cut must be in \[0, 3\)"),
        (base, Cut(1, every[:1], every[:1]), "mask of a Cut must be boolean"),
        (base, Cut(1, every, every, (6,)), r"heads must be in \[0, 6\)"),
        (base, Hold(-1, every), "layer of a Hold must be in"),
        (replace(base, other=shorter), Write(post, every, OTHER), "other must have the same position at column"),
        (replace(base, other=moved), Write(post, every, OTHER), "other must have the same position at column"),
        (replace(base, other=fewer), Write(tower, mask_for(llava, inputs, tower), OTHER), "as many pictures"),
    ]
    started: list[object] = []
    handles = [llava.model.register_forward_pre_hook(lambda m, a: started.append(m))]
    handles += [block.register_forward_pre_hook(lambda m, a: started.append(m)) for block in llava.blocks]
    fine = Cell((Write(post, every, torch.zeros(())),))
    for which, edit, text in refused:
        with pytest.raises(ValueError, match=text):
            run(llava, which, [fine, Cell((edit,))], engine)
    assert not started
    run(llava, base, [fine], engine)
    assert started
    for handle in handles:
        handle.remove()


def test_bad_options_and_readouts_are_refused(llava: Llava) -> None:
    inputs, other = pair(llava, 2)
    last = last_columns(inputs)
    base = prepare_base(llava, inputs, other, readout=last, engine="full")
    with pytest.raises(ValueError, match="engine must be 'full' for a base prepared for it"):
        run(llava, base, [Cell(())])
    assert len(run(llava, base, [Cell(())], "full")) == 1
    with pytest.raises(ValueError, match="engine must be one of incremental, full, got 'fast'"):
        inspect.unwrap(run_cells)(llava, base, [], lambda x: x, engine="fast")
    with pytest.raises(ValueError, match="engine must be one of incremental, full, got 'fast'"):
        inspect.unwrap(prepare_base)(llava, inputs, readout=last, engine="fast")
    with pytest.raises(ValueError, match="cells_at_once must be at least 1"):
        run_cells(llava, base, [], lambda x: x, engine="full", cells_at_once=0)
    for readout, text in [
        (last[:1], "one row for each of 2 examples"),
        (torch.full((2, 1), -1), "at least one position"),
        (last + 100, "readout must be in"),
        (torch.full((2, 1), inputs.n_positions - 1), "readout must be at real tokens"),
    ]:
        with pytest.raises(ValueError, match=text):
            prepare_base(llava, inputs, other, readout=readout)
    with pytest.raises(ValueError, match="other must have 2 examples, got 1"):
        prepare_base(llava, inputs, other.select([0]), readout=last)
