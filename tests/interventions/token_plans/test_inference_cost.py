"""``inference-cost``: its table against hand-made answers, its life, its figure, and bad input."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from figures.plans.token_plans import draw_token_plans
from interventions.token_plans.cli import main
from interventions.token_plans.config import InferenceConfig, QuestionOptions
from interventions.token_plans.from_run import plan_from_run
from interventions.token_plans.quality import score_batch
from interventions.token_plans.sweep import choose_plans, run_inference_cost
from interventions.token_plans.table import COLUMNS, tabulate
from interventions.token_plans.timing import measure
from models.inputs import prepare
from models.llava import Llava
from models.token_plans.cost import Sizes
from models.token_plans.plan import parse_token_plan
from records.intervals import ratio_intervals
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.errors import UserError
from tests.conftest import make_examples
from tests.models.token_plans import oracle

PLANS = "leave@1,keep:0.5@1:random@0"


def config(
    out: Path, *, plans: str = PLANS, rounds: int = 0, limit: int = 14, overwrite: bool = False
) -> InferenceConfig:
    """Scenes on a tiny random model."""
    questions = QuestionOptions(limit=14)
    return InferenceConfig(ModelOptions("random:tiny"), questions, plans, new_tokens=3, rounds=0, batch_size=4, out=out)


def run(settings: InferenceConfig) -> pd.DataFrame:
    """The table of a finished run."""
    finished = run_inference_cost(settings)
    assert isinstance(finished, FinishedRun)
    return finished.results


def test_the_values_of_a_batch_equal_the_oracle(llava: Llava) -> None:
    examples = make_examples(4)
    plans = [parse_token_plan(text, llava.n_layers) for text in ("all", "1:hide", "keep:0.5@1:attention")]
    found = score_batch(llava, plans, examples, new_tokens=4).set_index(["plan", "id"])
    inputs = prepare(llava, examples, answers=True)
    first: dict[str, torch.Tensor] = {}
    for plan in plans:
        with torch.inference_mode():
            scores = llava.model.lm_head(oracle.last_resid(llava, plan, inputs)).log_softmax(-1)
            _, tokens = oracle.generate(llava, plan, inputs, 4)
        texts = [text.strip() for text in llava.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        for row, (example, layout) in enumerate(zip(examples, inputs.layout, strict=True)):
            own = found.loc[(plan.text, example.id)]
            wanted = inputs.input_ids[row, layout.prompt_stop : layout.real.stop]
            columns = torch.arange(layout.prompt_stop - 1, layout.real.stop - 1)
            assert own["log_prob"] == pytest.approx(
                float(scores[row, columns].gather(1, wanted[:, None]).sum()), abs=1e-3
            )
            start = scores[row, layout.prompt_stop - 1]
            base = first.setdefault(example.id, start)
            assert own["kl"] == pytest.approx(float((base.exp() * (base - start)).sum()), abs=1e-5)
            assert own["text"] == texts[row]
            assert own["n_image"] + own["n_text"] == layout.prompt_stop - layout.real.start
            assert own["agrees"] == float(own["text"] == found.loc[("all", example.id), "text"])


def made_answers() -> pd.DataFrame:
    """16 questions about eight pictures: ``all`` has 12 right, ``leave@2`` 6 of these and 2 others."""
    right = {"all": [1, 1, 1, 1, 1, 1, 0, 0] * 2, "leave@2": [1, 1, 1, 0, 0, 0, 1, 0] * 2}
    rows = [
        {
            "plan": plan, "id": str(i), "split": "test", "group": f"g{i // 2}", "family": "what", "answer": "x",
            "text": "", "right": float(value), "agrees": float(plan == "all" or i % 2), "n_image": 16, "n_text": 8,
            "log_prob": -1.0 - (plan != "all") * (i + 1), "kl": (plan != "all") * (i + 1) / 10,
        }
        for plan, values in right.items() for i, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_what_is_kept_and_the_kl_have_no_interval_below_0() -> None:
    right = {"all": (1, 1, 1, 1), "leave@2": (0, 0, 0, 1)}
    answers = pd.concat(
        made_answers().query("plan == @plan").head(4).assign(right=values, group=list("aabb"), kl=(0.0, 0.0, 0.0, 0.1))
        for plan, values in right.items()
    )
    plans = [parse_token_plan(text, 4) for text in right]
    cut = (
        tabulate(answers, pd.DataFrame(), plans, Sizes(4, 8, 8, 4, 16), model="made", itemsize=4)
        .set_index("plan")
        .loc["leave@2"]
    )
    assert (cut["kept_lower"], cut["kl_lower"]) == (0.0, 0.0)
    assert cut["kept_upper"] > cut["kept"] == 0.25


def test_plans_that_answer_alike_have_an_interval_and_scores_between_right_and_wrong_keep_fieller_s() -> None:
    plans, times = [parse_token_plan(text, 4) for text in ("all", "leave@2")], pd.DataFrame()
    made = made_answers()
    same = made.assign(right=[*made["right"][:16]] * 2)
    row = tabulate(same, times, plans, Sizes(4, 8, 8, 4, 16), model="made", itemsize=4).set_index("plan").loc["leave@2"]
    assert row["kept_lower"] < 1 == row["kept"] < row["kept_upper"]
    assert row["difference_lower"] < 0 == row["difference"] < row["difference_upper"]
    half = made.assign(right=made["right"] * 0.5)
    row = tabulate(half, times, plans, Sizes(4, 8, 8, 4, 16), model="made", itemsize=4).set_index("plan").loc["leave@2"]
    right, base = (half["right"].to_numpy()[at : at + 16].reshape(8, 2).sum(1)[None] for at in (16, 0))
    wanted = ratio_intervals(right, base)
    assert (row["kept_lower"], row["kept_upper"]) == (max(wanted.lower[0], 0), wanted.upper[0])


def test_table_of_made_answers() -> None:
    plans = [parse_token_plan(text, 4) for text in ("all", "leave@2")]
    sizes = Sizes(4, 8, 8, 4, 16)
    times = pd.DataFrame(
        [
            {
                "plan": plan, "round": n, "first_token": t, "prefill": t / 2, "decode": 0.1, "cache_bytes": 64,
                "peak_memory": None,
            }
            for plan, seconds in (("all", (2.0, 4.0, 1.0)), ("leave@2", (1.0, 1.0, 0.5)))
            for n, t in enumerate(seconds)
        ]
    )  # fmt: skip
    table = tabulate(made_answers(), times, plans, sizes, model="made", itemsize=4).set_index("plan")
    assert tuple(table.reset_index()[list(COLUMNS)].columns) == COLUMNS
    full, cut = table.loc["all"], table.loc["leave@2"]
    assert (full["accuracy"], cut["accuracy"], cut["kept"]) == (6 / 8, 4 / 8, 4 / 6)
    assert cut["difference"] == -2 / 8
    assert cut["kept_lower"] < 4 / 6 < cut["kept_upper"]
    assert np.isnan(full["kept_lower"]), "a plan is not compared with itself"
    assert cut["agreement"] == 0.5
    assert cut["log_prob_difference"] == -8.5
    assert cut["kl"] == pytest.approx(0.85)
    assert cut["first_token_ratio"] == 0.5  # the median of 0.5, 0.25, 0.5
    assert cut["first_token"] == 1.0
    dense, text = 24 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16), 8 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)
    layer = [dense + 2 * 24 * 24 * 8, text + 2 * 8 * 8 * 8]
    assert cut["prefill_ratio"] == pytest.approx((2 * layer[0] + 2 * layer[1]) / (4 * layer[0]))
    assert cut["prefill_flops"] == 2 * (2 * layer[0] + 2 * layer[1])
    assert cut["cache_ratio"] == pytest.approx((24 + 24 + 8 + 8) / 96)
    assert (cut["compute"], cut["hide"], cut["n_groups"]) == ("0-1", "2-3", 8)


def test_times_are_measured_in_turn_and_the_cache_is_what_the_closed_form_says(llava: Llava) -> None:
    plans = [parse_token_plan(text, llava.n_layers) for text in ("all", "leave@1")]
    inputs = prepare(llava, make_examples(1))
    found = measure(llava, plans, inputs, rounds=2, new_tokens=2)
    assert found["plan"].tolist() == ["all", "leave@1"] * 2
    assert bool((found[["first_token", "prefill", "decode"]] > 0).all(axis=None))
    assert bool((found["prefill"] < found["first_token"]).all())
    n_text = inputs.n_positions - llava.n_image_tokens
    token = 2 * llava.n_kv_heads * 8 * 4
    wanted = [3 * inputs.n_positions * token, (inputs.n_positions + 2 * n_text) * token]
    assert found["cache_bytes"].tolist() == wanted * 2


def test_a_killed_run_goes_on_and_gives_equal_bytes(tmp_path: Path) -> None:
    whole = run(config(tmp_path / "whole"))
    assert list(whole.columns) == list(COLUMNS)
    assert set(whole["split"]) == {"all", "test", "unseen"}

    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if (tmp_path / "cut" / "batches" / "00001.parquet").is_file():
            raise KilledError

    with pytest.raises(KilledError):
        run_inference_cost(config(tmp_path / "cut"), on_progress=kill)
    assert not (tmp_path / "cut" / "results.csv").exists()
    (tmp_path / "cut" / "batches" / "00001.parquet").write_bytes(b"PAR1 cut")
    run(config(tmp_path / "cut"))
    for name in ("results.csv", "answers.parquet", "batches/00001.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(UserError, match="plans was 'leave@1"):
        run(config(tmp_path / "cut", plans="leave@2"))


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    found = []
    for size in (1, 7):
        questions = QuestionOptions(limit=7, split="test")
        finished = run_inference_cost(
            InferenceConfig(
                ModelOptions("random:tiny"), questions, PLANS, new_tokens=3, rounds=0, batch_size=size,
                out=tmp_path / str(size),
            )
        )  # fmt: skip
        assert isinstance(finished, FinishedRun)
        found.append(finished.results)
    for column in ("accuracy", "agreement", "log_prob", "kl"):
        np.testing.assert_allclose(found[0][column], found[1][column], atol=1e-4)


def test_command_show_report_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "random:tiny", "--limit", "7", "--split", "test", "--plans", PLANS, "--new-tokens", "2"]
    main([*words, "--rounds", "1", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "keep:0.5@1:random@0" in printed
    assert (tmp_path / "run" / "figures" / "cost_against_score.png").is_file()
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert bool((table["first_token_ratio"] > 0).all())
    main(["show", str(tmp_path / "run")])
    assert capsys.readouterr().out == printed.partition("\n")[2]
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("what token plans cost and keep", "Cost against what is kept", "keep:0.5@1:random@0"):
        assert text in page
    capsys.readouterr()
    main([*words, "--rounds", "1", "--out", str(tmp_path / "dry"), "--dry-run"])
    assert "7 questions under 3 token plans, about" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_figure_draws_every_plan_and_the_frontier() -> None:
    rows = [("all", 1.0, 1.0), ("leave@8", 0.6, 0.9), ("keep:0.5@2:random@0", 0.7, 0.8), ("6-16:hide", 0.4, 0.5)]
    table = pd.DataFrame(rows, columns=["plan", "prefill_ratio", "kept"])
    table = table.assign(model="smol", split="test", kept_lower=0.4, kept_upper=1.1, accuracy=0.5, n=70)
    (panel,) = draw_token_plans(table)
    line = next(line for line in panel.lines if line.get_label() == "frontier")
    assert line.get_xdata().tolist() == [0.4, 0.6, 1.0]
    assert set(panel.get_legend_handles_labels()[1]) == {"frontier", *(row[0] for row in rows)}


def skip_run(folder: Path, losses: Sequence[float], *, hide: bool, op: str = "skip") -> Path:
    """A finished patch run of ``len(losses)`` layers whose cells lose these shares, with intervals of 0.02."""
    folder.mkdir()
    tokens = "image" if op == "skip" else "image->last"
    rows = [
        {
            "op": op, "layer": layer, "tokens": tokens, "metric": "logit_difference", "unchanged": "clean",
            "recovered": 1 - lost, "recovered_lower": 0.98 - lost, "recovered_upper": 1.02 - lost, "n": 40,
        }
        for layer, lost in enumerate(losses)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    (folder / "manifest.json").write_text(json.dumps({"settings": {"hidden": hide}}))
    return folder


def test_a_plan_is_chosen_from_a_sweep_with_its_evidence(tmp_path: Path) -> None:
    losses = [0.6, 0.04, 0.2, 0.029, 0.01, 0.0]
    run_of = {hide: skip_run(tmp_path / f"hide-{hide}", losses, hide=hide) for hide in (True, False)}
    assert plan_from_run(run_of[True], 6).text == "leave@3"
    text, evidence = plan_from_run(run_of[False], 6)
    assert text == "freeze:3-5"
    assert "at layer 3 it is 0.029 [0.009, 0.049], n = 40" in evidence
    assert plan_from_run(skip_run(tmp_path / "knockout", losses, hide=False, op="knockout"), 6).text == "leave@3"
    plans, notes = choose_plans(f"all,auto:{run_of[True]}", 6)
    assert [plan.text for plan in plans] == ["all", "leave@3"] and len(notes) == 1


@pytest.mark.parametrize(
    ("losses", "said"),
    [([0.6, 0.2, 0.2], "got none"), ([0.0, 0.0, 0.0], "got layer 0"), ([0.6, 0.0], "must name a run on a model of 3")],
)
def test_no_plan_is_chosen_without_evidence(losses: list[float], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        plan_from_run(skip_run(tmp_path / "run", losses, hide=True), 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plans", "leave@99"], "layer must be in [0, 4), got 99"),
        (["--plans", "leave@1,leave@1"], "must be named once each"),
        (["--plans", ""], "token plan must be a form like"),
        (["--plans", "auto:/nowhere"], "auto must name a finished run of patch-sweep"),
        (["--new-tokens", "0"], "new-tokens must be >= 1, got 0"),
        (["--rounds", "-1"], "rounds must be >= 0, got -1"),
        (["--limit", "0"], "limit must be >= 1, got 0"),
        (["--limit", "1000000000"], "limit must be at most"),
        (["--split", "test+test"], "split must be"),
        (["--data", "/nowhere.jsonl"], "nowhere.jsonl"),
        (["--device", "cuda:77"], "device must be one that this machine has"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--model", "random:tiny", "--out", str(tmp_path / "run"), *words])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert said in error
    assert error.count("\n") == 1 and len(error) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "answer": "a"}, "must have a picture"),
        ({"question": "q", "answer": " "}, "must have an answer"),
    ],
)
def test_questions_without_pictures_or_answers_are_refused(row: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    settings = InferenceConfig(ModelOptions("random:tiny"), QuestionOptions(str(path)), out=tmp_path / "run")
    with pytest.raises(UserError, match=said):
        run_inference_cost(settings)
