"""The report in a real browser. Whatever a test does, the page may log no error and ask for nothing but its file."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from figures.report import build_report
from figures.report.pictures import colour_scale
from figures.style import SEQUENTIAL
from tests.figures.made_runs import HOSTILE, patch_rows, sites, write_compare_run, write_patch_run, write_probe_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Open = Callable[..., "Page"]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # milliseconds: on a machine that is busy otherwise a browser takes its time
HALF_STEP = 0.0005 + 1e-9  # the page keeps and shows three decimals


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One headless Chromium for all tests of this file."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        message = "needs Chromium: apt-get install chromium ends this skip"
        if os.environ.get("LACCOLITH_NEED_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=OPTIONS, timeout=PATIENCE)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about one run of each kind."""
    folder = tmp_path_factory.mktemp("report")
    patches = [f"patch({row},{col})" for row in range(4) for col in range(4)]
    runs = [
        write_probe_run(folder / "probed"),
        write_patch_run(folder / "patched", patch_rows(["image", "last", *patches])),
        write_patch_run(folder / "heads", patch_rows(["last"], heads=["0", "1", "2"], unchanged="clean")),
        write_compare_run(folder / "compared"),
    ]
    page = folder / "a report.html"
    page.write_text(build_report(runs).html, encoding="utf-8")
    return page


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Open]:
    """Opens a page from its file; afterwards it must have logged no error and asked for nothing else."""
    complaints: list[str] = []
    asked: list[str] = []
    opened: list[str] = []
    pages: list[Page] = []

    def go(path: Path, *, width: int = 1200, scheme: str = "light") -> "Page":
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        opened.append(path.as_uri())
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} == set(opened)


def maps_of(page: "Page", run: int = 0) -> "Locator":
    """The section with maps, once it shows the first target at the first site."""
    section = page.locator("article").nth(run).locator("section.maps")
    section.locator("rect.patch[data-value]").first.wait_for(state="attached")
    target = section.get_by_role("combobox", name="target", exact=True)
    if target.count() and target.is_visible():
        target.select_option(index=0)
        page.wait_for_timeout(200)  # the map is unpacked
    section.get_by_label("Layer", exact=True).fill("0")
    return section


def drawn(section: "Locator") -> list[float]:
    """What the map holds for each patch."""
    return [
        float(text) for text in section.locator("rect.patch").evaluate_all("all => all.map((r) => r.dataset.value)")
    ]


def saved(report: Path, site: str, *, target: str = "kind", example: str = "scene-0") -> list[float]:
    """What the run's table holds for each patch."""
    table = pd.read_parquet(report.parent / "probed" / "maps.parquet")
    rows = table[(table["site"] == site) & (table["target"] == target) & (table["example"] == example)]
    return list(rows.sort_values(["row", "col"])["p_true"])


def column(section: "Locator", name: str) -> list[str]:
    """A column of the section's table, from the top."""
    names = [text.strip() for text in section.locator("thead th").all_text_contents()]
    return section.locator(f"tbody td:nth-child({names.index(name) + 1})").all_inner_texts()


def test_a_page_opens_from_its_file_and_shows_every_run_with_its_manifest(visit: Open, report: Path) -> None:
    page = visit(report)
    assert page.locator("article").count() == page.locator("nav a").count() == 4
    headings = page.locator("article").nth(0).locator("h2").all_inner_texts()
    assert headings == ["What was found", "Where in the picture", "Score by layer", "All scores", "About this run"]
    assert page.locator("article").nth(1).locator("h2").all_inner_texts() == [
        "What was found", "Where in the picture", "By layer and token group", "By layer", "All cells", "About this run",
    ]  # fmt: skip
    manifest = page.locator("details.manifest pre").first
    assert not manifest.is_visible()
    page.locator("details.manifest summary").first.click()
    assert '"kind": "laccolith probe-sweep"' in manifest.inner_text()


def test_the_slider_moves_the_map_to_the_values_of_the_layer_by_mouse_and_by_keyboard(
    visit: Open, report: Path
) -> None:
    section = maps_of(visit(report))
    slider, names = section.get_by_label("Layer", exact=True), [str(site["site"]) for site in sites()]
    first = drawn(section)
    assert first == pytest.approx(saved(report, names[0]), abs=HALF_STEP)
    slider.focus()
    for key, place in (("ArrowRight", 1), ("End", len(names) - 1), ("ArrowLeft", len(names) - 2), ("Home", 0)):
        slider.press(key)
        assert drawn(section) == pytest.approx(saved(report, names[place]), abs=HALF_STEP)
        assert names[place] in section.locator("output").inner_text()
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    middle = int(slider.input_value())
    assert 0 < middle < len(names) - 1
    moved = drawn(section)
    assert moved == pytest.approx(saved(report, names[middle]), abs=HALF_STEP)
    assert max(abs(a - b) for a, b in zip(first, moved, strict=True)) > 0.1
    assert [float(text) for text in section.locator("table.values td").all_text_contents()] == moved


