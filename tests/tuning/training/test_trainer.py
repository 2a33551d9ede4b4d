"""Training: exactly the plan changes, resuming changes nothing, and what goes wrong stops with one sentence."""

import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.llava import Llava
from models.loading.load import load
from records.run import RESERVE
from tasks.errors import UserError
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.config import Optimisation, RunOptions
from tuning.cost.measure import count_activations, synthetic_batch
from tuning.data.labels import IGNORED
from tuning.data.samples import Samples, collate
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.data.step_order import StepOrder
from tuning.plan.apply import apply_plan, set_checkpointing
from tuning.plan.lora import remove_lora
from tuning.plan.plan import WHOLE, LayerPlan, Lisa, Lora
from tuning.plan.resolve import Resolved, lisa_layers, resolve
from tuning.scoring.answers import model_inputs
from tuning.training import checkpoint
from tuning.training.train import Trained, train
from tuning.training.trainer import LossNotFiniteError, PlanTrainer

FAST = Optimisation(steps=3, batch_size=2, lr=1e-2, projector_lr=1e-2)
QUIET = RunOptions(save_every=0, log_every=1)
NO_GRADIENT = ("k_proj.bias",)


def go(
    llava: Llava,
    plan: LayerPlan,
    folder: Path,
    samples: Samples,
    *,
    optimisation: Optimisation = FAST,
    options: RunOptions = QUIET,
    **more: Any,
) -> tuple[Trained, Resolved]:
    resolved = resolve(plan, llava)
    apply_plan(llava, resolved, seed=optimisation.seed)
    folder.mkdir(exist_ok=True)
    trained = train(llava, resolved, samples, optimisation=optimisation, options=options, folder=folder, **more)
    return trained, resolved


def weights(llava: Llava) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in llava.model.state_dict().items()}


PLANS = {
    "one block": LayerPlan("1", ()),
    "band and projector": LayerPlan("1-2"),
    "stage 2": LayerPlan("all", WHOLE),
    "projector": LayerPlan("none"),
    "tower from 1": LayerPlan("none", ("vision:1",)),
    "tower and projector": LayerPlan("2", ("vision", "projector")),
    "head": LayerPlan("none", ("lm_head",)),
    "norm": LayerPlan("none", ("final_norm",)),
    "embeddings": LayerPlan("none", ("embeddings",)),
    "lora": LayerPlan("1-2", (), "lora", Lora(2, 4, 0.0)),
    "lora and projector": LayerPlan("0,2", ("projector",), "lora", Lora(2, 4, 0.05)),
    "lisa": LayerPlan("0-2", ("final_norm",), "lisa", lisa=Lisa(1, 2)),
}


