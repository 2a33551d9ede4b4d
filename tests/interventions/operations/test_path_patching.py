"""Path patching: receivers hear exactly what a run says in which everything between is frozen."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.edits import Write
from interventions.engines.engine import prepare_base, run_cells
from interventions.operations.path_patching import Head, ReceiverInput, path_cells
from interventions.plan.groups import group_mask
from models.hooks import edited, recorded
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.sites import Site
from tasks.example import Example
from tests.conftest import make_examples, noise_picture


def other_pictures(examples: Sequence[Example]) -> list[Example]:
    return [replace(e, pictures=(noise_picture(800 + i),)) for i, e in enumerate(examples)]


def values_of(llava: Llava, inputs: Inputs, sites: Sequence[Site]) -> dict[Site, Tensor]:
    with torch.no_grad(), recorded(llava, sites) as values:
        llava.model(**inputs.model_kwargs())
    return values


def received_by_hand(
    llava: Llava,
    inputs: Inputs,
    other: Inputs,
    sender: Head,
    receiver: Head,
    receiver_input: ReceiverInput,
    sender_mask: Tensor,
) -> Tensor:
    """The receiver_input of the receiver's layer in a forward with the sender replaced and all between held at base."""
    spoken = Site("language_model", sender.layer, "z")
    between = [
        Site("language_model", layer, name)
        for layer in range(sender.layer, receiver.layer)
        for name in ("attn_out", "mlp_out")
        if (layer, name) != (sender.layer, "attn_out")
    ]
    base = values_of(llava, inputs, [spoken, *between])
    theirs = values_of(llava, other, [spoken])[spoken]

    def replace_sender(value: Tensor) -> Tensor:
        value = value.clone()
        value[sender_mask, sender.head] = theirs[sender_mask, sender.head]
        return value

    changes: dict[Site, Any] = {site: lambda value, site=site: base[site] for site in between}
    with ExitStack() as stack:
        stack.enter_context(edited(llava, {spoken: replace_sender, **changes}))
        return values_of(llava, inputs, [Site("language_model", receiver.layer, receiver_input)]).popitem()[1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("receiver_input", ["q", "k", "v"])
@pytest.mark.parametrize(("sender", "receiver"), [(Head(0, 3), Head(1, 1)), (Head(0, 5), Head(2, 0))])
def test_receivers_hear_what_a_run_with_everything_between_frozen_says(
    llava: Llava, sender: Head, receiver: Head, receiver_input: ReceiverInput, side: str
) -> None:
    examples = make_examples(3)
    inputs, other = (
        prepare(llava, batch, padding_side=side)  # type: ignore[arg-type]
        for batch in (examples, other_pictures(examples))
    )
    (cell,) = path_cells(
        llava, inputs, other, [sender], [receiver], receiver_input, tokens="all", sender_tokens="image"
    )
    (write,) = cell.edits
    assert isinstance(write, Write) and isinstance(write.value, Tensor)
    sender_mask, receiver_mask = (group_mask(inputs, text, llava) for text in ("image", "all"))
    expected = received_by_hand(llava, inputs, other, sender, receiver, receiver_input, sender_mask)
    before = values_of(llava, inputs, [write.site])[write.site]
    assert float((expected - before)[receiver_mask].abs().max()) > 1e-4
    assert_close(write.value[receiver_mask], expected[receiver_mask], rtol=0, atol=1e-5)  # values are of order 0.1 to 1
    assert write.heads == (receiver.head,) and torch.equal(write.mask, receiver_mask)


def test_the_answer_follows_the_receivers_and_a_run_into_itself_changes_nothing(llava: Llava) -> None:
    examples = make_examples(3)
    inputs, other = prepare(llava, examples), prepare(llava, other_pictures(examples))
    readout = torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])
    base = prepare_base(llava, inputs, readout=readout)
    senders, receivers = [Head(0, 0), Head(0, 4), Head(1, 2)], [Head(2, 0), Head(2, 1)]
    arguments: dict[str, Any] = {"tokens": "object", "examples": examples}
    cells = path_cells(llava, inputs, other, senders, receivers, "v", **arguments)
    same = path_cells(llava, inputs, inputs, senders, receivers, "v", **arguments)
    assert len(cells) == len(same) == 3
    changed = run_cells(llava, base, [*cells, *same], lambda logits: logits)
    for moved, still in zip(changed[:3], changed[3:], strict=True):
        assert_close(still, base.logits, rtol=0, atol=5e-6)  # order of summation
        assert float((moved - base.logits).abs().max()) > 1e-5


def test_receivers_of_several_layers_are_written_together(llava: Llava) -> None:
    examples = make_examples(2)
    inputs, other = prepare(llava, examples), prepare(llava, other_pictures(examples))
    (cell,) = path_cells(llava, inputs, other, [Head(0, 1)], [Head(1, 5), Head(2, 3), Head(1, 0)], "q")
    writes = [edit for edit in cell.edits if isinstance(edit, Write)]
    assert [(str(w.site), w.heads) for w in writes] == [
        ("blocks.1.attn.hook_q", (0, 5)),
        ("blocks.2.attn.hook_q", (3,)),
    ]
    assert writes[0].mask.sum(1).tolist() == [1, 1]


def test_impossible_paths_are_refused(llava: Llava) -> None:
    examples = make_examples(2)
    inputs, longer = prepare(llava, examples), prepare(llava, make_examples(3)[1:])
    unchecked = inspect.unwrap(path_cells)
    cases: list[tuple[list[Head], list[Head], Any, Inputs, str]] = [
        ([Head(1, 0)], [Head(1, 1)], "q", inputs, "receivers must be in later layers than senders, got a receiver"),
        ([Head(0, 6)], [Head(1, 1)], "q", inputs, r"head of a sender must be in \[0, 6\)"),
        ([Head(0, 0)], [Head(1, 2)], "k", inputs, r"head of a receiver must be in \[0, 2\)"),
        ([Head(0, 0)], [Head(3, 0)], "v", inputs, r"layer must be in \[0, 3\)"),
        ([], [Head(1, 1)], "q", inputs, "senders and receivers must not be empty, got 0 and 1"),
        ([Head(0, 0)], [Head(1, 1)], "q", longer, "other must have the positions of inputs, got batches of"),
    ]
    for senders, receivers, receiver_input, other, message in cases:
        with pytest.raises(ValueError, match=message):
            unchecked(llava, inputs, other, senders, receivers, receiver_input)