def test_a_patch_has_the_colour_of_its_value_on_the_scale(visit: Open, report: Path) -> None:
    section = maps_of(visit(report))
    stops = colour_scale(SEQUENTIAL)
    for value, fill in section.locator("rect.patch").evaluate_all(
        "all => all.slice(0, 16).map((r) => [Number(r.dataset.value), getComputedStyle(r).fill])"
    ):
        near = stops[round(value * (len(stops) - 1))]
        expected = [int(near[at : at + 2], 16) for at in (1, 3, 5)]
        channels = [int(text) for text in re.findall(r"\d+", fill)[:3]]
        assert channels == pytest.approx(expected, abs=8)  # half the way to the next stop


def test_another_example_and_another_target_are_shown_with_their_own_map(visit: Open, report: Path) -> None:
    section = maps_of(visit(report))
    site = str(sites()[0]["site"])
    before = drawn(section)
    section.get_by_role("combobox", name="example", exact=True).select_option(index=2)
    section.get_by_role("combobox", name="target", exact=True).select_option("colour")
    expected = saved(report, site, target="colour", example="scene-2")
    first = f"{expected[0]:.3f}"
    assert first != f"{before[0]:.3f}"
    section.locator(f"rect.patch[data-row='0'][data-col='0'][data-value='{first}']").wait_for(state="attached")
    assert drawn(section) == pytest.approx(expected, abs=HALF_STEP)
    assert "What is in scene 2?" in section.locator("dl").inner_text()


def test_hover_on_a_patch_and_arrow_keys_tell_its_value_and_the_predicted_label(visit: Open, report: Path) -> None:
    page = visit(report)
    section = maps_of(page)
    table = pd.read_parquet(report.parent / "probed" / "maps.parquet").query(
        "target == 'kind' and example == 'scene-0'"
    )
    rows = table[table["site"] == sites()[0]["site"]].set_index(["row", "col"])
    values = drawn(section)
    section.locator("rect.patch[data-row='3'][data-col='5']").hover()
    tip = page.locator("#tip").inner_text()
    assert page.locator("#said").text_content() == ""  # the pointer is not read out
    assert f"{rows.loc[(3, 5), 'p_true']:.3f}" in tip
    assert "patch(3,5)" in tip and f"{values[3 * 8 + 5]:.3f}" in tip and rows.loc[(3, 5), "predicted"] in tip
    page.locator(".map svg").first.focus()
    page.keyboard.press("ArrowDown")
    assert "patch(4,5)" in page.locator("#tip").inner_text()
    assert "patch(4,5)" in (page.locator("#said").text_content() or "")
    page.keyboard.press("ArrowLeft")
    tip = page.locator("#tip").inner_text()
    assert "patch(4,4)" in tip and rows.loc[(4, 4), "predicted"] in tip
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_hover_on_a_curve_shows_the_score_and_interval_that_the_table_holds(visit: Open, report: Path) -> None:
    page = visit(report)
    article = page.locator("article").first
    site = str(sites()[7]["site"])
    dot = article.locator(
        f"section.curves >> nth=0 >> .panel >> nth=0 >> circle[data-series='score'][data-site='{site}']"
    )
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip").inner_text()
    table = article.locator("section.table:not(.short)")
    table.get_by_label("filter").fill(f"{site} kind cv")
    score, lower, upper, control = (column(table, name) for name in ("score", "lower", "upper", "control"))
    assert len(score) == 1
    assert site in tip and f"{score[0]} [{lower[0]}, {upper[0]}]" in tip and control[0] in tip
    saved_row = pd.read_csv(report.parent / "probed" / "results.csv").query(
        "site == @site and target == 'kind' and split == 'cv'"
    )
    assert score[0] == f"{saved_row['score'].iloc[0]:.3f}"