@pytest.mark.parametrize("name", PLANS)
def test_exactly_the_planned_tensors_change(name: str, fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    before = weights(fresh)
    options = RunOptions(save_every=0, gradient_checkpointing=name in ("band and projector", "lora", "tower from 1"))
    _, resolved = go(fresh, PLANS[name], tmp_path, samples_of(fresh, mix), options=options)
    if resolved.lora_modules:
        remove_lora(fresh, merge=True)
    planned = {*resolved.parameters, *(f"{module}.weight" for module in resolved.lora_modules)}
    if resolved.plan.method == "lisa":
        drawn = {layer for step in range(3) for layer in lisa_layers(resolved, step, 0)}
        resting = {f"block {layer}" for layer in range(3)} - {f"block {layer}" for layer in drawn}
        planned -= {key for group in resolved.groups if group.name in resting for key in group.names}
    changed = {key for key, tensor in weights(fresh).items() if not torch.equal(tensor, before[key])}
    if name == "embeddings":  # rows of words that never occur keep their bits, the tensor does not
        assert torch.equal(weights(fresh)["lm_head.weight"], before["lm_head.weight"])
    assert changed == planned


def test_the_optimizer_holds_the_plan_at_two_rates_and_nothing_else(
    fresh: Llava, mix: SceneMix, tmp_path: Path
) -> None:
    resolved = resolve(LayerPlan("1", ("projector", "vision:1")), fresh)
    apply_plan(fresh, resolved)
    settings = Optimisation(steps=2, lr=1e-4, projector_lr=3e-4)
    trainer = PlanTrainer(fresh, resolved, samples_of(fresh, mix), settings, QUIET, tmp_path)
    optimizer = trainer.optimizer
    by_id = {id(p): name for name, p in fresh.model.named_parameters()}
    held = {by_id[id(p)]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert held.keys() == set(resolved.parameters)
    assert {rate for name, rate in held.items() if "language_model" in name} == {1e-4}
    assert {rate for name, rate in held.items() if "language_model" not in name} == {3e-4}


def test_the_rate_rises_for_3_percent_and_falls_as_a_cosine(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    resolved = resolve(LayerPlan("1", ()), fresh)
    apply_plan(fresh, resolved)
    settings = Optimisation(steps=100, lr=1.0)
    trainer = PlanTrainer(fresh, resolved, samples_of(fresh, mix), settings, QUIET, tmp_path)
    rate = trainer.schedule.lr_lambdas[0]
    assert [rate(step) for step in range(4)] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert rate(3 + 97 // 2) == pytest.approx(0.5, abs=0.02)
    assert rate(100) == pytest.approx(0.0)


@pytest.mark.parametrize("plan", [LayerPlan("2", ()), LayerPlan("1-2", (), "lora", Lora(2, 4, 0.3))])
def test_checkpointing_changes_no_weight_and_keeps_gradients_above_a_frozen_prefix(
    plan: LayerPlan, mix: SceneMix, tmp_path: Path
) -> None:
    ends = []
    for on in (False, True):
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        torch.manual_seed(0)  # LoRA's dropout must be the same when a block is computed again
        go(llava, plan, tmp_path / str(on), samples_of(llava, mix),
           options=RunOptions(save_every=0, gradient_checkpointing=on))  # fmt: skip
        ends.append(weights(llava))
    for key, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][key], atol=1e-6, rtol=1e-5)


def test_reentrant_checkpointing_would_lose_them(fresh: Llava) -> None:
    from torch.utils.checkpoint import checkpoint as run

    resolved = resolve(LayerPlan("2", ()), fresh)
    apply_plan(fresh, resolved)
    set_checkpointing(fresh, 2)
    fresh.model.train()
    batch = synthetic_batch(fresh, rows=1, text_tokens=8)
    assert fresh.model(**batch).loss.requires_grad
    block: Any = fresh.blocks[2]
    block._gradient_checkpointing_func = lambda *args: run(*args, use_reentrant=True)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        assert not fresh.model(**batch).loss.requires_grad


def test_nothing_is_kept_below_the_lowest_trained_block(fresh: Llava) -> None:
    batch = synthetic_batch(fresh, rows=2, text_tokens=16)
    kept = {}
    for spec in ("0", "1", "2"):
        apply_plan(fresh, resolve(LayerPlan(spec, ()), fresh))
        seen: list[bool] = []
        handles = [
            block.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.requires_grad))
            for block in [*fresh.vision_blocks, *fresh.blocks]
        ]
        _, kept[spec] = count_activations(lambda: fresh.model(**batch).loss)
        for handle in handles:
            handle.remove()
        assert seen == [False] * (3 + int(spec)) + [True] * (3 - int(spec))
    assert kept["0"] > kept["1"] > kept["2"] > 0
    first, second = kept["0"] - kept["1"], kept["1"] - kept["2"]
    assert first == pytest.approx(second, rel=0.02)  # each frozen block below saves the same


