"""Compiled blocks: the same losses, weights and scores, and a model that is afterwards as it was."""

import sysconfig
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters

from models.llava import Llava
from models.loading.load import load
from tasks.errors import UserError
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.config import Optimisation, RunOptions
from tuning.cost.measure import synthetic_batch
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.plan.apply import apply_plan
from tuning.plan.plan import LayerPlan, Lisa, Lora
from tuning.plan.resolve import resolve
from tuning.training.loss import loss_of
from tuning.training.torch_compile import check_compiling, compiled
from tuning.training.train import train

SCORES = ["step", "family", "metric", "score", "n"]


@pytest.mark.parametrize(
    ("backend", "checkpointing", "bf16", "plan"),
    [
        ("aot_eager", True, False, LayerPlan("all")),
        pytest.param("aot_eager", False, True, LayerPlan("1-2"), marks=pytest.mark.slow),
        pytest.param("aot_eager", False, False, LayerPlan("1-2", (), "lora", Lora(2, 4, 0.0)), marks=pytest.mark.slow),
        pytest.param("inductor", True, False, LayerPlan("all"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks for it and hides the warning
def test_compiled_blocks_train_to_the_same_weights(
    backend: str,
    checkpointing: bool,
    bf16: bool,
    plan: LayerPlan,
    mix: SceneMix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuning.training.train.compiled", partial(compiled, backend=backend))
    if backend != "inductor":  # no C++ is written
        monkeypatch.setattr("tuning.training.train.check_compiling", lambda *given, **more: None)
    ends, losses, scores = [], [], []
    for on in (False, True):
        counters.clear()
        folder = tmp_path / str(on)
        folder.mkdir()
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        resolved = resolve(plan, llava)
        apply_plan(llava, resolved, low_precision=bf16)
        trained = train(
            llava, resolved, samples_of(llava, mix), folder=folder,
            optimisation=Optimisation(steps=3, batch_size=2, lr=1e-2, projector_lr=1e-2),
            options=RunOptions(save_every=0, log_every=1, compile=on, gradient_checkpointing=checkpointing),
            eval_every=2, bf16=bf16,
            eval_sets={"seen": samples_of(llava, SceneQuestions(2))},
        )  # fmt: skip
        losses.append(list(trained.losses.values()))
        scores.append(pd.read_csv(folder / "evaluations.csv")[SCORES])
        ends.append(dict(llava.model.state_dict()))
        assert (counters["stats"]["unique_graphs"] > 0) == on
        assert not any(block._compiled_call_impl for block in llava.blocks)
        assert llava.model.config.text_config._attn_implementation == "sdpa"
    assert losses[1] == pytest.approx(losses[0], rel=3e-2 if bf16 else 1e-4)
    pd.testing.assert_frame_equal(scores[1], scores[0], rtol=5e-2 if bf16 else 1e-3)
    assert ends[0].keys() == ends[1].keys()
    if not bf16:  # AdamW's first steps are as large for a gradient of rounding as for any: 1e-2 a step
        apart = [(ends[1][name] - tensor).abs().float().quantile(0.99) for name, tensor in ends[0].items()]
        assert max(map(float, apart)) < 1e-3


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_more_kinds_of_block_than_torch_would_compile_are_compiled(fresh: Llava) -> None:
    resolved = resolve(LayerPlan("0-2", ("final_norm",), "lisa", lisa=Lisa(1, 1)), fresh)
    apply_plan(fresh, resolved)
    fresh.model.train()
    counters.clear()
    losses: dict[bool, list[float]] = {False: [], True: []}
    kinds = [
        (rows, frozen, kind)
        for rows in (1, 2)
        for frozen in ((), (0,), (0, 1, 2))
        for kind in (torch.float32, torch.float64)
    ]
    for on in losses:
        for rows, frozen, kind in kinds:
            for index, block in enumerate(fresh.blocks):
                block.requires_grad_(index not in frozen)
            fresh.model.to(kind)
            batch = synthetic_batch(fresh, rows=rows, text_tokens=5)
            if not on:
                losses[on].append(float(loss_of(fresh, batch).detach()))
                continue
            with compiled(fresh, longest=64, backend="eager") as as_written:
                losses[on].append(float(loss_of(fresh, batch).detach()))
                graphs = counters["stats"]["unique_graphs"]
                with as_written():
                    assert fresh.model.config.text_config._attn_implementation == "sdpa"
                    loss_of(fresh, synthetic_batch(fresh, rows=3, text_tokens=7))
                assert counters["stats"]["unique_graphs"] == graphs
    assert counters["stats"]["unique_graphs"] > 8
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


@pytest.mark.parametrize(("longest", "attention"), [(512, "eager"), (513, "sdpa")])
def test_a_model_is_as_before_when_compiled_blocks_fail(fresh: Llava, longest: int, attention: str) -> None:
    inside = compiled(fresh, longest=longest)
    inside.__enter__()
    assert fresh.model.config.text_config._attn_implementation == attention
    assert all(block._compiled_call_impl for block in fresh.blocks)
    assert not inside.__exit__(RuntimeError, RuntimeError("planted"), None)
    assert fresh.model.config.text_config._attn_implementation == "sdpa"
    assert not any(block._compiled_call_impl for block in fresh.blocks)


def test_where_blocks_cannot_be_compiled_the_run_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^compile must be given without keep-prefix"):
        check_compiling("cpu", keep_prefix=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^compile must run in one process"):
        check_compiling("cpu")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^compile must find the C\+\+ compiler '.*none'.*leave --compile out"):
        check_compiling("cpu")
    check_compiling("cuda:0")
    (tmp_path / "none").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"^compile must find Python\.h.*Install python3-dev"):
        check_compiling("cpu")
    (tmp_path / "Python.h").touch()
    check_compiling("cpu")
