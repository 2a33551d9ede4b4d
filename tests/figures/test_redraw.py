"""The gallery: every figure of it can be drawn from its table."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from figures.redraw import GALLERY, KINDS, draw_table, main
from figures.style import figure_of
from tests.figures.tables import patch_table

ROOT = Path(__file__).parents[2]


def test_every_table_of_the_gallery_has_a_kind_and_its_figure_beside_it() -> None:
    tables = sorted(GALLERY.glob("*.csv"))
    assert len(tables) >= 5
    for table in tables:
        assert any(table.stem.startswith(kind) for kind in KINDS)
        assert table.with_suffix(".png").is_file() and table.with_suffix(".svg").is_file()
        assert table.name in (GALLERY / "README.md").read_text()


@pytest.mark.parametrize("table", sorted(GALLERY.glob("*.csv")), ids=lambda path: path.stem)
def test_every_figure_of_the_gallery_can_be_drawn_from_its_table(table: Path) -> None:
    assert figure_of(draw_table(table)).axes
    with pytest.raises(ValueError, match="must be named after one of"):
        draw_table(table.with_name("unknown.csv"))


def test_the_gallery_is_drawn_again_by_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch_table().to_csv(tmp_path / "token_map_made.csv", index=False)
    patch_table(tokens=("patch(0,0)", "patch(0,1)")).to_csv(tmp_path / "patch_grid_made.csv", index=False)
    Image.new("RGB", (20, 10)).save(tmp_path / "patch_grid_made_picture.png")
    done = subprocess.run(
        [sys.executable, "-m", "figures.redraw", "--gallery", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = done.stdout.splitlines()
    names = [f"{name}_made{ending}" for name in ("patch_grid", "token_map") for ending in (".png", ".svg")]
    assert [Path(path).name for path in printed] == names
    assert len(next(iter(draw_table(tmp_path / "patch_grid_made.csv"))).images) == 2  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="2"):
        main(["none", "--gallery", str(tmp_path)])
    assert "must be named after one of" in capsys.readouterr().err
