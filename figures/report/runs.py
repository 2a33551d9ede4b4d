"""One run directory as a part of the page: its kind, the main facts of its manifest, and its sections."""

import json
from pathlib import Path
from typing import Any

from figures.read_run import (
    BENCHMARKS,
    GEOMETRY,
    INFERENCE,
    LENS,
    LISTED,
    PATCH,
    PROBE,
    TRANSFER,
    TUNE,
    kind_of_run,
    read_manifest,
    read_run,
    reading,
)
from figures.report.attention.view import attention_view
from figures.report.comparing import cost_scatter, token_plan_scatter
from figures.report.findings import compare_finding, inference_finding, patch_finding, probe_finding
from figures.report.layer_pairs import geometry_curves, geometry_findings, layer_maps, transfer_heat
from figures.report.lens_view import lens_curves, lens_words
from figures.report.maps import probe_maps
from figures.report.patching import patch_curves, patch_heat, patch_maps, shown_table
from figures.report.probing import probe_curves
from figures.report.tables import table_section
from figures.report.tuning import plan_section, saved_files, tuning_sections
from tasks.files import real_path

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

    It opens on what was found; settings and hashes are last. Raises ``RunError`` if the folder contains no finished
    run, and ``ValueError`` if its files contradict each other.
    """
    with reading(folder):
        return _describe(folder, most_rows)


def _describe(folder: Path, most_rows: int) -> Json:
    kind, manifest = kind_of_run(folder), read_manifest(folder)
    settings = manifest.get("settings")
    name = settings.get("model") if isinstance(settings, dict) else None
    model = f"{name}: " if name else ""
    files = [["manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False)]] if manifest else []
    if kind == TUNE:
        title, sections = f"{model}layer-targeted tuning", list[Json | None](tuning_sections(folder))
        files += saved_files(folder)
    else:
        table = read_run(folder, kind)
        first = table.iloc[0]
        if kind == PROBE:
            title = f"{first['model']}: what probes read, layer by layer"
            sections = [probe_finding(table), probe_maps(folder, table), probe_curves(table)]
            named = "All scores", "results.csv"
        elif kind == PATCH:
            title = f"{first['model']}: {_OPS.get(str(first['op']), str(first['op']))}"
            sections = [patch_finding(table), patch_maps(folder, table), attention_view(folder, table)]
            sections += [patch_heat(table), patch_curves(table)]
            table, named = shown_table(table), ("All cells", "results.csv")
        elif kind == TRANSFER:
            title, sections = f"{first['model']}: probes read across captions and pictures", [transfer_heat(table)]
            named = "All pairs of layers", "results.csv"
        elif kind == INFERENCE:
            title = f"{first['model']}: what token plans cost and keep"
            sections = [inference_finding(table), token_plan_scatter(table)]
            named = "All plans", "results.csv"
        elif kind == GEOMETRY:
            title = f"{' and '.join(dict.fromkeys([first['model_a'], first['model_b']]))}: geometry, layer by layer"
            sections = [geometry_findings(folder, most_rows), geometry_curves(table), *layer_maps(folder)]
            named = "All measures", "results.csv"
        elif kind == BENCHMARKS:
            title, sections = f"{first['model']}: scores of benchmarks", []
            named = "All scores", "results.csv"
        elif kind == LENS:
            title = f"{first['model']}: words that lenses read at image tokens"
            sections = [lens_curves(table), lens_words(folder)]
            named = "All scores", "results.csv"
        elif kind in LISTED:
            title, sections = f"{model}{kind}", []
            named = "The table", "results.csv"
        else:
            title = f"{model}tuning plans side by side"
            sections = [compare_finding(table), cost_scatter(table), plan_section(table)]
            named = "All plans", "compare.csv"
        sections.append(table_section(table, title=named[0], source=named[1], most_rows=most_rows))
    return {
        "name": real_path(folder).name,
        "command": kind,
        "title": title,
        "facts": _facts(manifest),
        "files": files,
        "sections": [section for section in sections if section is not None],
    }


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
