"""The figure and the report view of a lens sweep: made-up words, in a real browser too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from figures.lenses import CURVES, draw_lenses
from figures.report import build_report
from tasks.checksums import record
from tests.figures.made_runs import HOSTILE, write_manifest
from tests.figures.test_report_page import HALF_STEP, browser, drawn, maps_of, visit  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GRID, K = 8, 5


def site_rows(n_layers: int) -> list[tuple[str, int, str]]:
    return [
        ("resid_pre", 0, "blocks.0.hook_resid_pre"),
        *(("resid_post", n, f"blocks.{n}.hook_resid_post") for n in range(n_layers)),
    ]


def results_of(n_layers: int) -> pd.DataFrame:
    rows = [
        {
            "model": "smol", "lens": "logit", "part": "language_model", "site": site, "layer": layer, "name": name,
            "depth": 0.5, "place": place, "words": words, "metric": metric, "split": "test", "score": 0.1 + 0.01 * n,
            "lower": 0.05, "upper": 0.6, "n": 90, "n_groups": 10,
        }
        for words, place in CURVES for metric in ("hit@1", "hit@5", "hit@10", "mrr")
        for n, (name, layer, site) in enumerate(site_rows(n_layers))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_lens_run(folder: Path, *, n_examples: int, n_layers: int, seed: int = 0) -> Path:
    """A lens sweep with made-up words: noise over a vocabulary with one hostile word."""
    rng = np.random.default_rng(seed)
    write_manifest(folder, "lens-sweep", settings={"model": "smol"}, model={"id": "smol"}, data={"name": "scenes"})
    results_of(n_layers).to_parquet(folder / "results.parquet", index=False)
    vocabulary = np.array([HOSTILE, " cat", *(f" w{i}" for i in range(4000))], dtype=object)
    sites = site_rows(n_layers)
    shape = (n_examples, len(sites), GRID, GRID, K)
    example, site, row, col, rank = (axis.ravel() for axis in np.indices(shape))
    common = np.minimum(rng.zipf(1.3, size=len(site)) - 1, len(vocabulary) - 1)  # a few words are frequent
    strength = np.sort(rng.dirichlet([0.3] * (K + 3), size=len(site) // K)[:, :K], axis=1)[:, ::-1].ravel()
    own = np.repeat(rng.beta(0.3, 4, size=len(site) // K), K)
    names, layers, full = ([one[k] for one in sites] for k in range(3))
    table = pd.DataFrame(
        {
            "lens": "logit", "example": np.array([f"scene-{n}" for n in range(n_examples)], dtype=object)[example],
            "site": np.array(full, dtype=object)[site], "name": np.array(names, dtype=object)[site],
            "layer": np.array(layers)[site], "row": row, "col": col, "rank": rank + 1, "word": vocabulary[common],
            "strength": strength.astype(np.float32), "neighbour_layer": pd.array([None] * len(site), dtype="Int64"),
            "p_object": own.astype(np.float32),
        }
    )  # fmt: skip
    table.to_parquet(folder / "tokens.parquet", index=False)
    (folder / "pictures").mkdir()
    about = []
    for n in range(n_examples):
        pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8) // 4 + np.uint8(20)
        Image.fromarray(pixels).save(folder / "pictures" / f"{n}.png")
        about.append(
            {
                "k": n, "example": f"scene-{n}", "question": HOSTILE, "answer": "cat", "word": "cat",
                "forms": ["cat", "cats"], "boxes": {"object0": [0.0, 0.0, 0.5, 0.25]}, "focus": "object0",
            }
        )  # fmt: skip
    (folder / "examples.json").write_text(json.dumps(about))
    return folder


def test_figure_draws_every_curve_with_the_input_first() -> None:
    (panel,) = draw_lenses(results_of(4))
    assert set(panel.get_legend_handles_labels()[1]) == {label for *_, label in CURVES.values()}
    line = next(line for line in panel.lines if line.get_label() == "object's words, inside its box")
    assert list(line.get_xdata()) == [-1, 0, 1, 2, 3]
    assert np.allclose(line.get_ydata(), 0.1 + 0.01 * np.arange(5))
    assert panel.get_title("left") == "logit lens, test (n = 10)"
    with pytest.raises(ValueError, match="metric 'hit@2'"):
        draw_lenses(results_of(2), metric="hit@2")


def test_damaged_files_of_words_are_refused(tmp_path: Path) -> None:
    run = write_lens_run(tmp_path / "run", n_examples=1, n_layers=2)
    tokens = pd.read_parquet(run / "tokens.parquet")
    tokens.iloc[1:].to_parquet(run / "tokens.parquet", index=False)
    with pytest.raises(ValueError, match="each rank of each patch once"):
        build_report([run])
    (run / "examples.json").write_text('[{"k": "../../x", "example": "scene-0", "word": "", "forms": []}]')
    with pytest.raises(ValueError, match="k must be the number"):
        build_report([run])


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested more than"), ('[{"k": 0, "k": 1}]', "given twice"), ('"\\ud83d"', "half a surrogate")],
)
def test_the_list_of_examples_is_read_as_every_other_file_of_a_run(text: str, message: str, tmp_path: Path) -> None:
    run = write_lens_run(tmp_path / "run", n_examples=1, n_layers=2)
    whole = (run / "examples.json").read_bytes()
    (run / "examples.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_report([run])
    record(run / "examples.json", whole)
    (run / "examples.json").write_bytes(whole.replace(b"cats", b"cots"))
    for name in ("results.parquet", "tokens.parquet"):
        record(run / name, (run / name).read_bytes())
    with pytest.raises(ValueError, match=r"examples\.json must be as it was written"):
        build_report([run])


def test_words_of_a_patch_are_listed_by_layer_for_pointer_and_keyboard(
    visit: Callable[..., "Page"],  # noqa: F811
    browser: "Browser",  # noqa: F811
    tmp_path: Path,
) -> None:
    run = write_lens_run(tmp_path / "run", n_examples=100, n_layers=30)
    made = build_report([run])
    assert (made.shown, made.left_out) == (100, 0) and made.size < 5_000_000
    page_path = tmp_path / "words.html"
    page_path.write_text(made.html, encoding="utf-8")
    page = visit(page_path)
    section = maps_of(page)
    table = pd.read_parquet(run / "tokens.parquet").query("example == 'scene-0'")

    def words(row: int, col: int, site: int) -> list[str]:
        cell = table[(table["row"] == row) & (table["col"] == col) & (table["site"] == site_rows(30)[site][2])]
        return [" ".join(word.split()) for word in cell.sort_values("rank")["word"]]

    def listed() -> list[list[str]]:
        lines = section.locator("table.words tr").evaluate_all(
            "all => all.map((line) => [...line.children].map((cell) => cell.textContent))"
        )
        return [[" ".join(cell.split()) for cell in line] for line in lines]

    slider = section.get_by_label("Layer", exact=True)
    for site in (0, 17):
        slider.fill(str(site))
        own = table[(table["site"] == site_rows(30)[site][2]) & (table["rank"] == 1)].sort_values(["row", "col"])
        assert drawn(section) == pytest.approx([float(value) for value in own["p_object"]], abs=HALF_STEP)
    chosen = section.locator("rect.patch[data-row='3'][data-col='5']")
    chosen.hover()
    assert listed() == [["input" if n == 0 else str(n - 1), *words(3, 5, n)] for n in range(31)]
    assert section.locator("table.words tr.on th").inner_text() == "16"
    tip = page.locator("#tip")
    assert "patch(3,5)" in tip.inner_text()
    section.locator("svg[aria-label^='Map over']").focus()
    for key in ("Home", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert listed()[4][1:] == words(1, 1, 4)
    assert "patch(1,1)" in tip.inner_text()
    cats = section.locator("table.words td.own").all_inner_texts()
    assert cats and set(cats) == {"cat"}
    assert (table["word"] == HOSTILE).any() and page.evaluate("window.hacked") is None
    assert page.locator("img[onerror], main script").count() == 0
