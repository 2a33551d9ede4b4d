"""Score an embedded checkpoint with plain transformers: ``python -m tuning.embedded.score smol``.

One question a prompt, greedy generation, scenes the model never saw. A blank picture and the picture of another scene
show whether it looks; the caption as text shows what its language model can do without looking; perplexity on a passage
written for this project shows what tuning did to ordinary text.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from models.loading.configs import EMBEDDED, EmbeddedName
from models.loading.smol import PARTS, compose
from tasks.example import Example
from tasks.prompts import plain, vicuna_v1
from tasks.scenes.drawings import KINDS
from tasks.scenes.questions import CHANCE, FAMILIES, ask, with_caption
from tasks.scenes.scene import Scene, Split, make_scene, render
from tasks.scoring import accuracy_by_family, score_answer

# Scenes that no development run has looked at: the scores printed during training use the first of the split.
FIRST_SCORED = 100_000
Condition = Literal["seen", "unseen", "blank", "swapped", "text"]
CONDITIONS: tuple[Condition, ...] = ("seen", "unseen", "blank", "swapped", "text")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Loaded(NamedTuple):
    """A checkpoint as plain transformers opens it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


@dataclass(frozen=True)
class CaptionScores:
    """Share of objects whose kind the caption names, of its own picture and of another scene's (chance)."""

    kinds: float
    kinds_swapped: float
    n: int


def load_plain(folder: Path, *, device: str = "cpu") -> Loaded:
    """The model and processor of a folder, by transformers' own classes."""
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
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0].question))  # alike lengths pad little
    prompts = [vicuna_v1(asked[i][0].question, n_images=len(asked[i][0].pictures)) for i in order]
    said = generate(loaded, prompts, [asked[i][1] for i in order])
    scored = [asked[i][0] for i in order]
    scores = [score_answer(text, e.answer, e.family) for text, e in zip(said, scored, strict=True)]
    table = accuracy_by_family(scores, [e.family for e in scored])
    table["condition"] = condition
    table["chance"] = [CHANCE.get(f, math.nan) for f in table["family"]]
    return table


def score_captions(loaded: Loaded, *, n: int, stage: Literal[1, 2]) -> CaptionScores:
    """How often captions name the objects of their scene, with the prompt of the stage."""
    scenes = [make_scene(FIRST_SCORED + i, split="test") for i in range(n)]
    prompt = plain("")[:-1] if stage == 1 else vicuna_v1("Provide a one-sentence caption for the provided image.")
    said = generate(loaded, [prompt] * n, [render(s) for s in scenes], max_new_tokens=60)

    def named(texts: Sequence[str], shown: Sequence[Scene]) -> float:
        hits = [
            o.kind in text.lower().split("\n")[0].replace(",", " ").replace(".", " ").split()
            for text, scene in zip(texts, shown, strict=True)
            for o in scene.objects
        ]
        return sum(hits) / len(hits)

    return CaptionScores(named(said, scenes), named(said, [*scenes[1:], scenes[0]]), n)


@torch.inference_mode()
def perplexity(loaded: Loaded) -> float:
    """The exponential of the mean negative log-likelihood per token of models/embedded/passage.txt, text alone."""
    ids = loaded.processor.tokenizer((PARTS / "passage.txt").read_text(), return_tensors="pt").input_ids
    ids = ids.to(loaded.model.device)
    logits = loaded.model(input_ids=ids).logits
    return math.exp(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item())


@torch.inference_mode()
def word_alignment(loaded: Loaded, *, n: int = 32) -> dict[str, float]:
    """Mean cosine of object patches to the word embedding of their kind, by depth of the language model.

    ``resid_pre 0`` is the projector's output. Beside each stands the cosine to a random other kind: only the difference
    speaks of alignment, for residual streams share a direction.
    """
    from tuning.embedded.vision import scene_batch

    scenes = [make_scene(FIRST_SCORED + i, split="test") for i in range(n)]
    labels = scene_batch(scenes).kind.flatten()
    tokenizer = loaded.processor.tokenizer
    words = loaded.model.get_input_embeddings().get_parameter("weight")
    kinds = torch.stack([words[tokenizer(f" {kind}").input_ids[0]] for kind in KINDS])
    inputs = loaded.processor(text=[vicuna_v1("?")] * n, images=[render(s) for s in scenes], return_tensors="pt")
    out = loaded.model(**inputs.to(loaded.model.device), output_hidden_states=True)
    at = inputs["input_ids"] == loaded.model.config.image_token_index
    inked = labels < len(KINDS)
    result = {}
    for layer in range(0, len(out.hidden_states) - 1, 5):  # the last entry is already normed
        tokens = out.hidden_states[layer][at][inked]
        right, other = kinds[labels[inked]], kinds[(labels[inked] + 7) % len(KINDS)]
        own = F.cosine_similarity(tokens, right, dim=-1).mean()
        foil = F.cosine_similarity(tokens, other, dim=-1).mean()
        result[f"layer {layer}"] = round(float(own), 4)
        result[f"layer {layer}, other kind"] = round(float(foil), 4)
    return result


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="smol or smol-stage1.")] = "smol",
    n: Annotated[int, typer.Option(help="Scenes a condition; each is asked one question of every family.")] = 100,
    conditions: Annotated[str, typer.Option(help="Comma-separated: seen, unseen, blank, swapped, text.")] = ",".join(
        CONDITIONS
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the record (JSON) here.")] = None,
) -> None:
    """Score an embedded checkpoint and print accuracy by question family."""
    unknown = set(conditions.split(",")) - set(CONDITIONS)
    if name not in EMBEDDED or unknown:
        print(
            f"name must be one of {', '.join(EMBEDDED)} and conditions of {', '.join(CONDITIONS)}, "
            f"got {name!r} and {conditions!r}.",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    embedded: EmbeddedName = "smol-stage1" if name == "smol-stage1" else "smol"
    loaded = load_plain(compose(embedded), device=device)
    wanted = [c for c in CONDITIONS if c in conditions.split(",")] if embedded == "smol" else []
    tables = [score_condition(loaded, c, n=n) for c in wanted]
    captions = score_captions(loaded, n=n, stage=2 if embedded == "smol" else 1)
    record = {
        "model": embedded,
        "scenes": n,
        "families": list(FAMILIES),
        "accuracy": pd.concat(tables).to_dict("records") if tables else [],
        "caption_kinds": {"own": captions.kinds, "swapped": captions.kinds_swapped, "n": captions.n},
        "perplexity": perplexity(loaded),
        "word_alignment": word_alignment(loaded),
    }
    console = Console()
    if tables:
        grid = Table("family", *wanted, "chance", title=f"{embedded}: accuracy, {n} scenes a column")
        pivot = pd.concat(tables).pivot_table(index="family", columns="condition", values="score")
        for family, row in pivot.iterrows():
            chance = CHANCE.get(str(family))  # type: ignore[call-overload]
            grid.add_row(str(family), *(f"{row[c]:.3f}" for c in wanted), f"{chance:.3f}" if chance else "")
        console.print(grid)
    console.print(f"captions name {captions.kinds:.3f} of kinds (another scene's: {captions.kinds_swapped:.3f})")
    console.print(f"perplexity of the passage: {record['perplexity']:.2f}")
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app()
