"""One run directory as one part of the page: its kind, its manifest in short, and its sections."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures.report.comparing import cost_scatter, facts_table, training_log
from figures.report.maps import probe_maps
from figures.report.patching import patch_curves, patch_heat, patch_map, shown_table
from figures.report.probing import probe_curves
from figures.report.tables import table_section
from figures.saved import COMPARE, PATCH, PROBE, TUNE, RunError, kind_of_run, read_run

Json = dict[str, Any]
Described = tuple[str, list[Json | None]]  # title and sections; None for a section without data
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
    """The part of the page about a finished run.

    Args:
        folder: A run directory of a probe sweep, a patch sweep, a comparison of plans, or a tuning run.
        most_rows: Largest number of rows of a table.

    Raises:
        RunError: If the folder holds none of these, or an unfinished one.
        ValueError: If its files contradict each other.
    """
    kind = kind_of_run(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    title, sections = _READERS[kind](folder, manifest, most_rows)
    return {
        "name": folder.resolve().name,
        "command": kind,
        "title": title,
        "facts": _facts(manifest),
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        "sections": [section for section in sections if section is not None],
    }


def _describe_probe(folder: Path, manifest: Json, most_rows: int) -> Described:
    results = read_run(folder, PROBE)
    return f"{results['model'].iloc[0]}: what probes read, layer by layer", [
        probe_curves(results),
        probe_maps(folder, results),
        table_section(results, title="All scores", source="results.csv", most_rows=most_rows),
    ]


def _describe_patch(folder: Path, manifest: Json, most_rows: int) -> Described:
    results = read_run(folder, PATCH)
    first = results.iloc[0]
    return f"{first['model']}: {_OPS.get(str(first['op']), str(first['op']))}", [
        patch_curves(results),
        patch_heat(results),
        patch_map(folder, results),
        table_section(shown_table(results), title="All cells", source="results.csv", most_rows=most_rows),
    ]


def _describe_compare(folder: Path, manifest: Json, most_rows: int) -> Described:
    table = read_run(folder, COMPARE)
    return f"{_model(manifest)}tuning plans side by side", [
        cost_scatter(table),
        table_section(table, title="All plans", source="compare.csv", most_rows=most_rows),
    ]


def _describe_tuning(folder: Path, manifest: Json, most_rows: int) -> Described:
    sections: list[Json | None] = [training_log(folder)]
    for name, title in (("plan.json", "What trained"), ("cost.json", "What it cost")):
        table = facts_table(folder / name)
        sections.append(None if table is None else table_section(table, title=title, source=name, most_rows=most_rows))
    if all(section is None for section in sections):
        raise RunError(f"RUN must hold log.jsonl or plan.json, got neither in {str(folder)!r}. Start it again.")
    return f"{_model(manifest)}layer-targeted tuning", sections


def _model(manifest: Json) -> str:
    name = manifest.get("settings", {}).get("model")
    return f"{name}: " if name else ""


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


_READERS: dict[str, Callable[[Path, Json, int], Described]] = {
    PROBE: _describe_probe,
    PATCH: _describe_patch,
    COMPARE: _describe_compare,
    TUNE: _describe_tuning,
}