def test_arrow_keys_read_a_curve_out_and_a_press_on_its_name_takes_it_away(visit: Open, report: Path) -> None:
    page = visit(report)
    article = page.locator("article").first
    plot = article.locator("section.curves svg.plot").first
    page.keyboard.press("Tab")
    plot.focus()
    for key, place in (("End", -1), ("ArrowLeft", -2), ("Home", 0)):
        page.keyboard.press(key)
        assert sites()[place]["site"] in page.locator("#tip").inner_text()
    assert "control task" in page.locator("#tip").inner_text()
    assert plot.locator("polyline").count() > 0
    before = plot.locator("polyline").count()
    button = article.get_by_role("button", name="control task")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert plot.locator("polyline").count() == before - 3  # one for each part
    plot.focus()
    page.keyboard.press("End")
    assert "control task" not in page.locator("#tip").inner_text()


def test_a_click_or_enter_on_a_header_sorts_by_number_both_ways_with_empty_cells_last(
    visit: Open, report: Path
) -> None:
    page = visit(report)
    table = page.locator("article").first.locator("section.table:not(.short)")
    head = table.get_by_role("columnheader", name="control")
    before = [text for text in column(table, "control") if text != "–"]
    assert before != sorted(before, key=float)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    shown = column(table, "control")
    known = [float(text) for text in shown if text != "–"]
    assert known == sorted(known) and set(shown[len(known) :]) == {"–"}
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    shown = column(table, "control")
    assert [float(text) for text in shown[: len(known)]] == sorted(known, reverse=True) and shown[-1] == "–"


def test_the_filter_keeps_rows_that_hold_all_words(visit: Open, report: Path) -> None:
    table = visit(report).locator("article").first.locator("section.table:not(.short)")
    assert set(column(table, "target")) == {"kind", "colour"}
    table.get_by_label("filter").fill("UNSEEN projector kind")
    assert len(column(table, "site")) == 2
    assert set(column(table, "split")) == {"unseen"} and set(column(table, "target")) == {"kind"}
    assert "2 match" in table.locator(".count").inner_text()


def test_the_page_opens_on_the_best_layer_of_the_clearest_target(visit: Open, report: Path) -> None:
    page = visit(report)
    section = page.locator("article").first.locator("section.maps")
    section.locator("rect.patch[data-value]").first.wait_for(state="attached")
    table = pd.read_csv(report.parent / "probed" / "results.csv").query(
        "split == 'cv' and part == 'language_model' and name == 'resid_post'"
    )
    gain = table["score"] - table["chance"]
    best = table.loc[gain.idxmax()]
    assert section.locator("output code").inner_text() == best["site"]
    assert section.get_by_role("combobox", name="target", exact=True).input_value() == best["target"]
    assert section.locator("figure.on").get_attribute("title").startswith("language model")  # type: ignore[union-attr]


