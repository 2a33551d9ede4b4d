"""Stages 1 and 2 of the embedded checkpoints, which connect the vision tower to SmolLM2.

``warm_start`` regresses the projector onto SmolLM2's word embeddings (what each patch shows, and where). Stage 1 trains
the projector on captions. Stage 2 trains the projector, and LoRA on every linear map of the language model, on
questions in LLaVA-1.5's formats and captions; a quarter of the rows has a caption instead of a picture.

All questions about one picture share its prefix in one row. By a block mask each attends to the prefix and itself; each
starts at the same position. So a row equals separate sequences, one per question, at a third of their cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerBase

from tasks.example import Example
from tasks.prompts import IMAGE, vicuna_v1
from tasks.scenes.questions import FAMILIES, ask, ask_for_caption, with_caption
from tasks.scenes.scene import Scene, make_scene
from tuning.data.samples import block_mask
from tuning.embedded.training import digest, schedule, train
from tuning.embedded.vision import pixels_of, scene_batch

LORA_RANK = 24
LORA_SCALE = 2.0  # alpha / rank, as in LLaVA's LoRA recipe (128, 256)
FIRST_SCENE = 1_000_000  # first scene of the language stages, beyond those that trained the tower
Row = tuple[list[int], list[tuple[list[int], list[int]]]]
"""Ids of a prefix, and of the prompt and the answer of each branch."""


class Projector(nn.Module):
    """LLaVA-1.5's ``mlp2x_gelu`` after a fixed standardisation, which ``folded`` moves into the first layer."""

    def __init__(self, d_vision: int, d_model: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(d_vision, d_model)
        self.linear_2 = nn.Linear(d_model, d_model)
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, features: Tensor) -> Tensor:
        """Image tokens ``batch patch d_model`` from tower features ``batch patch d_vision``."""
        tokens: Tensor = self.linear_2(F.gelu(self.linear_1((features - self.mean) / self.std)))
        return tokens

    def folded(self) -> dict[str, Tensor]:
        """Weights of an equal projector without standardisation."""
        weight = self.linear_1.weight / self.std
        first = {"linear_1.weight": weight, "linear_1.bias": self.linear_1.bias - weight @ self.mean}
        second = {f"linear_2.{name}": parameter for name, parameter in self.linear_2.named_parameters()}
        return {name: tensor.detach().clone() for name, tensor in (first | second).items()}


@torch.no_grad()
def tower_features(tower: CLIPVisionModel, scenes: Sequence[Scene]) -> Tensor:
    """LLaVA's image features: hidden state -2 of the tower without the class token, ``batch patch d_vision``."""
    pixels = pixels_of(list(scenes)).to(next(tower.parameters()).device)
    out = tower(pixel_values=pixels, output_hidden_states=True)
    features: Tensor = out.hidden_states[-2][:, 1:]
    return features


def fresh_projector(tower: CLIPVisionModel, d_model: int, *, seed: int) -> Projector:
    """A projector with default initialisation whose input is standardised by the features of 256 training scenes."""
    torch.manual_seed(seed)
    features = tower_features(tower, [make_scene(FIRST_SCENE - 1 - i) for i in range(256)]).flatten(0, 1)
    return Projector(features.shape[-1], d_model, features.mean(0), features.std(0))


def warm_start(
    projector: Projector,
    tower: CLIPVisionModel,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int = 800,
    n_scenes: int = 1280,
    seed: int = 0,
) -> float:
    """Regress each patch onto the sum of the word embeddings for its kind, its colour and its place.

    Returns the mean cosine between image tokens and their targets on held-out scenes.
    """
    words = language.model.embed_tokens.weight.detach()

    @lru_cache(maxsize=4096)
    def meaning(text: str) -> Tensor:
        total: Tensor = words[tokenizer(text).input_ids].sum(0)
        return total

    def targets(scenes: list[Scene]) -> Tensor:
        rows = []
        batch = scene_batch(scenes)
        for row, scene in enumerate(scenes):
            for patch in range(64):
                half = ("top " if patch // 8 < 4 else "bottom ") + ("left" if patch % 8 < 4 else "right")
                slot = int(batch.slot[row, patch])
                thing = f"{scene.objects[slot].colour} {scene.objects[slot].kind}" if slot >= 0 else "background"
                rows.append(meaning(f" {thing} {half}"))
        return torch.stack(rows)

    train = [make_scene(FIRST_SCENE - 2000 - i) for i in range(n_scenes)]
    held_out = [make_scene(i, split="test") for i in range(64)]
    inputs = torch.cat([tower_features(tower, train[i : i + 64]).flatten(0, 1) for i in range(0, n_scenes, 64)])
    wanted = torch.cat([targets(train[i : i + 64]) for i in range(0, n_scenes, 64)])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(inputs), (2048,), generator=generator)
        loss = F.mse_loss(projector(inputs[rows]), wanted[rows])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        tokens = projector(tower_features(tower, held_out)).flatten(0, 1)
        return float(F.cosine_similarity(tokens, targets(held_out), dim=-1).mean())


