"""What a notebook shows of plans and comparisons, and how far training is."""

from html import unescape
from pathlib import Path

import pytest

from models.llava import Llava
from records.run import FinishedRun
from tests.figures.tables import compare_table
from tests.tuning.conftest import samples_of
from tuning.compare.report_table import render_table
from tuning.config import Optimisation, RunOptions
from tuning.data.scene_mix import SceneMix
from tuning.plan.apply import apply_plan
from tuning.plan.plan import LayerPlan, Lisa, Lora
from tuning.plan.resolve import resolve
from tuning.training.checkpoint import advise_when_interrupted
from tuning.training.train import train

MARKUP = '<i>"plan"</i>'
PLANS = {
    "full": LayerPlan("1-2", name=MARKUP),
    "lora": LayerPlan("1", (), "lora", Lora(2, 4, 0.0), name=MARKUP),
    "lisa": LayerPlan("all", ("final_norm",), "lisa", lisa=Lisa(1, 2), name=MARKUP),
    "tower": LayerPlan("none", ("vision:1", "embeddings"), name=MARKUP),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_shows_every_number_of_its_summary_with_markup_as_text(name: str, llava: Llava) -> None:
    resolved = resolve(PLANS[name], llava)
    shown = resolved._repr_html_()
    assert "<i>" not in shown
    assert MARKUP in unescape(shown)
    assert f'<td style="text-align:right">{resolved.trained:,}</td>' in shown
    for line in resolved.summary().splitlines():
        for word in line.replace("(", " ").replace(")", " ").split():
            if word not in ("plan", "method", "layers", "note:"):
                assert word.strip(",") in unescape(shown), line


def test_a_comparison_shows_its_main_numbers_and_the_main_figure(tmp_path: Path) -> None:
    table = compare_table().replace({"plan": {"last": MARKUP}})
    for name in ("first", "second"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    summary = render_table(table)
    shown = FinishedRun(tmp_path, table, summary, (tmp_path / "second.png", tmp_path / "first.png"))._repr_html_()
    assert "<i>" not in shown
    assert MARKUP in unescape(shown)
    row = table.query("plan == 'middle band' and condition == 'seen' and family == 'all'").iloc[0]
    assert f"{row['retention']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}]" in shown
    assert shown.count("<img") == 1
    assert "base64,c2Vjb25k" in shown  # second
    assert "<code>" in FinishedRun(tmp_path, table, summary)._repr_html_()


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_training_tells_every_micro_batch(fresh: Llava, mix: SceneMix, tmp_path: Path, grad_accum: int) -> None:
    told: list[tuple[str, int, int]] = []
    resolved = resolve(LayerPlan("1", ()), fresh)
    apply_plan(fresh, resolved)
    train(
        fresh, resolved, samples_of(fresh, mix),
        optimisation=Optimisation(steps=3, batch_size=2, grad_accum=grad_accum),
        options=RunOptions(save_every=0), folder=tmp_path, on_progress=lambda *report: told.append(report),
    )  # fmt: skip
    total = 3 * grad_accum
    assert told == [("training", 0, total), *[("training", 1, total)] * total]


def test_ctrl_c_in_training_says_from_which_step_the_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="There is no checkpoint yet"), advise_when_interrupted(tmp_path):
        raise KeyboardInterrupt
    for step in (4, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(KeyboardInterrupt, match="go on after step 20, the last"), advise_when_interrupted(tmp_path):
        raise KeyboardInterrupt
