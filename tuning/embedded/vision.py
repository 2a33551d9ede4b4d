"""Vision pretraining of the embedded checkpoints: a CLIP-architecture tower whose patches encode their object.

The losses act on the layer that LLaVA reads (hidden state -2). A linear head predicts the kind and the colour of the
object at each patch, or background; the same head predicts the kind from the mean over an object's box. Two heads
predict the row and the column of each patch, so that the tower keeps them. The last layer and the class token, which
LLaVA does not read, predict the kinds in the scene. The projector maps single patches, so a loss on averages alone
would not suffice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from tasks.scenes.drawings import KINDS
from tasks.scenes.scene import COLOURS, Scene, Split, make_scene, render
from tuning.embedded.training import train

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, so that the tower can use its image processor
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BACKGROUND = len(KINDS)
GRID = 8  # patches per side
WIDTH = 192
# 112 px: 64 patches of 14 px, six layers
VISION_CONFIG: dict[str, Any] = {
    "image_size": 112,
    "patch_size": 14,
    "hidden_size": WIDTH,
    "intermediate_size": 576,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "projection_dim": WIDTH,
}
_COLOUR_NAMES = tuple(COLOURS)


class SceneBatch(NamedTuple):
    """Scenes as tensors; ``pixels`` are ``batch 3 112 112``, normalised as CLIP's processor does."""

    pixels: Tensor
    kind: Tensor
    """``batch patch``; like ``colour``, with one extra class for background."""
    colour: Tensor
    slot: Tensor
    """``batch patch``: the object of a patch, -1 for none."""
    object_kind: Tensor
    """``batch 4``, -100 for no object."""
    present: Tensor
    """``batch kind``, multi-hot."""
    row: Tensor
    """``batch patch``; like ``column``, counted from 0 at the top left."""
    column: Tensor


def pixels_of(scenes: list[Scene]) -> Tensor:
    """Rendered and normalised pixels, ``batch 3 size size``."""
    raw = np.stack([np.asarray(render(scene)) for scene in scenes])
    scaled = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return (scaled - mean) / std


def scene_batch(scenes: list[Scene]) -> SceneBatch:
    """Pixels and labels of patches; a patch belongs to an object if its centre lies in the object's box."""
    n = len(scenes)
    kind = torch.full((n, GRID * GRID), BACKGROUND)
    colour = torch.full((n, GRID * GRID), len(COLOURS))
    slot = torch.full((n, GRID * GRID), -1)
    object_kind = torch.full((n, 4), -100)
    present = torch.zeros(n, len(KINDS))
    centres = (torch.arange(GRID) + 0.5) * (scenes[0].size / GRID)
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
    place = torch.arange(GRID * GRID).expand(n, -1)
    return SceneBatch(pixels_of(scenes), kind, colour, slot, object_kind, present, place // GRID, place % GRID)


class VisionHeads(nn.Module):
    """The linear heads of pretraining, which do not ship."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.kind = nn.Linear(WIDTH, len(KINDS) + 1)
        self.colour = nn.Linear(WIDTH, len(COLOURS) + 1)
        self.present = nn.Linear(WIDTH, len(KINDS))
        self.row = nn.Linear(WIDTH, GRID)
        self.column = nn.Linear(WIDTH, GRID)


class VisionScores(NamedTuple):
    """Shares of right answers: kind and colour of object patches, kind of boxes, row and column of patches."""

    patch_kind: float
    box_kind: float
    patch_colour: float
    patch_place: float


def _forward(tower: CLIPVisionModel, heads: VisionHeads, batch: SceneBatch) -> tuple[Tensor, VisionScores]:
    out = tower(pixel_values=batch.pixels, output_hidden_states=True)
    patches = heads.norm(out.hidden_states[-2][:, 1:])
    member = F.one_hot(batch.slot + 1, 5)[..., 1:].float()  # batch patch object
    share = member / member.sum(1, keepdim=True).clamp(min=1)
    kind, colour = heads.kind(patches), heads.colour(patches)
    box = heads.kind(torch.einsum("bpo,bpd->bod", share, patches))
    inked = batch.kind != BACKGROUND
    # half of all patches are background, which is easy: at full weight they would dominate the loss
    weight = torch.where(inked, 1.0, 0.25).flatten()

    def entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)  # ignores -100

    kind_loss = (entropy(kind, batch.kind, "none") * weight).mean()
    colour_loss = (entropy(colour, batch.colour, "none") * weight).mean()
    present_loss = F.binary_cross_entropy_with_logits(heads.present(out.pooler_output), batch.present)
    row, column = heads.row(patches), heads.column(patches)
    place_loss = entropy(row, batch.row) + entropy(column, batch.column)
    loss = kind_loss + 0.5 * colour_loss + entropy(box, batch.object_kind) + present_loss + 0.25 * place_loss
    placed = (row.argmax(-1) == batch.row) & (column.argmax(-1) == batch.column)
    right = (
        (kind.argmax(-1) == batch.kind)[inked],
        (box.argmax(-1) == batch.object_kind)[batch.object_kind >= 0],
        (colour.argmax(-1) == batch.colour)[inked],
        placed,
    )
    return loss, VisionScores(*(found.float().mean().item() for found in right))


class _Batches(Dataset[SceneBatch]):
    """Training batches by step."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, step: int) -> SceneBatch:
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        # three scenes in four hold as many drawings as fit: more labels at the same cost
        return scene_batch([make_scene(i, seed=self.seed, n_objects=None if i % 4 == 0 else 4) for i in numbers])


@torch.no_grad()
def evaluate_vision(tower: CLIPVisionModel, heads: VisionHeads, split: Split, *, n: int = 512) -> VisionScores:
    """Scores on ``n`` scenes of ``"test"`` (seen drawings) or ``"unseen"``."""
    tower.eval()
    starts = range(0, n, 64)
    batches = (scene_batch([make_scene(i, split=split) for i in range(j, min(j + 64, n))]) for j in starts)
    scores = [_forward(tower, heads, batch)[1] for batch in batches]
    tower.train()
    return VisionScores(*np.mean(scores, axis=0).tolist())


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
) -> CLIPVisionModel:
    """The trained tower, from the snapshot in ``work`` if there is one."""
    torch.manual_seed(seed)
    tower, heads = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG)), VisionHeads()
    tower.train().to(device)
    heads.to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))

    def losses(start: int) -> Iterator[tuple[Tensor, str]]:
        data = _Batches(batch_size, seed)  # made in a separate process
        for batch in DataLoader(data, sampler=range(start, steps), batch_size=None, num_workers=1, prefetch_factor=4):
            loss, scores = _forward(tower, heads, SceneBatch(*(value.to(device) for value in batch)))
            yield loss, " ".join(f"{name} {value:.3f}" for name, value in scores._asdict().items())

    plan = {"seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr}
    modules = {"tower": tower, "heads": heads}
    train(work, "vision", modules, optimizer, losses, plan, log_every=log_every, save_every=save_every)
    splits: tuple[Split, ...] = ("test", "unseen")
    for split in splits:
        print(f"vision {split}: {evaluate_vision(tower, heads, split, n=n_scored)}", flush=True)
    tower.eval()
    return tower
