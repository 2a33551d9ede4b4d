"""The figure and the report view of attention: made-up weights and effects, in a real browser too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from figures.attention.draw import draw_attention
from figures.attention.saved import edge_effects, read_attention
from figures.report import build_report
from figures.runs import draw_run
from tests.figures.made_runs import HOSTILE, patch_rows, write_patch_run
from tests.figures.test_report_page import browser, visit  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

GRID, LAYERS, HEADS = 4, (0, 1, 2, 3), ("0", "1", "2")
WORDS = (" colour", HOSTILE, ":")
PATCHES = [f"patch({row},{col})->last" for row in range(GRID) for col in range(GRID)]
STEP = 0.5 / 65_535 + 5e-6  # half a step of the page, and the five decimals that it shows


def write_attention_run(folder: Path, *, n_pairs: int = 3, shown: int = 2, seed: int = 0) -> Path:
    """A knockout of every head with made-up values: two groups of edges, and the edges of single patches."""
    rng = np.random.default_rng(seed)
    tokens = ["image->last", "object->question", *PATCHES]
    results = patch_rows(tokens, heads=list(HEADS), unchanged="clean").assign(name="pattern")
    write_patch_run(folder, results.assign(n=n_pairs))
    ids = [HOSTILE, *(f"scene-{k}" for k in range(1, n_pairs))]
    told = {"question": HOSTILE, "answer": "red", "foil": "blue", "batch": 0}
    pd.DataFrame([{"id": one, **told} for one in ids]).to_parquet(folder / "pairs.parquet", index=False)
    keys = results[["op", "site", "layer", "window", "tokens", "head", "metric", "clean", "corrupt"]]
    values = pd.concat([keys.assign(id=one, recovered=rng.uniform(0, 1, len(keys))) for one in ids])
    values["value"] = values["corrupt"] + values["recovered"] * (values["clean"] - values["corrupt"])
    values.to_parquet(folder / "values.parquet", index=False)
    (folder / "pictures").mkdir()
    (folder / "picture.png").rename(folder / "pictures" / "0.png")
    Image.new("RGB", (64, 64), "teal").save(folder / "pictures" / "1.png")
    shape = len(LAYERS), len(HEADS), len(WORDS), GRID**2
    weights = {str(k): rng.dirichlet(np.ones(GRID**2 + 1), shape[:3])[..., :-1] for k in range(shown)}
    save_file({k: one.astype(np.float32) for k, one in weights.items()}, folder / "attention.safetensors")
    flows = [
        {"tokens": "image->last", "positions": [2], "patches": None},
        {"tokens": "object->question", "positions": [0, 1], "patches": [5, 6]},
        *({"tokens": text, "positions": [2], "patches": [number]} for number, text in enumerate(PATCHES)),
    ]
    pairs = [
        {"k": k, "id": ids[k], "positions": [20, 21, 25], "words": list(WORDS), "flows": flows} for k in range(shown)
    ]
    about = {"layers": list(LAYERS), "heads": list(HEADS), "grid": [GRID, GRID], "pairs": pairs}
    (folder / "attention.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attention_run(tmp_path_factory.mktemp("attention") / "run")


def effect_of(run: Path, pair: str, layer: int, head: str, tokens: str, metric: str = "logit_difference") -> float:
    rows = pd.read_parquet(run / "values.parquet")
    own = rows[(rows["id"] == pair) & (rows["layer"] == layer) & (rows["head"] == head) & (rows["tokens"] == tokens)]
    return 1 - float(own.loc[own["metric"] == metric, "recovered"].iloc[0])


def test_the_figure_marks_the_head_that_attends_most_and_the_head_whose_cut_does_most(run: Path) -> None:
    values = pd.read_parquet(run / "values.parquet").assign(unchanged="clean")
    one = read_attention(run)[1]
    effects = edge_effects(values, one, "object->question")
    panels = draw_attention(one, effects, flow=1)
    summed = one.values[:, :, :2, 5:7].sum(-1).mean(-1)  # of the cut edges alone
    layer, head = np.unravel_index(summed.argmax(), summed.shape)
    assert panels[0].get_title() == f"most attention\nlayer {layer}, head {head}"
    cells = effects[effects["metric"] == "logit_difference"]
    strongest = cells.loc[cells["effect"].abs().idxmax()]
    assert panels[1].get_title() == f"largest effect of the cut\nlayer {strongest['layer']}, head {strongest['head']}"
    x, y = panels[2].lines[0].get_data()
    assert len(x) == 12 and float(np.max(x)) == pytest.approx(float(summed.max()))
    assert float(np.max(y)) == pytest.approx(float(strongest["effect"]))
    marked = [line.get_data() for line in panels[2].lines if line.get_gid() == "chosen"]
    assert next(float(x[0]) for x, _ in marked) == pytest.approx(float(summed.max()))
    assert panels[2].get_title().startswith("12 heads, rank correlation ")
    with pytest.raises(ValueError, match="defined effect, got none"):
        draw_attention(one, effects.assign(effect=np.nan))


def test_a_run_draws_the_attention_of_its_pairs_for_groups_of_edges(run: Path, tmp_path: Path) -> None:
    names = [paths.png.stem for paths in draw_run(run, out=tmp_path)]
    assert names == ["head_map", "attention_0", "attention_0_2", "attention_1", "attention_1_2"]


def test_attention_that_contradicts_the_run_is_one_sentence(tmp_path: Path) -> None:
    folder = write_attention_run(tmp_path / "run")
    about = json.loads((folder / "attention.json").read_text())
    for change, message in (
        ({"layers": [0]}, "must be finite, of shape"),
        ({"pairs": [{**about["pairs"][0], "k": "../x"}]}, "k must be the number of a pair"),
        ({"pairs": [{**about["pairs"][0], "id": "other"}]}, "attention must be of the run's pairs"),
        ({"grid": None}, "attention.json must be as patch-sweep writes it"),
    ):
        (folder / "attention.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=message) as caught:
            build_report([folder])
        assert "\n" not in str(caught.value)
    (folder / "attention.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="attention.safetensors must be readable"):
        build_report([folder])


def test_pairs_that_do_not_fit_are_left_out_and_counted(run: Path) -> None:
    whole = build_report([run])
    assert (whole.shown, whole.left_out) == (2, 0) and whole.size < 5_000_000
    less = build_report([run], budget=whole.size - 500)
    assert (less.shown, less.left_out) == (1, 1)


def painted(node: "Locator") -> list[float]:
    return [float(one) for one in node.locator("rect.patch").evaluate_all("all => all.map((r) => r.dataset.value)")]


def test_attention_and_its_effect_follow_pair_layer_head_and_position_by_pointer_and_keyboard(
    visit: Callable[..., "Page"],  # noqa: F811
    browser: "Browser",  # noqa: F811
    run: Path,
    tmp_path: Path,
) -> None:
    page_path = tmp_path / "attention.html"
    page_path.write_text(build_report([run]).html, encoding="utf-8")
    page = visit(page_path)
    section = page.locator("section.attention")
    saved, n = read_attention(run), {"pair": 0}
    attention = section.locator("svg[aria-label^='Attention over the patches']")
    attention.locator("rect.patch[data-value]").first.wait_for(state="attached")
    told = section.locator("dl.measured")

    def shows(layer: int, head: str, position: int, tokens: str) -> None:
        one = saved[n["pair"]]
        expected = one.values[LAYERS.index(layer), HEADS.index(head), position]
        assert painted(attention) == pytest.approx(list(expected), abs=STEP)
        assert section.locator("output").inner_text() == f"layer {layer}, head {head}"
        text = told.inner_text()
        assert f"{effect_of(run, one.id, layer, head, tokens):.3f}" in text and f"cut in layer {layer}" in text

    shows(0, "0", 2, "image->last")
    section.get_by_label("Layer", exact=True).fill("2")
    section.get_by_role("combobox", name="head", exact=True).select_option("head 1")
    shows(2, "1", 2, "image->last")
    mean = pd.read_parquet(run / "results.parquet").query(
        "layer == 2 and head == '1' and tokens == 'image->last' and metric == 'logit_difference'"
    )
    lost = 1 - float(mean["recovered"].iloc[0])
    assert f"{lost:.3f} [" in told.inner_text() and "n = 3 pairs" in told.inner_text()

    section.get_by_role("combobox", name="edges", exact=True).select_option("object → question")
    positions = section.get_by_role("combobox", name="text position", exact=True)
    assert positions.locator("option").all_inner_texts()[0] == "20: colour" and positions.locator("option").count() == 2
    positions.select_option(index=1)
    shows(2, "1", 1, "object->question")
    assert "src=x" not in page.inner_html("#tip") and page.evaluate("window.hacked") is None
    faint = attention.locator("rect.patch").evaluate_all("all => all.map((r) => Number(r.style.opacity))")
    assert [index for index, one in enumerate(faint) if one > 0.5] == [5, 6]  # the edges that are cut

    section.get_by_role("combobox", name="pair", exact=True).select_option(index=1)
    page.wait_for_function("document.querySelector('section.attention image').href.baseVal.length > 0")
    page.wait_for_timeout(200)  # the attention is unpacked
    n["pair"] = 1
    shows(2, "1", 0, "object->question")

    effects = section.locator("svg[aria-label^='Effect of the cut by layer and head']")
    drawn = effects.locator("rect.cell").evaluate_all(
        "all => all.map((r) => [r.dataset.layer, r.dataset.head, r.dataset.value])"
    )
    assert len(drawn) == 12
    for layer, head, value in drawn:
        assert value == f"{effect_of(run, saved[1].id, int(layer), head, 'object->question'):.3f}"
    effects.locator("rect.cell[data-layer='3'][data-head='2']").click()
    shows(3, "2", 0, "object->question")
    effects.focus()
    for key in ("Home", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    shows(1, "1", 0, "object->question")
    attention.locator("rect.patch[data-row='1'][data-col='2']").hover()
    tip = page.locator("#tip")
    assert "patch(1,2)" in tip.inner_text() and f"{saved[1].values[1, 1, 0, 6]:.5f}" in tip.inner_text()
    attention.focus()
    for key in ("Home", "ArrowDown"):
        page.keyboard.press(key)
    assert "patch(1,0)" in tip.inner_text() and "edge not cut" in tip.inner_text()

    section.get_by_role("combobox", name="edges", exact=True).select_option("patches → last")
    single = section.locator("svg[aria-label^='Effect of cutting the edge from each patch']")
    assert single.is_visible()
    of = [effect_of(run, saved[1].id, 1, "1", text) for text in PATCHES]
    assert painted(single) == pytest.approx(of, abs=0.0005 + 1e-9)
    assert page.locator("img[onerror], main script").count() == 0 and page.evaluate("window.hacked") is None
