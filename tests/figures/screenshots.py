"""Screenshots of a report, light and dark: ``python -m tests.figures.screenshots report.html docs/report``.

Writes ``docs/report-light.png`` and ``docs/report-dark.png``: the first run of the page from its finding to its
maps, with the slider at the site that ``--site`` names.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.figures.test_report_page import NAMES, OPTIONS, PATIENCE

WIDTH = 1240
READY = """() => {
  const maps = document.querySelector("section.maps");
  return !maps || maps.querySelector("rect.patch[data-value]");
}"""
MOVE = """([example, target, site]) => {
  const maps = document.querySelector("section.maps");
  if (!maps) return;
  const [examples, targets] = maps.querySelectorAll("select");
  const named = Math.max(0, [...targets.options].findIndex((option) => option.text === target));
  for (const [select, index] of [[examples, example], [targets, named]]) {
    select.selectedIndex = index;
    select.dispatchEvent(new Event("change"));
  }
  return new Promise((done) => setTimeout(() => {
    const films = [...maps.querySelectorAll("figure")], found = films.find((figure) => figure.title.includes(site));
    if (found) found.click();
    done();
  }, 1500));
}"""
CLIP = """() => {
  const film = document.querySelector("article section.maps .film");
  return film.getBoundingClientRect().bottom + scrollY + 24;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("stem", help="what the two files begin with")
    parser.add_argument("--example", type=int, default=0, help="which of the mapped examples, from 0")
    parser.add_argument("--target", default="kind")
    parser.add_argument("--site", default="language model layer 9,", help="what the name of the site holds")
    given = parser.parse_args()
    found = next(path for path in map(shutil.which, NAMES) if path)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=OPTIONS, timeout=PATIENCE)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            page.goto(given.page.resolve().as_uri())
            page.wait_for_function(READY)
            page.evaluate(MOVE, [given.example, given.target, given.site])
            height = page.evaluate(CLIP)
            page.set_viewport_size({"width": WIDTH, "height": int(height)})
            page.wait_for_timeout(300)
            page.screenshot(path=f"{given.stem}-{scheme}.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
