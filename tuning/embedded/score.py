"""Score an embedded checkpoint with plain transformers: ``python -m tuning.embedded.score smol``.

Each prompt has one question on a scene that training did not use, answered by greedy generation. A blank picture and
another scene's picture measure whether answers depend on the picture. A caption instead measures what the language
model answers without a picture. Perplexity on a passage of this project measures what tuning changed on ordinary text.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd
import torch
import tyro
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from tyro import conf

from models.loading.configs import EmbeddedName
from models.loading.smol import PARTS, compose
from tasks.example import Example
from tasks.prompts import plain, vicuna_v1
from tasks.scenes.questions import CHANCE, FAMILIES, ask, with_caption
from tasks.scenes.scene import Scene, Split, make_scene, render
from tasks.scoring import accuracy_by_family, score_answer

FIRST_SCORED = 100_000  # scores printed during training use the first scenes of the split
Condition = Literal["seen", "unseen", "blank", "swapped", "text"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


class Loaded(NamedTuple):
    """A checkpoint opened by plain transformers."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def load_plain(folder: Path, *, device: str = "cpu") -> Loaded:
    """The model and processor of a folder, in transformers' own classes."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.to(device)
    processor = LlavaProcessor.from_pretrained(folder, backend="pil")
    processor.tokenizer.padding_side = "left"
    return Loaded(model, processor)


@torch.inference_mode()
def generate(
    loaded: Loaded,
    prompts: Sequence[str],
    pictures: Sequence[Image.Image | None],
    *,
    max_new_tokens: int = 8,
    batch_size: int = 32,
) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    answers: list[str] = []
    for start in tqdm(range(0, len(prompts), batch_size), leave=False, disable=None):
        texts = list(prompts[start : start + batch_size])
        images = [p for p in pictures[start : start + batch_size] if p is not None]
        inputs = loaded.processor(text=texts, images=images or None, padding=True, return_tensors="pt")
        inputs = inputs.to(loaded.model.device)
        out = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[misc]
        new = out[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def _asked(condition: Condition, n: int) -> Iterator[tuple[Example, Image.Image | None]]:
    split: Split = "unseen" if condition == "unseen" else "test"
    for index in range(n):
        scene = make_scene(FIRST_SCORED + index, split=split)
        shown = render(make_scene(FIRST_SCORED + index + n, split=split) if condition == "swapped" else scene)
        if condition == "blank":
            shown = Image.new("RGB", shown.size, (30, 30, 30))
        for example in (ask(scene, family) for family in FAMILIES):
            yield (with_caption(example, scene.caption), None) if condition == "text" else (example, shown)


def score_condition(loaded: Loaded, condition: Condition, *, n: int) -> pd.DataFrame:
    """Accuracy by question family on ``n`` scenes: columns of ``accuracy_by_family`` and ``condition``, ``chance``."""
    asked = list(_asked(condition, n))
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0].question))  # similar lengths need little padding
    prompts = [vicuna_v1(asked[i][0].question, n_images=len(asked[i][0].pictures)) for i in order]
    said = generate(loaded, prompts, [asked[i][1] for i in order])
    scored = [asked[i][0] for i in order]
    scores = [score_answer(text, e.answer, e.family) for text, e in zip(said, scored, strict=True)]
    table = accuracy_by_family(scores, [e.family for e in scored])
    table["condition"] = condition
    table["chance"] = [CHANCE.get(f, math.nan) for f in table["family"]]
    return table


def score_captions(loaded: Loaded, *, n: int, stage: Literal[1, 2]) -> dict[str, float]:
    """Share of objects whose kind the caption names: objects of its own picture, and of another scene's (chance).

    The prompt is ``plain`` for stage 1, a request for a caption for stage 2.
    """
    scenes = [make_scene(FIRST_SCORED + i, split="test") for i in range(n)]
    prompt = plain("")[:-1] if stage == 1 else vicuna_v1("Provide a one-sentence caption for the provided image.")
    said = generate(loaded, [prompt] * n, [render(s) for s in scenes], max_new_tokens=60)
    words = [text.lower().split("\n")[0].replace(",", " ").replace(".", " ").split() for text in said]

    def named(shown: Sequence[Scene]) -> float:
        hits = [thing.kind in found for found, scene in zip(words, shown, strict=True) for thing in scene.objects]
        return sum(hits) / len(hits)

    return {"own": named(scenes), "swapped": named([*scenes[1:], scenes[0]]), "n": n}


@torch.inference_mode()
def perplexity(loaded: Loaded) -> float:
    """Perplexity of models/embedded/passage.txt, without a picture."""
    ids = loaded.processor.tokenizer((PARTS / "passage.txt").read_text(encoding="utf-8"), return_tensors="pt").input_ids
    ids = ids.to(loaded.model.device)
    logits = loaded.model(input_ids=ids).logits
    return math.exp(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item())


def main(
    name: conf.Positional[EmbeddedName] = "smol",
    n: int = 100,
    conditions: tuple[Condition, ...] = CONDITIONS,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Score an embedded checkpoint and print accuracy by question family.

    Args:
        name: The checkpoint.
        n: Scenes per condition; each has one question of every family.
        conditions: What the model is shown, separated by spaces.
        device: cpu or cuda.
        out: Write the record (JSON) here.
    """
    loaded = load_plain(compose(name), device=device)
    wanted = [c for c in CONDITIONS if c in conditions] if name == "smol" else []
    tables = [score_condition(loaded, c, n=n) for c in wanted]
    record = {
        "model": name,
        "scenes": n,
        "families": list(FAMILIES),
        "accuracy": pd.concat(tables).to_dict("records") if tables else [],
        "caption_kinds": score_captions(loaded, n=n, stage=2 if name == "smol" else 1),
        "perplexity": perplexity(loaded),
    }
    if tables:
        table = pd.concat(tables).pivot_table(index="family", columns="condition", values="score")[wanted]
        print(f"accuracy of {name}, {n} scenes a column")
        print(table.assign(chance=table.index.map(CHANCE)).to_string(float_format="{:.3f}".format))
    for key in ("caption_kinds", "perplexity"):
        print(f"{key}: {record[key]}")
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
