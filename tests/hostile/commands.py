"""The commands of the campaign: a line that runs each in a second, and which of its inputs can be spoilt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROBE, PATCH, TUNE, COST, FIGURES = "probe-sweep", "patch-sweep", "layerwise-finetune", "inference-cost", "figures"
CAPTURE, GEOMETRY, TRANSFER = "capture-activations", "geometry-sweep", "transfer-sweep"
LENS, BENCHMARK = "lens-sweep", "benchmark-eval"
FOUR = (PROBE, PATCH, TUNE, COST)
NEWER = (CAPTURE, GEOMETRY, TRANSFER, LENS, BENCHMARK)
WORD = "a" * 10_000
COUNTS = ("0", "-1", "1000000000000", "1e3", "nan", "9" * 400, "three", "")
LAYERS = ("0-999999999999", "99", "-5", "a", "", "0,0")
_SHARD = "blocks.0.hook_resid_post/00000.safetensors"


@dataclass(frozen=True)
class Inputs:
    """What a command reads.

    Args:
        line: Arguments without ``--model`` and ``--out``.
        table: Its data file, with one JSON object a line (a JSON list for tuning); "" for none.
        fields: Fields of the data file.
        options: Values for options, most of them wrong.
        read: Options that name a file or folder.
        own: Files of its run.
        stored: Files of the run that it reads.
        model: False if no model runs.
    """

    line: str
    table: str = ""
    fields: Sequence[str] = ()
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read: Sequence[str] = ("--model", "--data", "--images", "--config")
    own: Sequence[str] = ()
    stored: Sequence[str] = ()
    model: bool = True


_STORED = ("manifest.json", "examples.parquet", f"activations/{_SHARD}", f"caption_activations/{_SHARD}")
INPUTS: dict[str, Inputs] = {
    PROBE: Inputs(
        "--data rows.jsonl --images pics --target colour --site resid_post --layers 0 --no-controls --folds 2 --maps 0",
        "rows.jsonl",
        ("colour", "question", "image", "id"),
        {
            "--limit": COUNTS, "--batch-size": ("0", "-1", "x"), "--folds": ("0", "1", "1000000000000"),
            "--maps": ("-1", "1000000000000"), "--seed": ("-1", "1" * 30),
            "--layers": ("0-999999999999", "-5", "a", "", "0,0"),
            "--site": ("nowhere", "blocks.0.hook_x", "pattern", "vision:", WORD),
            "--target": ("nothing", "../../x", ""), "--tokens": ("none", "last\x1b[0m"),
        },
        own=(f"activations/{_SHARD}", "results.parquet", "examples.parquet", "probes.safetensors", "manifest.json"),
    ),
    PATCH: Inputs(
        "--data pairs.jsonl --images pics --site resid_post --layers 0",
        "pairs.jsonl",
        ("answer", "question", "clean", "id"),
        {
            "--limit": COUNTS, "--batch-size": ("0", "-1"), "--heads": ("0-999999999999", "-1", "x"),
            "--layers": ("0-999999999999", "99", ""), "--tokens": ("nothing", "image->", "->", "image->last->image"),
            "--window": ("0", "-1", "1000000000000"), "--site": ("nowhere", ""), "--seed": ("-1",),
        },
        own=("cells/00000.safetensors", "results.parquet", "values.parquet", "pairs.parquet"),
    ),
    TUNE: Inputs(
        "--data turns.json --images pics --layers last:1 --train none --steps 1 --batch-size 2 --max-length 256",
        "turns.json",
        ("value", "image", "id"),
        {
            "--steps": ("-1", "1000000000000", "1.5"), "--epochs": ("inf", "nan", "-1", "1e300"),
            "--lr": ("nan", "-1", "inf"), "--batch-size": ("0", "-1", "1000000000000"),
            "--grad-accum": ("0", "1000000000000"), "--train": ("nothing", ""), "--save-every": ("-1",),
            "--layers": ("0-999999999999", "none", "auto:nowhere", "", "last:0"), "--limit": COUNTS[:4],
            "--max-length": ("0", "1", "1000000000000"), "--token-plan": ("leave@99", "x", "keep:9@1:random@0"),
        },
        own=("checkpoint-1/weights.safetensors", "checkpoint-1/optimizer.safetensors", "checkpoint-1/state.json",
             "model.safetensors", "cost.json"),
    ),
    COST: Inputs(
        "--data questions.jsonl --images pics --plans leave@1 --rounds 0 --new-tokens 2",
        "questions.jsonl",
        ("answer", "image", "id"),
        {
            "--limit": COUNTS[:5], "--rounds": ("-1", "1000000000000"), "--batch-size": ("0", "-1"),
            "--new-tokens": ("0", "-1", "1000000000000"),
            "--plans": ("", "leave@999999999999", "keep:0@1:attention", "keep:nan@1:uniform", "auto:nowhere",
                        "," * 500),
        },
        own=("batches/00000.parquet", "answers.parquet", "results.parquet"),
    ),
    CAPTURE: Inputs(
        "--data captions.jsonl --images pics --condition both --site resid_post --layers 0 --tokens last",
        "captions.jsonl",
        ("caption", "boxes", "focus", "id"),
        {
            "--limit": COUNTS, "--batch-size": ("0", "-1", "1000000000000"), "--condition": ("nothing", ""),
            "--layers": LAYERS, "--site": ("nowhere", "vision:", WORD), "--tokens": ("none", "last\x1b[0m", ""),
            "--pool": ("median", ""), "--store-dtype": ("int8", ""), "--seed": ("-1", "1" * 30),
            "--transfer-limit": COUNTS[:3],
        },
        own=(f"activations/{_SHARD}", f"caption_activations/{_SHARD}", "examples.parquet", "results.parquet",
             "manifest.json"),
    ),
    GEOMETRY: Inputs(
        "--activations stored --no-map --tokens last --k 3 --mutual-k 3 --rank 1,2 --largest 2 --draws 4 --shuffles 19",
        options={
            "--rank": ("0,1", "2,1", "a", "1", "1,2,3", "1000000000000,2000000000000", ""),
            "--k": ("0", "-1", "1000000000000", "x"), "--mutual-k": ("0", "1000000000000"),
            "--largest": ("0", "1", "1000000000000"), "--limit": COUNTS, "--draws": ("0", "1", "-1", "1000000000000"),
            "--shuffles": ("0", "-1", "1000000000000"), "--layers": LAYERS, "--site": ("nowhere", WORD),
            "--tokens": ("nothing", "image=", "=", "sample:", "last=last=last", "sample:last"),
            "--target": ("nothing", "../../x", ""), "--device": ("nothing", "cuda:99", "meta"),
        },
        read=("--activations", "--against", "--random", "--config"),
        own=("layers/0-0-0.safetensors", "results.parquet", "findings.csv", "manifest.json"),
        stored=_STORED,
        model=False,
    ),
    TRANSFER: Inputs(
        "--activations stored --target colour --folds 2 --image-tokens last --caption-tokens last",
        options={
            "--target": ("nothing", "../../x", ""), "--layers": LAYERS, "--site": ("nowhere", WORD),
            "--folds": ("0", "1", "-1", "1000000000000"), "--image-tokens": ("nothing", "object", ""),
            "--caption-tokens": ("image", ""), "--probe": ("nothing",), "--seed": ("-1",),
            "--device": ("nothing", "cuda:99", "meta"), "--standardise": ("none",),
        },
        read=("--activations", "--labels", "--config"),
        own=("parts/caption-last-blocks.0.hook_resid_post.parquet", "results.parquet", "manifest.json"),
        stored=_STORED,
        model=False,
    ),
    LENS: Inputs(
        "--data captions.jsonl --images pics --target colour --layers 0 --no-controls --shown 1",
        "captions.jsonl",
        ("colour", "boxes", "focus", "image", "id"),
        {
            "--lens": ("nothing", "tuned:nowhere", "tuned:", "jacobian:rows.jsonl", "jacobian:pics", "latent:pics", ""),
            "--limit": COUNTS, "--layers": LAYERS, "--target": ("nothing", "../../x", ""),
            "--shown": ("-1", "1000000000000"), "--top-k": ("0", "-1", "1000000000000"), "--split": ("nothing", ""),
            "--corpus-tokens": ("0", "-1", "1000000000000"), "--seed": ("-1",),
        },
        read=("--model", "--data", "--images", "--words", "--config"),
        own=("shards/model-scores-00000.parquet", "scores.parquet", "results.parquet", "examples.json",
             "pictures/0.png"),
    ),
    BENCHMARK: Inputs(
        "--benchmark pope=pope --images pics --new-tokens 2",
        "pope/llava_pope_test.jsonl",
        ("text", "image", "question_id", "category"),
        {
            "--benchmark": ("pope", "=pope", "pope=", "nothing=pope", "pope=../../x", "gqa=pope", "pope=pope=pope"),
            "--limit": COUNTS, "--new-tokens": ("0", "-1", "1000000000000"), "--seed": ("-1",),
            "--batch-size": ("0", "-1", "1000000000000"), "--token-plan": ("leave@99", "x", "keep:9@1:random@0"),
        },
        read=("--model", "--questions", "--images", "--labels", "--config"),
        own=("parts/pope.0.jsonl", "answers/pope.jsonl", "results.parquet", "manifest.json"),
    ),
}  # fmt: skip


def line(command: str, checkpoint: Path) -> list[str]:
    """The arguments of a command that runs on the unchanged inputs in a second."""
    if command == FIGURES:
        return ["run"]
    inputs = INPUTS[command]
    return [*(["--model", str(checkpoint)] if inputs.model else []), *inputs.line.split(), "--out", "run"]
