"""Metrics of a run's logits: preference for the answer over a foil, its probability, and greedy accuracy.

``readout = find_readout(llava, inputs, foils)`` returns the columns of a batch where logits are read, and the expected
tokens; ``measure(logits, readout, metrics)`` returns one value for each metric and example. The batch is prepared with
answers, so each token of an answer is predicted from those before it (teacher forcing).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.plan.options import CIDER, Metric
from models.inputs import Inputs
from models.llava import Llava
from tasks.errors import UserError
from tasks.prompts import with_answer

# If clean and corrupt run differ by less, in the metric's unit, the recovered fraction is undefined.
# Logits of order 10 have an error of about 1e-5 in float32, 0.06 in bfloat16, 0.01 in float16; bounds are higher.
UNDEFINED_BELOW = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
Logits = Float[Tensor, "example slot vocab"]
Scores = Float[Tensor, "example"]


@dataclass(frozen=True, eq=False)
class Readout:
    """Where the logits of a batch are read, and the expected tokens.

    Args:
        columns: The prompt's last position, and all of the teacher-forced answer but its last; -1 at unused slots.
        expected: The next token: the answer's tokens, then the end-of-text token; -1 at unused slots.
        n_words: Number of slots of the answer itself, without the end-of-text token.
        fork: Slot of the first token in which answer and foil differ; 0 without a foil.
        foil: Token of the foil at ``fork``; -1 without a foil.
    """

    columns: Int[Tensor, "example slot"]
    expected: Int[Tensor, "example slot"]
    n_words: Int[Tensor, " example"]
    fork: Int[Tensor, " example"]
    foil: Int[Tensor, " example"]

    @property
    def used(self) -> Bool[Tensor, "example slot"]:
        """True at used slots."""
        return self.expected >= 0

    def to(self, device: torch.device | str) -> "Readout":
        """The same readout with its tensors on ``device``."""
        return Readout(*(part.to(device) for part in (self.columns, self.expected, self.n_words, self.fork, self.foil)))


def find_readout(llava: Llava, inputs: Inputs, foils: Sequence[str] | None = None) -> Readout:
    """Where to read the logits of a batch that is prepared with ``answers=True``; logit differences need ``foils``.

    Raises:
        UserError: If the batch has no answers, or a foil equals its example's answer.
    """
    if foils is not None and len(foils) != len(inputs):
        raise UserError(f"foils must be one for each of {len(inputs)} examples, got {len(foils)}. Or leave them out.")
    eos = llava.tokenizer.eos_token_id
    answers = []
    for row, layout in enumerate(inputs.layout):
        if layout.prompt_stop >= layout.real.stop:
            raise UserError("inputs must contain answers, got prompts alone. Call prepare with answers=True.")
        answers.append([int(token) for token in inputs.input_ids[row, layout.prompt_stop : layout.real.stop]])
    width = max(len(answer) for answer in answers)
    columns = torch.full((len(inputs), width), -1, dtype=torch.int64)
    expected = columns.clone()
    forks, tokens, n_words = [], [], []
    for row, (answer, layout) in enumerate(zip(answers, inputs.layout, strict=True)):
        columns[row, : len(answer)] = torch.arange(layout.prompt_stop - 1, layout.real.stop - 1)
        expected[row, : len(answer)] = torch.tensor(answer)
        n_words.append(len(answer) - (len(answer) > 1 and answer[-1] == eos))
        fork, token = (0, -1)
        if foils is not None:
            fork, token = _fork(answer, answer_tokens(llava, inputs.prompts[row], foils[row]), foils[row])
        forks.append(fork)
        tokens.append(token)
    readout = Readout(columns, expected, torch.tensor(n_words), torch.tensor(forks), torch.tensor(tokens))
    return readout.to(inputs.input_ids.device)


def answer_tokens(llava: Llava, prompt: str, answer: str) -> list[int]:
    """The tokens that ``prepare`` writes after a prompt: the answer and the end-of-text token."""
    tokenizer: Any = llava.tokenizer
    eos = tokenizer.eos_token
    before = list(tokenizer(prompt)["input_ids"])
    whole = list(tokenizer(with_answer(prompt, answer, eos if isinstance(eos, str) else ""))["input_ids"])
    if whole[: len(before)] != before:
        raise UserError(
            f"tokenizer must start a new token at the answer, got one across prompt and answer for {answer!r}. "
            "Use a tokenizer that starts a new token at a space."
        )
    return whole[len(before) :]


def _fork(answer: Sequence[int], foil: Sequence[int], text: str) -> tuple[int, int]:
    """The first slot in which answer and foil differ, and the foil's token there."""
    for slot, (ours, theirs) in enumerate(zip(answer, foil, strict=False)):
        if ours != theirs:
            return slot, theirs
    raise UserError(f"foil must differ from the answer in a token, got {text!r} for both.")


