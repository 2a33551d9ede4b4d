"""``Llava``: the LLaVA-1.5 model that ``load`` returns, with the methods that a user calls.

llava = load("smol")
inputs = llava.inputs("photo.jpg", "What is this?")
llava.generate(inputs); llava.logits(inputs); llava.capture(inputs, "resid_post", layers="10-20", tokens="image")
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.activations import Activations
from models.adapter import Adapter, cache_argument
from models.cached_blocks import inference
from models.capture import capture
from models.hooks import Pool
from models.inputs import Inputs, PaddingSide, prepare
from models.layer_ranges import LayerRange
from models.logit_lens import read_words
from models.pixels import Preprocess
from models.sites import Site, find_sites
from models.token_plans.forward import PlannedBatch, PlannedCache, planned
from models.token_plans.plan import TokenPlan, parse_token_plan
from models.tokens import Group
from tasks.errors import UserError
from tasks.example import Example
from tasks.examples_from import ImageLike, picture_from

Images = ImageLike | Sequence[ImageLike | Sequence[ImageLike]] | None


@runtime_checkable
class Intervention(Protocol):
    """A change to runs while its context manager is open, such as ``interventions.ablated``."""

    @property
    def changes_language_model(self) -> bool:
        """False if it changes the vision tower and the projector only; then it can be combined with a token plan."""

    def hooks(self, llava: "Llava", inputs: Inputs) -> AbstractContextManager[None]:
        """Change forwards on ``inputs`` inside the context; ``inputs`` may have room for tokens to be generated."""


@dataclass(frozen=True, eq=False, repr=False)
class Llava(Adapter):
    """A LLaVA-1.5 stack: the Hugging Face model in ``eval()`` mode and its processor.

    Context managers such as ``interventions.ablated`` change ``generate``, ``logits``, ``capture`` and ``logit_lens``.

    Example:
        >>> from PIL import Image
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(Image.new("RGB", (40, 30)), "What is it?")
        >>> llava.capture(inputs, "resid_post", layers=1, tokens="image", pool="mean").numpy().shape
        (1, 48)
    """

    # A stack; the last entry includes those before it.
    interventions: list[Intervention] = field(init=False, default_factory=list)

    def inputs(
        self,
        images: Images,
        question: str | Sequence[str],
        answer: str | Sequence[str] | None = None,
        *,
        padding_side: PaddingSide = "right",
        preprocess: Preprocess = "pad",
    ) -> Inputs:
        """A batch of prompts: LLaVA's chat format around each question, after its picture.

        Args:
            images: One picture (PIL image, array or path) or a list with one for each question; an inner list for a
                question about several pictures. One picture or one question is used for all. None means text only.
            question: One or several.
            answer: Text after the prompts, one or several; None leaves the answer open.
            padding_side: Where short rows are padded.
            preprocess: See ``models.inputs.prepare``.

        Raises:
            UserError: If there are not as many pictures, questions and answers, or a picture cannot be used.
        """
        many = images if isinstance(images, list | tuple) else None
        n = max((len(given) for given in (many, _several(question), _several(answer)) if given is not None), default=1)
        pictures = [images] * n if many is None else list(many)
        questions = list(_several(question) or [str(question)] * n)
        answers = list(_several(answer) or [str(answer or "")] * n)
        if not len(pictures) == len(questions) == len(answers) or not n:
            raise UserError(
                "images, question and answer must have one length, or be one for all, got "
                f"{len(pictures)}, {len(questions)} and {len(answers)}."
            )
        examples = []
        for i, shown in enumerate(pictures):
            group: Any = [] if shown is None else shown if isinstance(shown, list | tuple) else [shown]
            found = tuple(picture_from(one) for one in group)
            name = found[0].key if found else "text"
            examples.append(Example(str(i), found, questions[i], answers[i], group=name))
        return prepare(self, examples, padding_side=padding_side, preprocess=preprocess, answers=answer is not None)

    def generate(
        self,
        images: "Images | Inputs",
        question: str | Sequence[str] | None = None,
        *,
        max_new_tokens: int = 32,
        greedy: bool = True,
        temperature: int | float = 1.0,
        seed: int = 0,
        use_cache: bool = True,
        token_plan: str = "all",
    ) -> str | list[str]:
        """The model's text after each prompt: one string, or a list for several.

        Rows are padded on the left, so texts do not depend on the batch. Interventions apply at every step.

        Args:
            images: As for ``inputs``; or a batch that ``inputs`` made, whose answers are cut off.
            question: As for ``inputs``; None with a batch.
            max_new_tokens: Largest number of tokens to generate.
            greedy: Take the most likely token; otherwise sample.
            temperature: Divides the logits before sampling.
            seed: Seed of the sampling.
            use_cache: Keep keys and values. Without it the text is the same, but takes longer.
            token_plan: In which layers image tokens are computed, such as ``"leave@16"``; see
                ``models.token_plans.parse_token_plan``.
        """
        inputs = images if isinstance(images, Inputs) else self.inputs(images, question or "")
        tokens = self.generate_tokens(
            inputs, max_new_tokens, greedy=greedy, temperature=temperature, seed=seed, use_cache=use_cache,
            token_plan=token_plan,
        )  # fmt: skip
        texts = [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        alone = len(texts) == 1 and not isinstance(images, list | tuple) and not _several(question)
        return texts[0] if alone else texts

    def generate_tokens(
        self,
        inputs: Inputs,
        max_new_tokens: int,
        *,
        greedy: bool = True,
        temperature: int | float = 1.0,
        seed: int = 0,
        use_cache: bool = True,
        token_plan: str = "all",
    ) -> Tensor:
        """The token ids that ``generate`` decodes, ``example new``; rows that end early are padded."""
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        prompts = inputs.laid_out("left", answers=False)
        kwargs: dict[str, Any] = {k: v for k, v in prompts.model_kwargs().items() if k != "position_ids"}
        model: Any = self.model
        eos = self.tokenizer.eos_token_id
        draws = {} if greedy else {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        devices = [self.device] if self.device.type == "cuda" else []
        extended = inputs.laid_out("left", answers=False, room=max_new_tokens)
        plan = parse_token_plan(token_plan, self.n_layers)
        if not plan.is_all and use_cache:
            kwargs |= cache_argument(PlannedCache(self.config.text_config))
        with self.intervened(extended, plan), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            found = model.generate(
                **kwargs, max_new_tokens=max_new_tokens, do_sample=not greedy, use_cache=use_cache,
                pad_token_id=eos, eos_token_id=eos, **draws,
            )  # fmt: skip
        tokens: Tensor = found[:, prompts.n_positions :]
        return tokens

    def logits(self, inputs: Inputs, *, token_plan: str = "all") -> Float[Tensor, "example vocab"]:
        """The next-token logits at the last position of each prompt, float32; ``token_plan`` as for ``generate``."""
        columns = torch.tensor([layout.prompt_stop - 1 for layout in inputs.layout], device=self.device)
        kept = columns.unique()
        with self.intervened(inputs, parse_token_plan(token_plan, self.n_layers)):
            scores = self.model(**inputs.model_kwargs(), logits_to_keep=kept, use_cache=False).logits
        found: Tensor = scores[torch.arange(len(inputs)), torch.searchsorted(kept, columns)].float()
        return found.clone()

    def capture(
        self,
        inputs: Inputs,
        sites: str | Site | Sequence[str | Site],
        *,
        layers: LayerRange | None = None,
        tokens: Group | Bool[Tensor, "batch pos"] = "all",
        pool: Pool = "none",
        dtype: torch.dtype | None = None,
    ) -> Activations:
        """The activations of a batch at some sites and tokens.

        Args:
            inputs: The batch.
            sites: One or several, such as ``"blocks.3.hook_resid_post"``, or ``"resid_post"`` in every layer.
            layers: The blocks of a short name, such as ``"10-20"`` or 12; None means all.
            tokens: ``"image"``, ``"object"``, ``"question"``, ``"last"``, ``"text"``, ``"all"``, or a boolean mask.
            pool: ``"mean"`` or ``"max"`` over these tokens, ``"box"`` (the mean in the focus box), ``"none"``.
            dtype: Type of the values; None keeps the model's.
        """
        changed = self.intervened if self.interventions else None
        found = find_sites(sites, self, layers)
        return capture(self, inputs, found, tokens=tokens, pool=pool, dtype=dtype, changed=changed)

    def logit_lens(
        self, inputs: Inputs, *, tokens: Group = "image", layers: LayerRange | None = None, k: int = 5
    ) -> pd.DataFrame:
        """The ``k`` most likely words at each token and layer, from ``resid_post`` through the final norm and head.

        Columns: ``layer``, ``example``, ``position``, ``words``, ``probability`` (of the first word).
        """
        return read_words(self, self.capture(inputs, "resid_post", layers=layers, tokens=tokens), k=k)

    @contextmanager
    def intervened(self, inputs: Inputs, plan: TokenPlan | None = None) -> Iterator[None]:
        """Apply the active interventions and a token plan to forwards on ``inputs`` inside the context.

        Raises:
            UserError: If there are a token plan and an intervention in the language model, or a plan and no picture.
        """
        active = list(self.interventions)
        with inference(self):
            if plan is not None and not plan.is_all:
                if any(one.changes_language_model for one in active):
                    raise UserError(
                        f"token plan must be 'all' while the language model is changed, got {plan.text!r}. Such an "
                        "intervention needs every position in every layer."
                    )
                batch = PlannedBatch.of(inputs)
                if not bool(batch.image.any()):
                    raise UserError(
                        f"prompt must have image tokens under the token plan {plan.text!r}, got none. Pass a picture, "
                        "or use 'all'."
                    )
                # An intervention may run the model itself, unchanged, before it starts.
                changed = active[-1].hooks(self, inputs) if active else nullcontext()
                with self.without_interventions(), changed, planned(self, plan, batch):
                    yield
                return
            if not active:
                yield
                return
            # An intervention that runs the model itself runs it unchanged.
            with self.without_interventions(), active[-1].hooks(self, inputs):
                yield

    @contextmanager
    def intervening(self, intervention: Intervention) -> Iterator[None]:
        """Add an intervention to the runs inside the context.

        There, a forward pass without token positions, such as a direct call of ``llava.model``, raises an error.
        """

        def check(module: Any, args: Any) -> None:
            if self.interventions:
                raise UserError(
                    "run must be llava.generate, llava.logits or llava.capture while an intervention is active, got "
                    "a forward pass without token positions."
                )

        self.interventions.append(intervention)
        handle = self.language_model.register_forward_pre_hook(check, prepend=True)
        try:
            yield
        finally:
            handle.remove()
            self.interventions.remove(intervention)

    @contextmanager
    def without_interventions(self) -> Iterator[None]:
        """Suspend all interventions inside the context."""
        active = list(self.interventions)
        self.interventions.clear()
        try:
            yield
        finally:
            self.interventions[:] = active


def _several(text: str | Sequence[str] | None) -> Sequence[str] | None:
    return None if text is None or isinstance(text, str) else text