def test_a_resumed_run_ends_with_the_same_weights(mix: SceneMix, tmp_path: Path) -> None:
    settings = Optimisation(steps=6, batch_size=2, grad_accum=2, lr=1e-2, projector_lr=1e-2)
    for name in ("lora and projector", "lisa", "band and projector"):
        ends = []
        for stop in (None, 3):
            folder = tmp_path / f"{name}-{stop}"
            llava = load(tiny_config(grouped=True), seed=0, validate=False)
            options = RunOptions(save_every=3, keep=5, log_every=1)
            go(llava, PLANS[name], folder, samples_of(llava, mix), optimisation=settings, options=options)
            if stop:
                shutil.rmtree(folder / "checkpoint-6")
                llava = load(tiny_config(grouped=True), seed=0, validate=False)
                go(llava, PLANS[name], folder, samples_of(llava, mix), optimisation=settings, options=options,
                   resume=folder / f"checkpoint-{stop}")  # fmt: skip
            ends.append((weights(llava), (folder / "log.jsonl").read_text()))
        assert all(torch.equal(tensor, ends[1][0][key]) for key, tensor in ends[0][0].items()), name
        losses = [[json.loads(line)["loss"] for line in log.splitlines()] for _, log in ends]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 6


def long_run(folder: Path) -> dict[str, Tensor]:
    """Twelve steps with a checkpoint after each, from the last one there is; where a process is killed in."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sums of two processes must be the same
    folder.mkdir(exist_ok=True)
    settings = Optimisation(steps=12, batch_size=2, lr=1e-3, projector_lr=1e-3)
    options = RunOptions(save_every=1, log_every=1)
    llava = load(tiny_config(grouped=True), seed=0, validate=False)
    samples = samples_of(llava, SceneMix(8, questions=2))
    last = checkpoint.last_checkpoint(folder)
    go(llava, LayerPlan("1-2"), folder, samples, optimisation=settings, options=options, resume=last)
    torch.set_num_threads(threads)
    return weights(llava)


def test_a_run_killed_with_sigkill_and_resumed_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    root, killed, whole = Path(__file__).parents[3], tmp_path / "killed", tmp_path / "whole"
    code = f"import pathlib, tests.tuning.training.test_trainer as t; t.long_run(pathlib.Path({str(killed)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment)
    deadline = time.monotonic() + 250
    while (last := checkpoint.last_checkpoint(killed)) is None or checkpoint.checkpoint_step(last) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = checkpoint.last_checkpoint(killed)
    assert reached is not None
    assert checkpoint.checkpoint_step(reached) < 12
    one, other = long_run(killed), long_run(whole)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (killed, whole)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_a_loss_that_is_no_number_stops_before_the_step_and_keeps_the_last_checkpoint(
    fresh: Llava, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PlanTrainer.compute_loss
    calls = []

    def broken(self: PlanTrainer, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return plain(self, *args, **options) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(PlanTrainer, "compute_loss", broken)
    settings = Optimisation(steps=5, batch_size=2, lr=1e-3)
    with pytest.raises(
        LossNotFiniteError, match=r"loss must be finite, got nan at step 3. The last checkpoint is checkpoint-2"
    ):
        go(fresh, LayerPlan("1", ()), tmp_path, samples_of(fresh, mix), optimisation=settings,
           options=RunOptions(save_every=1))  # fmt: skip
    assert checkpoint.last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(fresh).values())


def test_a_gradient_that_is_no_number_stops_too(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        return gradient * math.inf

    samples = samples_of(fresh, mix)
    resolved = resolve(LayerPlan("1", ()), fresh)
    apply_plan(fresh, resolved)
    fresh.model.get_parameter(resolved.parameters[0]).register_hook(spoil)
    with pytest.raises(
        LossNotFiniteError, match="norm of the gradient must be finite, got .* at step 1. There is no checkpoint yet"
    ):
        train(fresh, resolved, samples, optimisation=FAST, options=QUIET, folder=tmp_path)


def test_keeping_the_prefix_gives_the_same_losses_and_opens_no_picture_twice(
    mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    monkeypatch.setattr(Samples, "_open", _counting(Samples._open, opened))
    settings = Optimisation(epochs=3.0, batch_size=2, lr=1e-2)
    for spec in (LayerPlan("2", ()), LayerPlan("none", ("final_norm",)), LayerPlan("0", ())):
        losses, counts = [], []
        for keep in (False, True):
            opened.clear()
            llava = load(tiny_config(grouped=True), seed=0, validate=False)
            options = RunOptions(save_every=0, log_every=1)
            folder = tmp_path / f"{spec.label}{keep}"
            trained, _ = go(llava, spec, folder, samples_of(llava, mix), optimisation=settings, options=options,
                            keep_prefix=keep)  # fmt: skip
            losses.append(list(trained.losses.values()))
            counts.append(len(opened))
        assert len(losses[0]) == 12
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert counts[0] == 3 * counts[1]


def _counting(plain: Any, opened: list[int]) -> Any:
    def open_and_count(self: Samples, picture: Any) -> Tensor:
        opened.append(1)
        found: Tensor = plain(self, picture)
        return found

    return open_and_count


def test_keeping_a_prefix_that_trains_is_refused(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    for plan in (LayerPlan("1"), PLANS["lisa"]):
        with pytest.raises(UserError, match="keep-prefix must have frozen layers below"):
            go(fresh, plan, tmp_path, samples_of(fresh, mix), keep_prefix=True)


def test_keeping_a_prefix_that_no_epoch_reads_or_no_process_has_is_refused(
    fresh: Llava, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(fresh, mix)
    once = Optimisation(steps=len(samples) // 2, batch_size=2)
    with pytest.raises(UserError, match="keep-prefix must have a second epoch, which reads .*, got 1 epochs"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, optimisation=once, keep_prefix=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="keep-prefix must have the full model in every process, got FSDP"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, keep_prefix=True)


def test_resuming_another_run_is_refused_with_what_differs(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    samples = samples_of(fresh, mix)
    go(fresh, LayerPlan("1", ()), tmp_path, samples, options=RunOptions(save_every=3), facts={"data": "abc"})
    with pytest.raises(UserError, match="another data: it was 'abc', is 'xyz'"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, facts={"data": "xyz"}, resume=tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="checkpoint must have exactly the plan's parameters"):
        go(fresh, LayerPlan("2", ()), tmp_path, samples, facts={"data": "abc"}, resume=tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="another processes: it was 1, is 2"):  # of an older run, which did not say
        go(fresh, LayerPlan("1", ()), tmp_path, samples, facts={"processes": 2}, resume=tmp_path / "checkpoint-3")
    (tmp_path / "trainer_state.json").write_text("{}")  # of plain Trainer, whose checkpoints say nothing of the run
    with pytest.raises(UserError, match="resume must name a checkpoint folder"):
        go(fresh, LayerPlan("2", ()), tmp_path, samples, resume=tmp_path)


def test_a_full_disk_is_refused_before_and_reported_during(
    fresh: Llava, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(fresh, mix)

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # a file cannot grow further, as on a full disk
    try:
        with pytest.raises(UserError, match=r"checkpoint must fit on the disk, got .*File too large.* at step 1"):
            go(fresh, LayerPlan("1", ()), tmp_path, samples, options=RunOptions(save_every=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.last_checkpoint(tmp_path) is None
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("records.run.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="2 checkpoints must fit on the disk"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, options=RunOptions(save_every=1))


def test_what_a_run_has_on_the_disk_already_needs_no_more_room(
    fresh: Llava, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, once = samples_of(fresh, mix), RunOptions(save_every=2)
    _, resolved = go(fresh, LayerPlan("1", ()), tmp_path, samples, options=RunOptions(save_every=2, keep=5))
    middle, end = tmp_path / "checkpoint-2", tmp_path / "checkpoint-3"
    one = resolved.trained * 12

    def leave(free: int) -> None:
        monkeypatch.setattr("records.run.shutil.disk_usage", lambda path: usage._replace(free=free + RESERVE))

    usage = shutil.disk_usage(tmp_path)
    leave(one - 1000)
    with pytest.raises(
        UserError, match="2 checkpoints must fit on the disk"
    ):  # an old one goes only once the new one is whole
        go(fresh, LayerPlan("1", ()), tmp_path, samples, options=once, resume=middle)
    go(fresh, LayerPlan("1", ()), tmp_path, samples, options=once, resume=end, model_bytes=500)  # writes none any more
    with pytest.raises(UserError, match=r"^the model must fit on the disk, .* Make room\.$"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, model_bytes=one)
    leave(one + 1000)
    with pytest.raises(
        UserError, match="2 checkpoints and the model must fit on the disk, got .* or use --save-every 0"
    ):
        go(fresh, LayerPlan("1", ()), tmp_path, samples, options=once, resume=middle, model_bytes=2000)
    go(fresh, LayerPlan("1", ()), tmp_path, samples, options=once, resume=middle)


def test_data_that_cannot_be_read_are_no_full_disk(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    class Gone(SceneMix):
        gone = False

        def __getitem__(self, index: int) -> Any:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().__getitem__(index)

    source = Gone(8, questions=2)
    samples = samples_of(fresh, source)
    source.gone = True
    with pytest.raises(OSError, match="Input/output error"):
        go(fresh, LayerPlan("1", ()), tmp_path, samples)


def test_words_alone_are_a_step_without_a_gradient_for_the_projector(fresh: Llava, tmp_path: Path) -> None:
    before = weights(fresh)
    samples = samples_of(fresh, SceneMix(4, questions=1, text_share=1.0))
    trained, _ = go(fresh, LayerPlan("none"), tmp_path, samples)
    assert trained.steps == 3
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(fresh).items())


def test_words_alone_move_no_projector_by_momentum(fresh: Llava, tmp_path: Path) -> None:
    samples = samples_of(fresh, SceneMix(8, questions=1, text_share=0.5))
    shown: list[bool] = []
    plain = samples.__class__.__getitem__
    states: list[Tensor] = [weights(fresh)["model.multi_modal_projector.linear_1.weight"]]

    class Seen(Samples):
        def __getitem__(self, index: int) -> Any:
            shown.append(bool(self.pictured[index]))
            return plain(self, index)

    samples.__class__ = Seen
    each = Optimisation(steps=8, batch_size=1, lr=1e-2, projector_lr=1e-2, warmup=0.0)
    go(fresh, LayerPlan("none"), tmp_path, samples, optimisation=each,
       on_note=lambda line: states.append(weights(fresh)["model.multi_modal_projector.linear_1.weight"]))  # fmt: skip
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(states)]
    assert len(moved) == 8
    assert shown.index(False, shown.index(True)) > 0  # words after a picture, when there is momentum
    assert moved == shown[:8]


def test_samples_made_ahead_give_the_same_weights(
    mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    # As in programs that spawn their processes: a model cannot be pickled for the workers.
    monkeypatch.setattr("multiprocessing.context._default_context._actual_context", get_context("spawn"))
    for workers in (0, 2):
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        options = RunOptions(save_every=0, log_every=1, workers=workers)
        trained, _ = go(llava, LayerPlan("1"), tmp_path / str(workers), samples_of(llava, mix), options=options)
        assert len(trained.data_seconds) == len(trained.step_seconds) == 2
        assert all(second > 0 for second in trained.data_seconds)
        ends.append(weights(llava))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_evaluation_on_the_way_scores_what_generating_would(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    scored = samples_of(fresh, SceneQuestions(2))
    options = RunOptions(save_every=0, log_every=1)
    go(
        fresh,
        LayerPlan("all"),
        tmp_path,
        samples_of(fresh, mix),
        options=options,
        eval_sets={"seen": scored},
        eval_every=2,
    )
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    evaluated = [entry for entry in entries if "eval/seen/all" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 3]
    assert 0 <= evaluated[0]["eval/seen/colour"] <= 1


@torch.no_grad()
def test_a_right_answer_is_one_that_generating_writes(fresh: Llava) -> None:
    from dataclasses import replace

    from tasks.prompts import vicuna_v1
    from tests.conftest import make_examples
    from tuning.data.conversation import Conversation, from_examples
    from tuning.scoring.answers import score_answers, text_log_likelihood

    examples = make_examples(3)
    tokenizer = fresh.tokenizer
    answers = []
    for example in examples:
        from models.inputs import prepare

        inputs = prepare(fresh, [example])
        out = fresh.model.generate(**inputs.model_kwargs(), max_new_tokens=3, do_sample=False)  # type: ignore[misc]
        answers.append(out[0, inputs.n_positions :])
    assert vicuna_v1("?").endswith("ASSISTANT:")

    class Given:
        name, digest = "given", "0"

        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> Conversation:
            return from_examples([replace(examples[index], answer="cat")])

    samples = samples_of(fresh, Given())
    table = score_answers(fresh, samples, batch_size=2)
    said = [tokenizer.decode(ids).startswith(" cat</s>") for ids in answers]
    assert table["right"].astype(bool).tolist() == said
    assert (table["log_prob"] < 0).all()
    assert text_log_likelihood(fresh, "some words") < 0


def test_bf16_trains_wide_weights_with_narrow_products(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    resolved = resolve(LayerPlan("1-2"), fresh)
    before = weights(fresh)
    apply_plan(fresh, resolved, low_precision=True)
    options = RunOptions(save_every=0, gradient_checkpointing=True, log_every=1)
    trained = train(
        fresh, resolved, samples_of(fresh, mix), optimisation=FAST, options=options, folder=tmp_path, bf16=True
    )
    assert all(math.isfinite(loss) for loss in trained.losses.values())
    changed = {k for k, v in weights(fresh).items() if not torch.equal(v.float(), before[k].to(torch.bfloat16).float())}
    assert set(resolved.parameters) <= changed
    frozen = set(before) - set(resolved.parameters)
    assert not changed & frozen


def test_an_empty_data_set_is_refused(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    samples = samples_of(fresh, mix)
    samples.indices = samples.indices[:0]
    with pytest.raises(UserError, match="data must have at least one sample"):
        go(fresh, LayerPlan("1"), tmp_path, samples)


@pytest.mark.parametrize("loss_mean", ["micro-batch", "token"])
def test_the_loss_of_a_step_is_the_mean_that_is_named(loss_mean: Any, mix: SceneMix, tmp_path: Path) -> None:
    llava = load(tiny_config(grouped=True), seed=0, validate=False)
    samples = samples_of(llava, mix)
    settings = Optimisation(steps=1, batch_size=2, grad_accum=3, lr=0.0, projector_lr=0.0, loss_mean=loss_mean)
    trained, _ = go(llava, LayerPlan("1"), tmp_path / "run", samples, optimisation=settings)
    order = list(StepOrder(samples.lengths, samples.pictured, group=6, batches=3, seed=settings.seed))
    means, counts = [], []
    for start in (0, 2, 4):
        batch = collate([samples[i] for i in order[start : start + 2]], pad_id=llava.pad_token_id)
        labels = batch["labels"][:, 1:]
        inputs = model_inputs({k: v for k, v in batch.items() if k not in ("owner", "sample", "labels")}, llava)
        with torch.no_grad():
            logits = llava.model(**inputs).logits[:, :-1].flatten(0, 1)
        means.append(float(torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED)))
        counts.append(int((labels != IGNORED).sum()))
    assert len(set(counts)) > 1
    wanted = np.average(means, weights=counts if loss_mean == "token" else None)
    assert trained.losses[1] == pytest.approx(wanted, rel=1e-5)
    assert abs(np.average(means, weights=counts) - np.mean(means)) > 1e-4 * wanted