@dataclass(frozen=True)
class Packed:
    """Rows ``batch pos`` that each consist of one prefix and several branches."""

    ids: Tensor
    segment: Tensor
    """0 in the prefix, 1, 2, ... in the branches, -1 in the padding."""
    position: Tensor
    label: Tensor
    """The token to predict next; -100 for none."""
    owner: Tensor
    """The question of the batch whose answer a label belongs to; -1 for none."""


def pack(rows: Sequence[Row], pad: int) -> Packed:
    """Pad rows to one batch.

    A branch with an empty prompt has its first label at the end of the prefix, so a row can have only one such branch.
    """
    length = max(len(prefix) + sum(len(p) + len(a) for p, a in branches) for prefix, branches in rows)
    shape = (len(rows), length)
    ids, segment = torch.full(shape, pad), torch.full(shape, -1)
    position, label, owner = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.full(shape, -1)
    question = 0
    for row, (prefix, branches) in enumerate(rows):
        n = len(prefix)
        ids[row, :n], segment[row, :n], position[row, :n] = torch.tensor(prefix), 0, torch.arange(n)
        at = n
        for branch, (prompt, answer) in enumerate(branches, 1):
            text = prompt + answer
            end = at + len(text)
            ids[row, at:end], segment[row, at:end] = torch.tensor(text), branch
            position[row, at:end] = torch.arange(n, n + len(text))
            first = at + len(prompt) - 1
            label[row, first : end - 1] = torch.tensor(answer)
            owner[row, first : end - 1] = question
            question += 1
            at = end
    return Packed(ids, segment, position, label, owner)