def logit_difference(logits: Logits, readout: Readout, clean: Logits | None = None) -> Scores:
    """Logit of the answer minus logit of the foil, at the first token in which they differ.

    Source: Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593.
    """
    if bool((readout.foil < 0).any()):
        raise UserError("foils must be given for the logit difference, got none. Pass them to find_readout.")
    rows = torch.arange(len(readout.fork), device=logits.device)
    at_fork = logits[rows, readout.fork]
    return at_fork[rows, readout.expected[rows, readout.fork]] - at_fork[rows, readout.foil]


def answer_log_prob(logits: Logits, readout: Readout, clean: Logits | None = None) -> Scores:
    """Log-probability in nats that the output begins with the answer: the sum over its tokens without end-of-text."""
    words = torch.arange(logits.shape[1], device=logits.device) < readout.n_words[:, None]
    chosen = logits.gather(2, readout.expected.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(words, chosen, 0.0).sum(1)


def answer_probability(logits: Logits, readout: Readout, clean: Logits | None = None) -> Scores:
    """Probability, 0 to 1, that the output begins with the answer."""
    return answer_log_prob(logits, readout).exp()


def kl_to_clean(logits: Logits, readout: Readout, clean: Logits | None = None) -> Scores:
    """Kullback-Leibler divergence in nats from the clean run at the first answer token."""
    if clean is None:
        raise UserError("clean must be the clean run's logits for kl, got None. Pass them to measure.")
    ours, theirs = logits[:, 0].log_softmax(-1), clean[:, 0].log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0)  # below 0 only by rounding


def greedy_accuracy(logits: Logits, readout: Readout, clean: Logits | None = None) -> Scores:
    """1 if greedy generation writes the answer and ends there, else 0.

    The teacher-forced run equals the generating run up to the first wrong token, so one forward is enough.
    """
    return ((logits.argmax(-1) == readout.expected) | ~readout.used).all(1).float()


_RULES: dict[Metric, Callable[[Tensor, Readout, Tensor | None], Tensor]] = {
    "logit_difference": logit_difference,
    "log_prob": answer_log_prob,
    "probability": answer_probability,
    "kl": kl_to_clean,
    "accuracy": greedy_accuracy,
}


def measure(
    logits: Logits, readout: Readout, metrics: Sequence[Metric], *, clean: Logits | None = None
) -> Float[Tensor, "metric example"]:
    """Every metric of every example; ``clean``, the clean run's logits at the same slots, is only needed for ``kl``."""
    if CIDER in metrics:
        raise UserError("metric must be one of logits, got 'cider', which scores captions. Use patch-sweep.")
    return torch.stack([_RULES[metric](logits, readout, clean) for metric in metrics])


def recovered_fraction(
    value: Float[Tensor, "*axes"], clean: Float[Tensor, "..."], corrupt: Float[Tensor, "..."], *, undefined_below: float
) -> Float[Tensor, "*axes"]:
    """(value - corrupt) / (clean - corrupt): 0 equals the corrupt run, 1 the clean run.

    NaN if clean and corrupt differ by less than ``undefined_below``, in the metric's unit.
    """
    between = clean - corrupt
    fraction = (value - corrupt) / torch.where(between == 0, 1.0, between)
    return torch.where(between.abs() < undefined_below, torch.nan, fraction)
