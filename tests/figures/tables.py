"""Small made tables of every kind of run, for the tests of the figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tuning.scoring.retention import INTERVAL

PLANS = {
    "start": "none", "full": "0-7", "middle band": "2-4", "last": "5-7", "LoRA on the band": "2-4",
    "projector only": "none",
}  # fmt: skip


def probe_table(n_vision: int = 6, n_layers: int = 12, targets: Sequence[str] = ("kind", "count")) -> pd.DataFrame:
    """Scores that rise by 0.02 a site, in the order of the forward pass; 0.1 less on the transfer split."""
    sites: list[tuple[str, int | None, str, float]] = [
        *(("vision_tower", i, "resid_post", (i + 1) / n_vision) for i in range(n_vision)),
        *(("projector", None, stage, i / 3) for i, stage in enumerate(("in", "linear_1", "act", "out"))),
        ("language_model", 0, "resid_pre", 0.0),
        *(("language_model", i, "resid_post", (i + 1) / n_layers) for i in range(n_layers)),
        ("pixels", None, "pixels", 0.0),
    ]
    rows = []
    for target in targets:
        for number, (part, layer, name, depth) in enumerate(sites):
            for split in ("cv", "unseen"):
                score = 0.3 + 0.02 * number - 0.1 * (split == "unseen")
                rows.append(
                    {
                        "model": "smol", "part": part, "site": f"{part}{layer}{name}", "layer": layer, "name": name,
                        "depth": depth, "tokens": "image", "pool": "mean", "target": target, "probe": "logistic",
                        "metric": "balanced_accuracy", "split": split, "score": score, "lower": score - 0.05,
                        "upper": score + 0.05, "control": 0.28 if split == "cv" else np.nan, "chance": 0.25,
                        "random_init": 0.27 if split == "cv" and part != "pixels" else np.nan, "n": 100,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def patch_table(
    op: str = "patch",
    tokens: Sequence[str] = ("image", "question", "last"),
    heads: Sequence[str | None] = (None,),
    names: Sequence[str] = ("resid_pre",),
    layers: Sequence[int | None] = (0, 1, 2, 3),
    metrics: Sequence[str] = ("logit_difference", "accuracy"),
    window: str = "{0}",
) -> pd.DataFrame:
    """Recovered fractions that count up from 0 in steps of 0.05; clean is 3, corrupt is -1."""
    unchanged = "corrupt" if op in ("patch", "transplant") else "clean"
    rows = [
        {
            "model": "smol", "op": op, "part": "language_model", "name": name, "site": f"blocks.{layer}.hook_{name}",
            "layer": layer, "window": "" if layer is None else window.format(layer), "tokens": group, "head": head,
            "metric": metric,
            "clean": 3.0, "corrupt": -1.0, "unchanged": unchanged, "n": 20, "n_undefined": 0,
        }
        for name in names for group in tokens for head in heads for layer in layers for metric in metrics
    ]  # fmt: skip
    results = pd.DataFrame(rows).astype({"layer": "Int64"})
    results["recovered"] = (np.arange(len(results)) // len(metrics)) * 0.05
    results["value"] = 4.0 * results["recovered"] - 1.0
    results["lower"], results["upper"] = results["value"] - 0.1, results["value"] + 0.2
    results["p"] = results["p_adjusted"] = np.where(results["recovered"] > 0.2, 0.001, 0.5)
    return results


def compare_table() -> pd.DataFrame:
    """Six plans; score 0.2 and retention 0.25 more for each, intervals of 0.1 below and 0.15 above retention."""
    rows = []
    for index, (plan, layers) in enumerate(PLANS.items()):
        for condition, families in (
            ("seen", ("what", "where", "all")),
            ("text", ("what", "all")),
            ("passage", ("text",)),
        ):
            rows += [
                {
                    "plan": plan, "layers": layers, "train": "" if plan == "start" else "projector",
                    "method": "lora" if "LoRA" in plan else "full", "trainable": 10,
                    "flops_ratio": None if plan == "start" else 0.5 + index / 10,
                    "step_time_ratio": None if plan == "start" else 0.6 + index / 10,
                    "condition": condition, "family": family, "metric": "accuracy" if condition != "passage" else "p",
                    "score": 0.15 * index, "score_lower": 0.15 * index - 0.05, "score_upper": 0.15 * index + 0.1,
                    "retention": 0.25 * index, "lower": 0.25 * index - 0.1, "upper": 0.25 * index + 0.15,
                    "n": 50, "seeds": 3, "interval": INTERVAL,
                }
                for family in families
            ]  # fmt: skip
    return pd.DataFrame(rows)


def map_table(
    targets: Sequence[str] = ("kind", "colour"), examples: Sequence[str] = ("a", "b"), n_layers: int = 4
) -> pd.DataFrame:
    """Maps of 2 x 3 patches whose probabilities count up from 0 through the table."""
    sites: list[tuple[str, int | None, str]] = [
        ("vision_tower", 1, "resid_post"),
        ("projector", None, "out"),
        *(("language_model", i, "resid_post") for i in range(n_layers)),
    ]
    rows = [
        {
            "target": target, "site": f"{part}.{layer}.{name}", "part": part, "name": name, "layer": layer,
            "depth": 0.5, "example": example, "row": row, "col": col, "predicted": "cat",
        }
        for target in targets for part, layer, name in sites for example in examples
        for row in range(2) for col in range(3)
    ]  # fmt: skip
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    return table.assign(p_true=np.arange(len(table)) / len(table))


def evaluations_table(*, families: tuple[str, ...] = ("colour", "count", "all"), name: str = "seen") -> pd.DataFrame:
    """Three evaluations; scores differ in every row."""
    rows = []
    for step in (60, 120, 180):
        for k, family in enumerate(families):
            for metric, score in (("accuracy", step / 240 + k / 50), ("log_prob_per_token", -3 + step / 100 + k / 50)):
                rows.append(
                    {
                        "step": step, "set": name, "family": family, "metric": metric, "score": score,
                        "lower": score - 0.02, "upper": score + 0.01, "n": 40, "interval": "bootstrap",
                        "chance": 0.25 if metric == "accuracy" else float("nan"),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)