@dataclass(frozen=True)
class Trainee:
    """The models of the language stages: tower (frozen), projector, language model, tokenizer."""

    tower: CLIPVisionModel
    projector: Projector
    language: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    image_id: int

    def run(self, packed: Packed, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``label vocab``, labels and owners of all labelled positions; ``scenes`` fill the image tokens."""
        device = next(self.language.parameters()).device
        is_image = packed.ids == self.image_id
        embeds = self.language.model.embed_tokens(packed.ids.masked_fill(is_image, 0).to(device))
        if scenes:
            tokens = self.projector(tower_features(self.tower, scenes)).flatten(0, 1)
            embeds = embeds.masked_scatter(is_image.to(device)[..., None], tokens)
        hidden = self.language.model(
            inputs_embeds=embeds, attention_mask=block_mask(packed.segment.to(device)),
            position_ids=packed.position.to(device), use_cache=False,
        ).last_hidden_state  # fmt: skip
        wanted = packed.label >= 0
        return self.language.lm_head(hidden[wanted.to(device)]), packed.label[wanted].to(device), packed.owner[wanted]

    def caption_row(self, scene: Scene) -> Row:
        """Stage 1's ``plain`` row: image tokens, then the caption and a newline."""
        return [self.image_id] * 64, [([], self.tokenizer(scene.caption + "\n").input_ids)]

    def question_row(self, examples: Sequence[Example]) -> Row:
        """Stage 2's ``vicuna_v1`` row: questions that share a picture or a caption, each in its own branch."""
        texts = [vicuna_v1(e.question, n_images=len(e.pictures)) for e in examples]
        if examples[0].pictures:
            head = texts[0].split(IMAGE)[0]
            prefix = [*self.tokenizer(head).input_ids, *[self.image_id] * 64]
            tails = [text.split(IMAGE)[1] for text in texts]
        else:
            head = texts[0].split("\n")[0]
            prefix = self.tokenizer(head).input_ids
            tails = [text[len(head) :] for text in texts]
        eos = self.tokenizer.eos_token_id
        return prefix, [
            (self.tokenizer(tail).input_ids, [*self.tokenizer(f" {e.answer}").input_ids, eos])
            for tail, e in zip(tails, examples, strict=True)
        ]


def add_adapter(language: LlamaForCausalLM, *, seed: int) -> None:
    """Add LoRA to all seven linear maps of every block, and freeze all other parameters."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=int(LORA_RANK * LORA_SCALE),
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    language.requires_grad_(False)
    inject_adapter_in_model(config, language.model)


def lora_factors(language: LlamaForCausalLM) -> dict[str, Tensor]:
    """The trained factors under the names that ``models.loading.smol.merge_lora`` reads."""
    return {
        name.replace(".lora_A.default.weight", ".A").replace(".lora_B.default.weight", ".B"): p.detach().clone()
        for name, p in language.model.named_parameters()
        if ".lora_" in name
    }


@dataclass(frozen=True)
class Mix:
    """The data of a stage-2 step: ``pictures`` rows with a picture, each row with ``questions`` questions."""

    pictures: int = 3
    texts: int = 1
    """Rows with a caption instead of a picture."""
    questions: int = 7
    captions: float = 0.25
    """Probability that a row with a picture also has a caption question."""
    drill_from: int = 100
    """First step with two option questions per row: the model learns that family last."""


def stage1_step(trainee: Trainee, step: int, batch_size: int) -> Tensor:
    """Loss of one stage-1 batch."""
    first = FIRST_SCENE + step * batch_size
    scenes = [make_scene(i) for i in range(first, first + batch_size)]
    packed = pack([trainee.caption_row(s) for s in scenes], trainee.tokenizer.eos_token_id)
    logits, labels, _ = trainee.run(packed, scenes)
    return F.cross_entropy(logits, labels)


def stage2_step(trainee: Trainee, step: int, mix: Mix, seed: int) -> Tensor:
    """Loss of one stage-2 batch; an answer of n tokens weighs sqrt(n), so captions do not dominate single words."""
    rng = np.random.default_rng([seed, step])
    first = 2 * FIRST_SCENE + step * (mix.pictures + mix.texts)
    scenes = [make_scene(i) for i in range(first, first + mix.pictures + mix.texts)]
    rows = []
    for row, scene in enumerate(scenes):
        drill = ["choice", "choice"] if step >= mix.drill_from else []
        pool = [family for family in FAMILIES if family not in drill]
        drawn = [pool[int(i)] for i in rng.permutation(len(pool))[: mix.questions - len(drill)]]
        asked = [ask(scene, family, seed=step) for family in drawn]
        asked += [ask(scene, "choice", seed=FIRST_SCENE * (n + 1) + step) for n in range(len(drill))]
        if row >= mix.pictures:
            asked = [with_caption(e, scene.caption) for e in asked]
        elif rng.random() < mix.captions:
            asked.append(ask_for_caption(scene))
        rows.append(trainee.question_row(asked))
    packed = pack(rows, trainee.tokenizer.eos_token_id)
    logits, labels, owners = trainee.run(packed, scenes[: mix.pictures])
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = 1 / torch.bincount(owners).clamp(min=1)[owners].float().sqrt().to(losses.device)
    return (losses * weights).sum() / weights.sum()


def train_language(
    work: Path,
    trainee: Trainee,
    *,
    stage: int,
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    mix: Mix | None = None,
    lr: float = 5e-4,
    projector_lr: float = 1e-3,
    log_every: int = 10,
    save_every: int = 50,
) -> None:
    """Train stage 1 or 2 in place, from the snapshot in ``work`` if there is one."""
    mix = mix or Mix()
    groups: list[dict[str, object]] = [{"params": list(trainee.projector.parameters()), "lr": projector_lr}]
    modules: dict[str, nn.Module] = {"projector": trainee.projector}
    if stage == 2:
        groups.append({"params": [p for p in trainee.language.parameters() if p.requires_grad], "lr": lr})
        modules["language"] = trainee.language
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))

    def losses(start: int) -> Iterator[tuple[Tensor, str]]:
        for step in range(start, steps):
            yield stage1_step(trainee, step, batch_size) if stage == 1 else stage2_step(trainee, step, mix, seed), ""

    plan: dict[str, object] = {
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "projector_lr": projector_lr,
        "start": digest(trainee.tower, trainee.projector),
        **({"batch_size": batch_size} if stage == 1 else asdict(mix)),
    }
    train(work, f"stage{stage}", modules, optimizer, losses, plan, log_every=log_every, save_every=save_every)
