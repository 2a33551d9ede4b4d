import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interventions.metrics import (
    answer_tokens,
    find_readout,
    greedy_accuracy,
    logit_difference,
    measure,
    recovered_fraction,
)
from models.inputs import Inputs, prepare
from models.llava import Llava
from tests.conftest import WORDS, make_examples

FOILS = ["dog", "umbrella", "taxi", "apple", "cat"]


def batch(llava: Llava, n: int = 4, padding_side: str = "right") -> Inputs:
    return prepare(llava, make_examples(n), answers=True, padding_side=padding_side)  # type: ignore[arg-type]


def all_logits(llava: Llava, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return llava.model(**inputs.model_kwargs()).logits.float()


def at(logits: Tensor, columns: Tensor) -> Tensor:
    return logits[torch.arange(len(columns))[:, None], columns.clamp(min=0)]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_each_slot_is_read_in_front_of_the_token_it_expects(llava: Llava, padding_side: str) -> None:
    inputs = batch(llava, padding_side=padding_side)
    readout = find_readout(llava, inputs)
    for row, layout in enumerate(inputs.layout):
        columns = readout.columns[row][readout.used[row]]
        assert columns[0] == layout.prompt_stop - 1
        assert columns[-1] == layout.real.stop - 2
        assert_close(inputs.input_ids[row, columns + 1], readout.expected[row][readout.used[row]])
        assert readout.expected[row][readout.used[row]].tolist() == answer_tokens(
            llava, inputs.prompts[row], WORDS[row]
        )
    assert readout.used.sum(1).unique().numel() > 1  # answers of different lengths


def test_fork_is_the_first_token_in_which_answer_and_foil_differ(llava: Llava) -> None:
    inputs = batch(llava, 2)
    answers = [answer_tokens(llava, inputs.prompts[row], WORDS[row]) for row in range(2)]
    readout = find_readout(llava, inputs, ["cats", "dot"])
    for row, foil in enumerate(("cats", "dot")):
        other = answer_tokens(llava, inputs.prompts[row], foil)
        fork = next(i for i, (a, b) in enumerate(zip(answers[row], other, strict=False)) if a != b)
        assert fork > 0
        assert (int(readout.fork[row]), int(readout.foil[row])) == (fork, other[fork])


def test_metrics_are_what_their_definitions_say(llava: Llava) -> None:
    inputs = batch(llava)
    readout = find_readout(llava, inputs, FOILS[:4])
    logits = at(all_logits(llava, inputs), readout.columns)
    clean = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found = measure(logits, readout, ("logit_difference", "log_prob", "probability", "kl"), clean=clean)
    for row in range(4):
        answer = answer_tokens(llava, inputs.prompts[row], WORDS[row])
        foil = answer_tokens(llava, inputs.prompts[row], FOILS[row])
        fork = int(readout.fork[row])
        difference = logits[row, fork, answer[fork]] - logits[row, fork, foil[fork]]
        words = answer[:-1] if answer[-1] == llava.tokenizer.eos_token_id else answer
        log_prob = sum(logits[row, slot].log_softmax(-1)[token] for slot, token in enumerate(words))
        assert isinstance(log_prob, Tensor)
        kl = torch.nn.functional.kl_div(
            logits[row, 0].log_softmax(-1), clean[row, 0].log_softmax(-1), log_target=True, reduction="sum"
        )
        assert_close(found[:, row], torch.stack([difference, log_prob, log_prob.exp(), kl]), rtol=1e-4, atol=1e-6)
    assert len(words) > 1  # the sum has more than one term


def test_divergence_is_zero_from_itself_alone(llava: Llava) -> None:
    readout = find_readout(llava, batch(llava, 2))
    logits = torch.randn(2, readout.columns.shape[1], 640, generator=torch.Generator().manual_seed(0))
    other = logits.roll(1, -1)
    found = torch.stack([measure(logits, readout, ("kl",), clean=c)[0] for c in (logits, other)])
    assert_close(found[0], torch.zeros(2), atol=1e-6, rtol=0)
    assert (found[1] > 0.1).all()


@pytest.mark.parametrize("wrong_at", [None, 0, 1, 2])
def test_accuracy_equals_what_generate_writes(llava: Llava, wrong_at: int | None) -> None:
    """Expected answers of three tokens: the generated ones, and the same with one token changed."""
    prompts = prepare(llava, make_examples(3), padding_side="left")
    with torch.no_grad():
        written = llava.model.generate(
            **{k: v for k, v in prompts.model_kwargs().items() if k != "position_ids"},
            max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0,
        )[:, -3:]  # fmt: skip
    expected = written.clone()
    if wrong_at is not None:
        expected[1, wrong_at] = (expected[1, wrong_at] + 1) % 600
    rows = [torch.cat([prompts.input_ids, expected], 1), torch.cat([prompts.attention_mask, torch.ones(3, 3)], 1)]
    mask = rows[1].long()
    inputs = replace(
        prompts, input_ids=rows[0], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        layout=tuple(
            layout._replace(real=layout.real._replace(stop=layout.real.stop + 3)) for layout in prompts.layout
        ),
    )  # fmt: skip
    readout = find_readout(llava, inputs)
    found = greedy_accuracy(at(all_logits(llava, inputs), readout.columns), readout)
    assert found.tolist() == (written == expected).all(1).float().tolist()
    assert found.tolist() == [1.0, float(wrong_at is None), 1.0]


def test_accuracy_asks_for_the_end_of_the_text_too(llava: Llava) -> None:
    readout = find_readout(llava, batch(llava, 2))
    logits = torch.zeros(2, readout.columns.shape[1], 640).scatter_(2, readout.expected.clamp(min=0)[..., None], 1.0)
    assert greedy_accuracy(logits, readout).tolist() == [1.0, 1.0]
    last = int(readout.used[0].sum()) - 1
    assert readout.expected[0, last] == llava.tokenizer.eos_token_id
    logits[0, last, 5] = 2.0
    assert greedy_accuracy(logits, readout).tolist() == [0.0, 1.0]


def test_unused_slots_do_not_count(llava: Llava) -> None:
    inputs = batch(llava, 3)
    readout = find_readout(llava, inputs, FOILS[:3])
    logits = at(all_logits(llava, inputs), readout.columns)
    metrics = ("logit_difference", "log_prob", "kl", "accuracy")
    disturbed = torch.where(readout.used[..., None], logits, torch.randn(logits.shape) * 100)
    assert not torch.equal(disturbed, logits)
    assert_close(measure(disturbed, readout, metrics, clean=logits), measure(logits, readout, metrics, clean=logits))


def test_fraction_is_zero_at_corrupt_one_at_clean_and_undefined_where_they_agree() -> None:
    clean, corrupt = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([1.0, 1.0, 2.0005])
    for value, expected in ((corrupt, 0.0), (clean, 1.0), ((clean + corrupt) / 2, 0.5), (2 * clean - corrupt, 2.0)):
        found = recovered_fraction(value, clean, corrupt, undefined_below=1e-3)
        assert_close(found, torch.tensor([expected, expected, torch.nan]), equal_nan=True)
    assert not recovered_fraction(clean, clean, corrupt, undefined_below=1e-4).isnan().any()
    assert recovered_fraction(clean, clean, clean, undefined_below=0.0).isfinite().all()


def test_gradients_flow_through_every_smooth_metric(llava: Llava) -> None:
    readout = find_readout(llava, batch(llava, 2), FOILS[:2])
    clean = torch.randn(2, readout.columns.shape[1], 640, generator=torch.Generator().manual_seed(0))
    for metric in ("logit_difference", "log_prob", "probability", "kl"):
        logits = clean.roll(1, 0).requires_grad_()
        measure(logits, readout, (metric,), clean=clean).sum().backward()
        assert logits.grad is not None
        assert (logits.grad.abs().amax((1, 2)) > 0).all()


def test_what_is_missing_is_named(llava: Llava) -> None:
    inputs = batch(llava, 2)
    with pytest.raises(ValueError, match="must contain answers, got prompts alone"):
        find_readout(llava, prepare(llava, make_examples(2)))
    with pytest.raises(ValueError, match="foil must differ from the answer in a token, got 'cat'"):
        find_readout(llava, inputs, ["cat", "cat"])
    with pytest.raises(ValueError, match="one for each of 2 examples, got 1"):
        find_readout(llava, inputs, ["dog"])
    readout = find_readout(llava, inputs)
    logits = torch.zeros(2, readout.columns.shape[1], 640)
    with pytest.raises(ValueError, match="foils must be given"):
        inspect.unwrap(logit_difference)(logits, readout)
    with pytest.raises(ValueError, match="clean must be the clean run's logits"):
        measure(logits, readout, ("kl",))
