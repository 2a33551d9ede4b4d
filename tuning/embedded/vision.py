"""Vision pretraining of the embedded checkpoints: a CLIP-architecture tower whose patches encode their object.

The objective sits on the layer that LLaVA reads (hidden state -2): every patch names the kind and colour of the object
whose box holds it, or says background; the mean over a box names it too (the same linear head, so both agree). Every
patch also names its own row and column: nothing else asks for place, and a tower that is never asked forgets it. The
last layer and the class token, which LLaVA does not read, learn which kinds the scene holds. A projector maps single
patches, so a tower that is only good on averages would leave it nothing to map.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from tasks.scenes.drawings import KINDS
from tasks.scenes.scene import COLOURS, Scene, make_scene, render
from tuning.embedded.snapshot import check_plan, load_snapshot, save_snapshot

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, so that its image processor serves the tower
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BACKGROUND = len(KINDS)
_COLOUR_NAMES = tuple(COLOURS)


def vision_config() -> CLIPVisionConfig:
    """CLIP's architecture at 112 px: 64 patches of 14 px, six layers of width 192."""
    return CLIPVisionConfig(
        image_size=112,
        patch_size=14,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=6,
        projection_dim=192,
    )


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as tensors.

    ``pixels``: ``batch 3 112 112``, normalised as CLIP's processor does. ``kind`` and ``colour``: ``batch patch``, with
    one extra class for background. ``slot``: ``batch patch``, which object a patch belongs to, -1 for none.
    ``object_kind``: ``batch 4``, -100 where there is no such object. ``present``: ``batch kind``, multi-hot. ``row``
    and ``column``: ``batch patch``, from 0 at the top left.
    """

    pixels: Tensor
    kind: Tensor
    colour: Tensor
    slot: Tensor
    object_kind: Tensor
    present: Tensor
    row: Tensor
    column: Tensor


def pixels_of(scenes: list[Scene]) -> Tensor:
    """Rendered and normalised pixels, ``batch 3 size size``."""
    raw = np.stack([np.asarray(render(scene)) for scene in scenes])
    scaled = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return (scaled - mean) / std


def scene_batch(scenes: list[Scene], *, grid: int = 8) -> SceneBatch:
    """Pixels and per-patch labels; a patch belongs to an object when its centre lies in the object's box."""
    n = len(scenes)
    kind = torch.full((n, grid * grid), BACKGROUND)
    colour = torch.full((n, grid * grid), len(COLOURS))
    slot = torch.full((n, grid * grid), -1)
    object_kind = torch.full((n, 4), -100)
    present = torch.zeros(n, len(KINDS))
    step = scenes[0].size / grid
    centres = (torch.arange(grid) + 0.5) * step
    for row, scene in enumerate(scenes):
        for index, thing in enumerate(scene.objects):
            inside_x = (centres >= thing.box.left) & (centres < thing.box.right)
            inside_y = (centres >= thing.box.top) & (centres < thing.box.bottom)
            inside = (inside_y[:, None] & inside_x[None, :]).flatten()
            kind[row, inside] = KINDS.index(thing.kind)
            colour[row, inside] = _COLOUR_NAMES.index(thing.colour)
            slot[row, inside] = index
            object_kind[row, index] = KINDS.index(thing.kind)
            present[row, KINDS.index(thing.kind)] = 1
    place = torch.arange(grid * grid).expand(n, -1)
    return SceneBatch(pixels_of(scenes), kind, colour, slot, object_kind, present, place // grid, place % grid)


class VisionHeads(nn.Module):
    """The linear heads of pretraining, which are not kept."""

    def __init__(self, width: int, *, grid: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.present = nn.Linear(width, len(KINDS))
        self.row = nn.Linear(width, grid)
        self.column = nn.Linear(width, grid)


@dataclass(frozen=True)
class VisionScores:
    """Shares of right answers: kind and colour per object patch, kind per box mean, row with column per patch."""

    patch_kind: float
    box_kind: float
    patch_colour: float
    patch_place: float


def _forward(tower: CLIPVisionModel, heads: VisionHeads, batch: SceneBatch) -> tuple[Tensor, VisionScores]:
    out = tower(pixel_values=batch.pixels, output_hidden_states=True)
    patches = heads.norm(out.hidden_states[-2][:, 1:])
    kind_logits, colour_logits = heads.kind(patches), heads.colour(patches)
    member = F.one_hot(batch.slot + 1, 5)[..., 1:].float()  # batch patch object
    share = member / member.sum(1, keepdim=True).clamp(min=1)
    box_logits = heads.kind(torch.einsum("bpo,bpd->bod", share, patches))
    inked = batch.kind != BACKGROUND
    # background is easy and half of all patches: a quarter of the weight keeps it from drowning the kinds
    weight = torch.where(inked, 1.0, 0.25).flatten()
    kind_loss = (F.cross_entropy(kind_logits.flatten(0, 1), batch.kind.flatten(), reduction="none") * weight).mean()
    colour_loss = (
        F.cross_entropy(colour_logits.flatten(0, 1), batch.colour.flatten(), reduction="none") * weight
    ).mean()
    box_loss = F.cross_entropy(box_logits.flatten(0, 1), batch.object_kind.flatten(), ignore_index=-100)
    present_loss = F.binary_cross_entropy_with_logits(heads.present(out.pooler_output), batch.present)
    row_logits, column_logits = heads.row(patches), heads.column(patches)
    place_loss = F.cross_entropy(row_logits.flatten(0, 1), batch.row.flatten()) + F.cross_entropy(
        column_logits.flatten(0, 1), batch.column.flatten()
    )
    placed = (row_logits.argmax(-1) == batch.row) & (column_logits.argmax(-1) == batch.column)
    real = batch.object_kind >= 0
    scores = VisionScores(
        (kind_logits.argmax(-1) == batch.kind)[inked].float().mean().item(),
        (box_logits.argmax(-1) == batch.object_kind)[real].float().mean().item(),
        (colour_logits.argmax(-1) == batch.colour)[inked].float().mean().item(),
        placed.float().mean().item(),
    )
    return kind_loss + 0.5 * colour_loss + box_loss + present_loss + 0.25 * place_loss, scores


class _Scenes(IterableDataset[SceneBatch]):
    def __init__(self, start: int, stop: int, batch_size: int, seed: int) -> None:
        self.start, self.stop, self.batch_size, self.seed = start, stop, batch_size, seed

    def __iter__(self) -> Iterator[SceneBatch]:
        for step in range(self.start, self.stop):
            first = step * self.batch_size
            # three scenes in four are full: as many drawings as a picture holds, at the cost of one picture
            yield scene_batch(
                [
                    make_scene(i, seed=self.seed, n_objects=None if i % 4 == 0 else 4)
                    for i in range(first, first + self.batch_size)
                ]
            )


def scene_batches(start: int, stop: int, batch_size: int, seed: int) -> Iterator[SceneBatch]:
    """Batches ``start`` to ``stop`` of the training split, made in a process of their own."""
    return iter(DataLoader(_Scenes(start, stop, batch_size, seed), batch_size=None, num_workers=1, prefetch_factor=4))


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: 4 % warm-up, flat, then a linear fall over the last 40 %."""
    return min((step + 1) / (0.04 * steps), 1.0, max(0.0, (steps - step) / (0.4 * steps)))


@torch.no_grad()
def evaluate_vision(tower: CLIPVisionModel, heads: VisionHeads, split: str, *, n: int = 512) -> VisionScores:
    """Scores on ``n`` scenes of ``"test"`` (seen drawings) or ``"unseen"``."""
    tower.eval()
    parts = [
        _forward(tower, heads, scene_batch([make_scene(i, split=split) for i in range(j, min(j + 64, n))]))[1]  # type: ignore[arg-type]
        for j in range(0, n, 64)
    ]
    tower.train()
    return VisionScores(*(float(np.mean([getattr(p, f) for p in parts])) for f in VisionScores.__annotations__))


def pretrain_vision(
    work: Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    lr: float = 1.2e-3,
    device: str = "cpu",
    log_every: int = 25,
    save_every: int = 100,
    n_scored: int = 512,
    on_step: Callable[[int], None] | None = None,
) -> CLIPVisionModel:
    """The trained tower; a snapshot in ``work`` is continued, and a finished one is returned as it is."""
    torch.manual_seed(seed)
    tower, heads = CLIPVisionModel(vision_config()), VisionHeads(192)
    tower.train().to(device)
    heads.to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    optimizers = {"adamw": optimizer}
    modules = {"tower": tower, "heads": heads}
    plan = {"seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr}
    facts = load_snapshot(work / "vision", modules, optimizers) or {"step": 0, "seconds": 0.0}
    check_plan(facts, plan, work / "vision")
    start, spent, began = int(str(facts["step"])), float(str(facts["seconds"])), time.time()
    for step, batch in enumerate(scene_batches(start, steps, batch_size, seed), start):
        moved = SceneBatch(*(getattr(batch, f).to(device) for f in SceneBatch.__annotations__))
        loss, scores = _forward(tower, heads, moved)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"loss must be finite, got {loss.item()} at step {step}. Lower lr and start again."
            )
        now = spent + time.time() - began
        if step % log_every == 0 or step == steps - 1:
            print(
                f"vision {step}/{steps} loss {loss.item():.3f} patch {scores.patch_kind:.3f} box {scores.box_kind:.3f}"
                f" colour {scores.patch_colour:.3f} place {scores.patch_place:.3f} {now:.0f} s",
                flush=True,
            )
        if (step + 1) % save_every == 0 or step == steps - 1:
            save_snapshot(work / "vision", modules, optimizers, {"step": step + 1, "seconds": now, "plan": plan})
        if on_step:
            on_step(step + 1)
    for split in ("test", "unseen"):
        print(f"vision {split}: {evaluate_vision(tower, heads, split, n=n_scored)}", flush=True)
    tower.eval()
    return tower
