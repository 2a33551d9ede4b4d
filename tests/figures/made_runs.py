"""Run directories made up for tests of the report, in the format that the commands write."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

CLASSES = {"kind": ["cat", "dog", "taxi"], "colour": ["blue", "red"]}
HOSTILE = (
    """Is <b>"this"</b> & that 'one' </script><script>window.hacked = 1</script>"""
    """<img src=x onerror="window.hacked=1"><!-- \u2028?"""
)


def sites(n_vision: int = 3, n_language: int = 4) -> list[dict[str, Any]]:
    """Rows of part, site, layer, name and depth, in the order of the forward pass."""
    found: list[dict[str, Any]] = [
        {"part": "vision_tower", "site": f"vision_encoder.encoder_layers.{layer}.hook_resid_post", "layer": layer,
         "name": "resid_post", "depth": (layer + 1) / n_vision}
        for layer in range(n_vision)
    ]  # fmt: skip
    found += [
        {"part": "projector", "site": f"vision_projector.{site}", "layer": None, "name": name, "depth": depth}
        for site, name, depth in (("hook_in", "in", 0.0), ("hook_out", "out", 1.0))
    ]
    found.append(
        {"part": "language_model", "site": "blocks.0.hook_resid_pre", "layer": 0, "name": "resid_pre", "depth": 0.0}
    )
    found += [
        {"part": "language_model", "site": f"blocks.{layer}.hook_resid_post", "layer": layer, "name": "resid_post",
         "depth": (layer + 1) / n_language}
        for layer in range(n_language)
    ]  # fmt: skip
    return found


def write_manifest(folder: Path, kind: str, **entries: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"kind": f"laccolith {kind}", "format": 1, **entries}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def write_probe_run(
    folder: Path, *, n_maps: int = 3, grid: int = 8, where: Sequence[dict[str, Any]] | None = None, seed: int = 0
) -> Path:
    """A probe sweep of two targets; its maps are noise, and so is what it found."""
    rng = np.random.default_rng(seed)
    where = sites() if where is None else where
    write_manifest(
        folder, "probe-sweep", settings={"seed": 0, "note": HOSTILE}, model={"id": "smol"}, data={"name": "scenes"}
    )
    rows: list[dict[str, Any]] = []
    for target, classes in CLASSES.items():
        for site in [*where, {"part": "pixels", "site": "pixels", "layer": None, "name": "pixels", "depth": 0.0}]:
            for split in ("cv", "unseen"):
                score = float(rng.uniform(0.3, 0.9))
                controlled = split == "cv"
                rows.append(
                    {
                        "model": "smol", **site, "tokens": "object", "pool": "mean", "target": target,
                        "probe": "logistic", "metric": "balanced_accuracy", "split": split, "score": score,
                        "lower": score - 0.1 * float(rng.random()), "upper": score + 0.05,
                        "control": float(rng.uniform(0.1, 0.3)) if controlled else None,
                        "selectivity": 0.4 if controlled else None, "chance": 1 / len(classes),
                        "shuffled": 0.31 if controlled else None, "random_init": 0.4 if controlled else None,
                        "accuracy": score, "n": 60 if controlled else 20, "p": 0.001, "q": 0.002,
                    }
                )  # fmt: skip
    results = pd.DataFrame(rows)
    results["layer"] = results["layer"].astype("Int64")
    results.to_csv(folder / "results.csv", index=False)
    results.to_parquet(folder / "results.parquet", index=False)
    if n_maps:
        _write_maps(folder, where, n_maps, grid, rng)
    return folder


def _write_maps(
    folder: Path, where: Sequence[dict[str, Any]], n_maps: int, grid: int, rng: np.random.Generator
) -> None:
    names = [f"scene-{k}" for k in range(n_maps)]
    shape = len(where), n_maps, grid, grid
    site, example, row, col = (axis.ravel() for axis in np.indices(shape))
    tables = []
    for target, classes in CLASSES.items():
        columns = {key: _take([entry[key] for entry in where], site) for key in where[0]}
        table = pd.DataFrame(
            {
                "target": target, **columns, "example": _take(names, example), "row": row, "col": col,
                "p_true": rng.random(len(row)), "predicted": _take(classes, rng.integers(len(classes), size=len(row))),
            }
        )  # fmt: skip
        table["layer"] = table["layer"].astype("Int64")
        tables.append(table)
    (folder / "maps").mkdir(exist_ok=True)
    told = []
    for k, name in enumerate(names):
        pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8) // 4 + np.uint8(20)
        Image.fromarray(pixels).save(folder / "maps" / f"{k}.png")
        told.append(
            {
                "k": k, "example": name, "question": HOSTILE if k == 0 else f"What is in scene {k}?", "answer": "cat",
                "labels": {"kind": "cat", "colour": "red"}, "boxes": {"cat": [0.0, 0.0, 0.5, 0.25]}, "focus": "cat",
                "classes": CLASSES,
            }
        )  # fmt: skip
    (folder / "maps.json").write_text(json.dumps(told), encoding="utf-8")
    pd.concat(tables).to_parquet(folder / "maps.parquet", index=False)


def _take(values: Sequence[Any], places: Any) -> "pd.Series[Any]":
    return pd.Series(values).take(places).reset_index(drop=True)


def patch_rows(
    tokens: Sequence[str],
    *,
    heads: Sequence[str | None] = (None,),
    unchanged: str = "corrupt",
    part: str = "language_model",
    seed: int = 1,
) -> pd.DataFrame:
    """The table of a patch sweep over four layers with two metrics."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(4):
        for group in tokens:
            for head in heads:
                for metric, high in (("logit_difference", 8.0), ("accuracy", 1.0)):
                    recovered = float(rng.uniform(-0.2, 1.0))
                    rows.append(
                        {
                            "model": "smol", "op": "patch" if unchanged == "corrupt" else "knockout",
                            "site": f"blocks.{layer}.hook_resid_pre", "layer": layer, "window": str(layer),
                            "tokens": group, "head": head, "part": part, "name": "resid_pre",
                            "metric": metric, "value": high * recovered, "lower": high * recovered - 0.2,
                            "upper": high * recovered + 0.3, "clean": high, "corrupt": 0.0, "unchanged": unchanged,
                            "recovered": recovered, "recovered_lower": recovered - 0.05,
                            "recovered_upper": recovered + 0.1, "n": 40, "n_undefined": 0, "p": 0.01,
                            "p_adjusted": 0.01 if recovered > 0.5 else 0.2,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def write_patch_run(folder: Path, results: pd.DataFrame) -> Path:
    write_manifest(folder, "patch-sweep", settings={"seed": 0, "data": "scenes"}, model={"id": "smol"})
    results.to_csv(folder / "results.csv", index=False)
    results.to_parquet(folder / "results.parquet", index=False)
    pairs = {"id": ["0"], "question": ["What colour?"], "answer": ["red"], "foil": ["blue"], "batch": [0]}
    pd.DataFrame(pairs).to_parquet(folder / "pairs.parquet", index=False)
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


def write_compare_run(folder: Path) -> Path:
    write_manifest(folder, "layerwise-finetune compare", settings={"model": "smol-stage1", "seeds": [0, 1]})
    rows = []
    for number, plan in enumerate(("start", "full", "middle band", "LoRA on the band")):
        for condition, families in (("seen", ("what", "all")), ("unseen", ("what", "all")), ("passage", ("text",))):
            for family in families:
                rows.append(
                    {
                        "plan": plan, "layers": "none" if plan == "start" else "2-4", "train": "projector",
                        "method": "full", "trainable": 1000 * number,
                        "flops_ratio": None if plan == "start" else 0.5 + number / 10,
                        "closed_form_ratio": None, "step_time_ratio": None if plan == "start" else 0.6 + number / 10,
                        "peak_memory": 10**8, "optimizer_bytes": 10**6, "condition": condition, "family": family,
                        "metric": "accuracy", "score": 0.25 * number, "score_lower": 0.2 * number,
                        "score_upper": 0.26 * number, "retention": 0.3 * number, "lower": 0.25 * number,
                        "upper": 0.33 * number, "n": 50, "seeds": 2, "interval": "percentile bootstrap",
                    }
                )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "compare.csv", index=False)
    return folder
