"""One run directory as a part of the page: its kind, the main facts of its manifest, and its sections."""

import json
from pathlib import Path
from typing import Any

from figures.read_run import INFERENCE, LENS, PATCH, PROBE, TUNE, RunError, kind_of_run, read_run
from figures.report.comparing import cost_scatter, facts_table, token_plan_scatter, training_log
from figures.report.lens_view import lens_curves, lens_words
from figures.report.maps import probe_maps
from figures.report.patching import patch_curves, patch_heat, patch_map, shown_table
from figures.report.probing import probe_curves
from figures.report.tables import table_section

Json = dict[str, Any]
_OPS = {
    "patch": "activation patching",
    "ablate": "ablation",
    "knockout": "attention knockout",
    "skip": "skipping layers",
    "steer": "steering",
    "attribute": "attribution patching",
    "transplant": "transplanting layers",
}


def describe_run(folder: Path, *, most_rows: int) -> Json:
    """The part of the page about a finished run, with at most ``most_rows`` rows of each table.

    Raises ``RunError`` if the folder contains no finished run, and ``ValueError`` if its files contradict each other.
    """
    kind = kind_of_run(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = f"{name}: " if (name := manifest.get("settings", {}).get("model")) else ""
    if kind == TUNE:
        title, sections = f"{model}layer-targeted tuning", _tuning_sections(folder, most_rows)
    else:
        table = read_run(folder, kind)
        first = table.iloc[0]
        if kind == PROBE:
            title = f"{first['model']}: what probes read, layer by layer"
            sections = [probe_curves(table), probe_maps(folder, table)]
            named = "All scores", "results.csv"
        elif kind == PATCH:
            title = f"{first['model']}: {_OPS.get(str(first['op']), str(first['op']))}"
            sections = [patch_curves(table), patch_heat(table), patch_map(folder, table)]
            table, named = shown_table(table), ("All cells", "results.csv")
        elif kind == INFERENCE:
            title, sections = f"{first['model']}: what token plans cost and keep", [token_plan_scatter(table)]
            named = "All plans", "results.csv"
        elif kind == LENS:
            title = f"{first['model']}: words that lenses read at image tokens"
            sections = [lens_curves(table), lens_words(folder)]
            named = "All scores", "results.csv"
        else:
            title, sections = f"{model}tuning plans side by side", [cost_scatter(table)]
            named = "All plans", "compare.csv"
        sections.append(table_section(table, title=named[0], source=named[1], most_rows=most_rows))
    return {
        "name": folder.resolve().name,
        "command": kind,
        "title": title,
        "facts": _facts(manifest),
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        "sections": [section for section in sections if section is not None],
    }


def _tuning_sections(folder: Path, most_rows: int) -> list[Json | None]:
    """The training log, the plan and the cost; None for what the run has not written."""
    sections: list[Json | None] = [training_log(folder)]
    for name, title in (("plan.json", "What trained"), ("cost.json", "What it cost")):
        table = facts_table(folder / name)
        sections.append(None if table is None else table_section(table, title=title, source=name, most_rows=most_rows))
    if all(section is None for section in sections):
        raise RunError(f"RUN must contain log.jsonl or plan.json, got neither in {str(folder)!r}. Start it again.")
    return sections


def _facts(manifest: Json) -> list[list[str]]:
    """The main entries of the manifest, as names and values."""
    model, data, settings = (
        value if isinstance(value := manifest.get(key), dict) else {} for key in ("model", "data", "settings")
    )
    found = {
        "model": model.get("id") or settings.get("model"),
        "revision": model.get("revision"),
        "weights": model.get("weight_hash"),
        "data": data.get("name") or settings.get("data"),
        "data hash": data.get("digest"),
        "seed": settings.get("seed", settings.get("seeds")),
        "finished": manifest.get("finished"),
    }
    return [[key, str(value)] for key, value in found.items() if value is not None]
