"""The class that lmms-eval makes for ``--model laccolith``. Importing this file needs lmms-eval.

lmms-eval --model laccolith --model_args pretrained=runs/band,token_plan=leave@16 --tasks pope --batch_size 8
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from interventions.harness.interventions import intervening, parse_interventions
from models.loading.load import load
from models.token_plans.plan import parse_token_plan, recorded_token_plan
from records.evaluation.answering import answer_examples
from tasks.errors import UserError
from tasks.example import Example
from tasks.examples_from import picture_from

_PLACEHOLDER = "<image>"
_NEW_TOKENS = 1024  # of lmms-eval's own LLaVA models, where a task names no number


class LaccolithModel(lmms):  # type: ignore[misc]
    """A LLaVA-1.5 model for lmms-eval: greedy answers in batches, equal to those of ``benchmark-eval``.

    Args:
        pretrained: Everything that ``load`` takes: a folder, a Hugging Face id, ``smol``.
        device: Such as ``cuda``.
        dtype: Of the weights; None as for ``load``.
        batch_size: Questions that run together. The answers do not depend on it.
        preprocess: ``pad`` as LLaVA-1.5, or ``hf`` as the processor of transformers, which ``llava_hf`` uses.
        token_plan: Such as ``leave@16``; None for the plan of the folder.
        intervention: See ``interventions.harness.interventions``.
        seed: Of a random model.

    Raises:
        UserError: If an argument cannot be used.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "smol",
        device: str = "cpu",
        dtype: str | None = None,
        batch_size: int | str = 1,
        preprocess: str = "pad",
        token_plan: str | None = None,
        intervention: str = "",
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown = {name: value for name, value in unknown.items() if value is not None and name != "max_batch_size"}
        if unknown:
            raise UserError(f"model_args must be arguments of LaccolithModel, got {next(iter(unknown))!r}.")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size must be a number >= 1, got {batch_size!r}.")
        if preprocess not in ("pad", "hf"):
            raise UserError(f"preprocess must be pad or hf, got {preprocess!r}.")
        self._interventions = parse_interventions(intervention)
        kwargs: dict[str, Any] = {} if dtype in (None, "auto") else {"dtype": dtype}
        self.llava = load(str(pretrained), device=device, seed=seed, **kwargs)
        plan = token_plan or recorded_token_plan(str(pretrained), self.llava.n_layers)
        self.token_plan = parse_token_plan(plan, self.llava.n_layers).text
        self.batch_size, self.preprocess = int(batch_size), preprocess

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request, in order.

        A task's ``until`` is not read, as by lmms-eval's own LLaVA models: it is a blank line by default, and answers
        of several paragraphs would be cut.
        """
        answers: dict[int, str] = {}
        kinds: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(_new_tokens(request.args[1]), []).append(index)
        with intervening(self.llava, self._interventions):
            for new_tokens, indices in kinds.items():
                for start in range(0, len(indices), self.batch_size):
                    own = indices[start : start + self.batch_size]
                    texts = answer_examples(
                        self.llava, [self._example(requests[index]) for index in own], new_tokens=new_tokens,
                        token_plan=self.token_plan, preprocess=self.preprocess,  # type: ignore[arg-type]
                    )  # fmt: skip
                    for index, text in zip(own, texts, strict=True):
                        context, options = requests[index].args[:2]
                        answers[index] = text
                        self.cache_hook.add_partial("generate_until", (context, options), answers[index])
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise ``UserError``: only tasks that generate text are answered."""
        raise UserError("task must have output_type generate_until, got loglikelihood. Use the task's generating form.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise ``UserError``: only tasks of one round are answered."""
        raise UserError("task must have output_type generate_until, got generate_until_multi_round.")

    def _example(self, request: Any) -> Example:
        """A request as an ``Example``; its pictures precede the question."""
        context, _, to_visual, document, task, split = request.args
        visuals = to_visual(self.task_dict[task][split][document]) if to_visual else []
        if not all(isinstance(one, Image.Image) for one in visuals):
            raise UserError(f"task must show pictures, got a video or sound in {task!r}. LLaVA-1.5 reads pictures.")
        question = context.replace(f"{_PLACEHOLDER}\n", "").replace(_PLACEHOLDER, "").strip()
        name = f"{task}/{split}/{document}"
        return Example(name, tuple(map(picture_from, visuals)), question, "", name)


def _new_tokens(options: Mapping[str, Any]) -> int:
    """The largest number of tokens of an answer; raise ``UserError`` if it is not to be greedy."""
    if options.get("do_sample") or (options.get("num_beams") or 1) != 1 or (options.get("temperature") or 0) > 0:
        raise UserError("generation_kwargs must be greedy with one beam, got sampling or beams. Set temperature 0.")
    return int(options.get("max_new_tokens") or _NEW_TOKENS)
