"""Train a tuned lens: KL from the model's final distribution, at text positions or at image positions.

lens = train_tuned_lens(llava, batches, positions="text")

At image positions a LLaVA was never trained to predict anything, so its final distribution there is no target that
anyone chose. A lens trained on text positions and read at image positions avoids that target; one trained on image
positions shows what it changes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site
from probes.lenses.reading import final_log_probs, kl_from, lens_logits, lens_sites
from probes.lenses.tuned import Translator, TunedLens
from tasks.errors import UserError

Positions = Literal["text", "image"]
Optimizer = Literal["sgd", "adam"]
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-3
CLIP = 1.0  # norm of the gradient of all translators together
# Of tuned-lens: lr 1.0 x (1 - momentum) for SGD, 1e-3 for Adam.
RATES: Mapping[Optimizer, float] = {"sgd": 1.0 * (1 - MOMENTUM), "adam": 1e-3}


class TunedTrainer:
    """The translators, the optimizer, and the number of steps that are done.

    Args:
        llava: The model, which does not change.
        positions: ``"text"``: all positions that are no image tokens. ``"image"``: all image tokens.
        steps: All steps of the training; the rate falls linearly to 0.
        optimizer: ``"sgd"``: Nesterov momentum 0.9 and weight decay 1e-3. ``"adam"``: Adam with the same decay.
        lr: Rate of the first step; None for 0.1 (SGD) or 1e-3 (Adam).
    """

    def __init__(
        self,
        llava: Llava,
        *,
        positions: Positions,
        steps: int,
        optimizer: Optimizer = "sgd",
        lr: float | None = None,
    ) -> None:
        self.llava, self.positions, self.steps, self.done = llava, positions, steps, 0
        self.sites = lens_sites(llava.n_layers)
        zero = TunedLens.zero(llava)
        self.translators = {
            site: Translator(*(part.requires_grad_() for part in translator))
            for site, translator in zero.translators.items()
        }
        self.lens = TunedLens(self.translators, llava.n_layers, {**zero.about, "positions": positions})
        parameters = [part for translator in self.translators.values() for part in translator]
        rate = RATES[optimizer] if lr is None else lr
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
            if optimizer == "sgd"
            else torch.optim.Adam(parameters, rate, weight_decay=WEIGHT_DECAY, amsgrad=True)
        )
        self._rate = rate

    def step(self, inputs: Inputs) -> float:
        """One step on a batch; returns the mean KL over layers and positions, in nats.

        The layers are trained one after the other, so that the logits of one of them are in memory at a time.
        """
        resid = residuals(self.llava, inputs, self.sites, position_mask(self.llava, inputs, self.positions))
        with torch.no_grad():
            final = final_log_probs(self.llava, resid[self.sites[-1]])
        total = 0.0
        for site, translator in self.translators.items():
            with torch.enable_grad():
                loss = kl_from(final, lens_logits(self.lens, self.llava, resid[site], site)).mean()
                grads = torch.autograd.grad(loss, list(translator))
            for part, grad in zip(translator, grads, strict=True):
                part.grad = grad
            total += float(loss.detach())
        parameters = [part for group in self.optimizer.param_groups for part in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * (1 - self.done / self.steps)
        self.optimizer.step()
        self.done += 1
        mean = total / len(self.translators)
        if not math.isfinite(mean):
            raise UserError(f"loss must stay finite, got {mean} in step {self.done}. Use a smaller --lr.")
        return mean

    def state(self) -> dict[str, Tensor]:
        """All that the next steps depend on, as tensors."""
        found = {"done": torch.tensor(self.done)}
        for number, parameter in enumerate(self._parameters()):
            found[f"{number}.value"] = parameter.detach().cpu().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    found[f"{number}.{key}"] = value.detach().cpu().contiguous()
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` returned."""
        self.done = int(state["done"])
        for number, parameter in enumerate(self._parameters()):
            own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{number}.")}
            with torch.no_grad():
                parameter.copy_(own.pop("value"))
            kept: dict[str, Any] = {
                key: value.clone() if key == "step" else value.to(parameter.device) for key, value in own.items()
            }
            self.optimizer.state[parameter] = kept

    def finished(self) -> TunedLens:
        """The lens, without gradients."""
        made = {
            site: Translator(*(part.detach().clone() for part in translator))
            for site, translator in self.translators.items()
        }
        return TunedLens(made, self.llava.n_layers, {**self.lens.about, "steps": self.done})

    def _parameters(self) -> list[Tensor]:
        return [part for translator in self.translators.values() for part in translator]


def train_tuned_lens(
    llava: Llava,
    batches: Sequence[Inputs],
    *,
    positions: Positions = "text",
    steps: int = 250,
    optimizer: Optimizer = "sgd",
    lr: float | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TunedLens:
    """A tuned lens trained on some batches, again and again in order, until ``steps`` are done.

    Args:
        llava: The model.
        batches: At least one; with answers, the answers are text positions too.
        positions: See ``TunedTrainer``.
        steps: Number of steps; tuned-lens takes 250 of 2^18 tokens each.
        optimizer: See ``TunedTrainer``.
        lr: See ``TunedTrainer``.
        on_step: Called with the number of each step, from 1, and its loss.

    Source: Belrose et al. 2023, arXiv 2303.08112; settings of the package tuned-lens.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?", "A square.")
        >>> train_tuned_lens(llava, [inputs], steps=2).name
        'tuned:text'
    """
    if not batches or steps < 1:
        raise UserError(f"training must have a batch and a step, got {len(batches)} batches and {steps} steps.")
    trainer = TunedTrainer(llava, positions=positions, steps=steps, optimizer=optimizer, lr=lr)
    for step in range(steps):
        loss = trainer.step(batches[step % len(batches)])
        on_step(step + 1, loss)
    return trainer.finished()


def position_mask(llava: Llava, inputs: Inputs, positions: Positions) -> Bool[Tensor, "batch pos"]:
    """True at the positions of a kind: image tokens, or all others that are no padding."""
    image = inputs.input_ids == llava.image_token_id
    wanted = (image if positions == "image" else ~image) & (inputs.attention_mask == 1)
    if not bool(wanted.any(1).all()):
        raise UserError(f"every prompt must have {positions} positions, got one without. Leave it out.")
    return wanted


def residuals(
    llava: Llava, inputs: Inputs, sites: Sequence[Site], wanted: Bool[Tensor, "batch pos"]
) -> dict[Site, Float[Tensor, "position d_model"]]:
    """The residual stream at the wanted positions of a batch, row after row, for every site."""
    found = llava.capture(inputs, sites, tokens=wanted)
    return {site: found[site][found.mask[site]] for site in sites}


def kl_by_site(
    llava: Llava, lenses: Sequence[Any], inputs: Inputs, positions: Positions
) -> Iterator[tuple[Site, str, float]]:
    """For one prompt: site, lens name, and its mean KL(final || lens) over the positions, in nats."""
    sites = lens_sites(llava.n_layers)
    resid = residuals(llava, inputs, sites, position_mask(llava, inputs, positions))
    with torch.inference_mode():
        final = final_log_probs(llava, resid[sites[-1]])
        for site in sites:
            for lens in lenses:
                if lens.reads(site, llava.n_layers):
                    yield site, lens.name, float(kl_from(final, lens_logits(lens, llava, resid[site], site)).mean())
