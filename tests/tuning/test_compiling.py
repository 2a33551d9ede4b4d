"""Compiled blocks: the same losses and weights, and a model that is afterwards as it was."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from models.llava import Llava, load
from records.errors import BadInput
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.apply import apply_plan
from tuning.compiling import check_compiling, compiled
from tuning.config import Optimisation, Running
from tuning.plan import LayerPlan, Lora, resolve
from tuning.sources import SceneMix, SceneQuestions
from tuning.trainer import train


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks for it and hides the warning
def test_compiled_blocks_train_to_the_same_weights(
    backend: str, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.trainer.compiled", partial(compiled, backend=backend))
    ends, losses, scores = [], [], []
    counters.clear()
    for on in (False, True):
        folder = tmp_path / str(on)
        folder.mkdir()
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        resolved = resolve(LayerPlan("all"), llava)
        apply_plan(llava, resolved)
        trained = train(
            llava, resolved, samples_of(llava, mix), folder=folder,
            optimisation=Optimisation(steps=3, batch_size=2, lr=1e-2, projector_lr=1e-2),
            running=Running(save_every=0, log_every=1, eval_every=2, compile=on, gradient_checkpointing=True),
            eval_sets={"seen": samples_of(llava, SceneQuestions(2))},
        )  # fmt: skip
        assert (counters["stats"]["unique_graphs"] > 0) == on
        losses.append(list(trained.losses.values()))
        scores.append((folder / "evaluations.csv").read_text())
        ends.append(dict(llava.model.state_dict()))
        assert not any(block._compiled_call_impl for block in llava.blocks)
        assert llava.model.config.text_config._attn_implementation == "sdpa"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert scores[0].count("\n") == scores[1].count("\n") > 1
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-2, atol=1e-3)


def test_lora_is_not_compiled_and_says_so(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    resolved = resolve(LayerPlan("1-2", (), "lora", Lora(2, 4, 0.1)), fresh)
    apply_plan(fresh, resolved)
    notes: list[str] = []
    with torch.compiler.set_stance("fail_on_recompile"):
        train(fresh, resolved, samples_of(fresh, mix), folder=tmp_path, optimisation=Optimisation(steps=1),
              running=Running(save_every=0, compile=True), on_note=notes.append)  # fmt: skip
    assert "LoRA is not compiled: its blocks run as written" in notes


def test_a_model_is_as_before_when_compiled_blocks_fail(fresh: Llava) -> None:
    inside = compiled(fresh)
    inside.__enter__()
    assert fresh.model.config.text_config._attn_implementation == "eager"
    assert not inside.__exit__(RuntimeError, RuntimeError("planted"), None)
    assert fresh.model.config.text_config._attn_implementation == "sdpa"
    assert not any(block._compiled_call_impl for block in fresh.blocks)


def test_where_blocks_cannot_be_compiled_the_run_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"^compile must not stand beside keep-prefix"):
        check_compiling(keep_prefix=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match=r"^compile must run in one process"):
        check_compiling()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BadInput, match=r"^compile must find a C\+\+ compiler.*Install g\+\+"):
        check_compiling()