def test_print_shows_whole_tables_with_a_key_for_long_texts_and_the_small_maps(visit: Open, tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", where=sites(12, 30), n_maps=1)
    table = pd.read_parquet(run / "results.parquet")
    table["interval"] = ["95% Wilson over groups: these probes, new groups", "another long method of intervals"] * (
        len(table) // 2
    )
    table.to_parquet(run / "results.parquet", index=False)
    made = tmp_path / "a.html"
    made.write_text(build_report([run]).html, encoding="utf-8")
    page = visit(made)
    rows = page.locator("section.table:not(.short) tbody tr")
    assert rows.count() == 60 < len(table)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert rows.count() == len(table)
    assert page.locator(".film canvas").first.is_visible() and not page.locator("select").first.is_visible()
    assert set(column(page.locator("section.table:not(.short)"), "interval")) == {"a", "b"}
    assert "b = another long method" in page.locator("section.table:not(.short) .letters").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert rows.count() == 60 and not page.locator(".letters").first.is_visible()


def test_markup_and_quotes_in_data_are_shown_as_text(visit: Open, report: Path) -> None:
    page = visit(report)
    section = maps_of(page)
    assert section.locator("dd").first.text_content() == HOSTILE
    assert HOSTILE[:40] in (
        section.get_by_role("combobox", name="example", exact=True).locator("option").first.text_content() or ""
    )
    assert page.locator("details.manifest pre").first.text_content().count("<script>") == 1  # type: ignore[union-attr]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[onerror], main b:not(#tip b), main script").count() == 0


def test_light_and_dark_follow_the_reader_and_the_button_turns_them_round(visit: Open, report: Path) -> None:
    look = "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light, dark = (visit(report, scheme=scheme) for scheme in ("light", "dark"))
    white, black = light.evaluate(look), dark.evaluate(look)
    assert white[0] == "rgb(255, 255, 255)" and black[0] == "rgb(20, 23, 26)"
    assert white[1] != black[1]
    curve = "() => getComputedStyle(document.querySelector('.curve')).stroke"
    assert light.evaluate(curve) != dark.evaluate(curve)
    light.get_by_role("button", name="Switch to dark colours").click()
    assert light.evaluate(look) == black
    dark.get_by_role("button", name="Switch to light colours").click()
    assert dark.evaluate(look) == white


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(visit: Open, report: Path, width: int) -> None:
    page = visit(report, width=width)
    maps_of(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_maps_of_patches_and_of_heads_show_the_fractions_of_the_table(visit: Open, report: Path) -> None:
    page = visit(report)
    section = maps_of(page, run=1)
    table = pd.read_csv(report.parent / "patched" / "results.csv").query("metric == 'logit_difference'")
    patches = table[table["tokens"].str.startswith("patch")]
    slider = section.get_by_label("Layer", exact=True)
    for layer in (0, 3):
        slider.fill(str(layer))
        assert drawn(section) == pytest.approx(list(patches[patches["layer"] == layer]["recovered"]), abs=0.0006)
    significant = patches[(patches["layer"] == 3) & (patches["p_adjusted"] < 0.05)]
    assert section.locator(".map .mark").count() == len(significant) > 0
    heat = page.locator("article").nth(2).locator("section.heat")
    heads = pd.read_csv(report.parent / "heads" / "results.csv").query("metric == 'logit_difference'")
    values = heat.locator("rect.cell").evaluate_all("all => all.map((r) => Number(r.dataset.value))")
    lost = (1 - heads.pivot_table(index="head", columns="layer", values="recovered")).to_numpy().ravel()
    assert values == pytest.approx(list(lost), abs=0.0006)
    heat.locator("rect.cell").nth(5).hover()
    tip = page.locator("#tip").inner_text()
    assert "head 1, layer 1" in tip and "lost fraction" in tip and f"{lost[5]:.3f}" in tip


def test_hover_on_a_plan_tells_its_retention_and_what_it_costs(visit: Open, report: Path) -> None:
    page = visit(report)
    section = page.locator("article").nth(3).locator("section.scatter")
    section.locator("circle[data-plan='middle band']").hover()
    tip = page.locator("#tip").inner_text()
    assert "middle band" in tip and "0.600 [0.500, 0.660]" in tip and "0.700" in tip
    section.get_by_role("combobox", name="cost", exact=True).select_option(index=1)
    section.locator("circle[data-plan='middle band']").hover()
    assert "0.800" in page.locator("#tip").inner_text()
    assert section.locator("circle[data-plan='start']").count() == 0  # its cost was not measured


def test_the_content_security_policy_forbids_what_would_leave_the_page(browser: "Browser", report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    page.evaluate("window.blocked = []")
    page.evaluate("addEventListener('securitypolicyviolation', (event) => { blocked.push(event.violatedDirective); })")
    refused = page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    page.evaluate("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))")
    script = "Object.assign(document.createElement('script'), { textContent: 'window.hacked = 1' })"
    page.evaluate(f"document.body.append({script})")
    page.wait_for_function("blocked.length >= 3")
    assert refused and page.evaluate("window.hacked") is None
    assert {name.split("-")[0] for name in page.evaluate("blocked")} == {"connect", "img", "script"}
    page.close()


def test_two_hundred_examples_stay_below_five_megabytes_and_the_last_one_opens(
    visit: Open, tmp_path: Path, browser: "Browser"
) -> None:
    where = sites(12, 30)[:41]
    run = write_probe_run(tmp_path / "many", n_maps=200, where=where)
    made = build_report([run])
    assert made.shown == 200 and made.left_out == 0
    assert 1_000_000 < made.size < 5_000_000
    page_path = tmp_path / "many.html"
    page_path.write_text(made.html, encoding="utf-8")
    assert page_path.stat().st_size == made.size
    section = maps_of(visit(page_path))
    section.get_by_role("combobox", name="example", exact=True).select_option(index=199)
    section.locator("dd", has_text="What is in scene 199?").wait_for(state="attached")
    table = pd.read_parquet(run / "maps.parquet", filters=[("example", "==", "scene-199"), ("target", "==", "kind")])
    expected = table[table["site"] == where[0]["site"]].sort_values(["row", "col"])["p_true"]
    assert drawn(section) == pytest.approx(list(expected), abs=HALF_STEP)
