"""How the embedded checkpoints are trained: packing, masks, resuming, folding. Tiny random models."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from models.loading.smol import merge_lora
from tasks.scenes.scene import make_scene
from tuning.data.samples import block_mask
from tuning.embedded import training
from tuning.embedded.build import main
from tuning.embedded.language import Projector, add_adapter, lora_factors, pack
from tuning.embedded.training import digest, load_snapshot, save_snapshot, schedule
from tuning.embedded.vision import BACKGROUND, pretrain_vision, scene_batch


@pytest.fixture(scope="module")
def language() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    ).eval()


def _hidden(language: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return language.model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).last_hidden_state


@torch.no_grad()
def test_a_packed_row_equals_separate_sequences(language: LlamaForCausalLM) -> None:
    prefix, branches = [3, 4, 5, 6], [([7, 8], [9, 10]), ([11], [12]), ([13, 14, 15], [16, 17])]
    packed = pack([(prefix, branches), ([1, 2], [([30], [31])])], pad=0)
    hidden = _hidden(language, packed.ids, block_mask(packed.segment), packed.position)
    for index, (prompt, answer) in enumerate(branches):
        alone = language.model(input_ids=torch.tensor([prefix + prompt + answer])).last_hidden_state[0]
        first = len(prefix) + len(prompt) - 1
        at = (packed.owner == index).nonzero()
        # float32 sums in another order: 1e-5 is a hundred times that
        torch.testing.assert_close(hidden[at[:, 0], at[:, 1]], alone[first : first + len(answer)], atol=1e-5, rtol=1e-4)
        assert packed.label[packed.owner == index].tolist() == answer


def test_an_empty_prompt_takes_its_first_label_at_the_end_of_the_prefix() -> None:
    packed = pack([([7, 8, 9], [([], [4, 5])])], pad=0)
    assert packed.label.tolist() == [[-100, -100, 4, 5, -100]]


def test_branches_do_not_see_each_other() -> None:
    packed = pack([([1, 2], [([3], [4]), ([5], [6])])], pad=0)
    mask = block_mask(packed.segment)[0, 0] == 0
    assert not mask[4:6, 2:4].any()
    assert mask[4:6, :2].all()


def test_merged_lora_equals_the_adapted_model(language: LlamaForCausalLM) -> None:
    adapted, merged = copy.deepcopy(language), copy.deepcopy(language)
    add_adapter(adapted, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    factors = lora_factors(adapted)
    merge_lora(merged, factors, scale=2.0)
    with torch.no_grad():
        assert not torch.allclose(adapted(ids).logits, language(ids).logits, atol=1e-3)
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-4)
    assert sum(p.requires_grad for p in adapted.parameters()) == len(factors) == 2 * 7 * 3


def test_folding_the_standardisation_changes_nothing() -> None:
    torch.manual_seed(0)
    projector = Projector(6, 8, torch.randn(6) * 5, torch.rand(6) * 10 + 1)
    features = torch.randn(2, 3, 6) * 7
    plain = projector.folded()
    inner = F.gelu(F.linear(features, plain["linear_1.weight"], plain["linear_1.bias"]))
    with torch.no_grad():
        torch.testing.assert_close(
            F.linear(inner, plain["linear_2.weight"], plain["linear_2.bias"]), projector(features), atol=1e-5, rtol=1e-4
        )


def test_patch_labels_follow_the_boxes() -> None:
    scene = make_scene(5, n_objects=2)
    batch = scene_batch([scene])
    for index, thing in enumerate(scene.objects):
        patches = (batch.slot[0] == index).nonzero().flatten()
        rows, columns = patches // 8, patches % 8
        assert len(rows) >= 4
        assert ((columns + 0.5) * 14 >= thing.box.left).all()
        assert ((columns + 0.5) * 14 < thing.box.right).all()
        assert ((rows + 0.5) * 14 >= thing.box.top).all()
        assert (batch.row[0, patches] == rows).all()
        assert (batch.column[0, patches] == columns).all()
    assert (batch.kind[0][batch.slot[0] < 0] == BACKGROUND).all()


def test_the_digest_tells_one_start_from_another() -> None:
    module = torch.nn.Linear(2, 2)
    before = digest(module)
    assert digest(module) == before
    with torch.no_grad():
        module.bias[0] += 1e-6
    assert digest(module) != before


def test_the_schedule_warms_up_stays_and_falls_to_zero() -> None:
    rates = [schedule(step, 100) for step in range(101)]
    assert rates[0] == 0.25
    assert rates[30] == 1.0
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_a_resumed_vision_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_stop(path: Path, modules: Any, optimizer: Any, facts: dict[str, Any]) -> None:
        save_snapshot(path, modules, optimizer, facts)
        if facts["step"] == 2:
            raise KeyboardInterrupt

    whole = pretrain_vision(tmp_path / "a", steps=3, batch_size=2, save_every=1, n_scored=2)
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_snapshot", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain_vision(tmp_path / "b", steps=3, batch_size=2, save_every=1, n_scored=2)
    resumed = pretrain_vision(tmp_path / "b", steps=3, batch_size=2, save_every=1, n_scored=2)
    with pytest.raises(ValueError, match="seed must be 0, as in the snapshot"):
        pretrain_vision(tmp_path / "b", steps=3, batch_size=2, seed=1)
    with pytest.raises(ValueError, match="steps must be 3, as in the snapshot"):  # another schedule
        pretrain_vision(tmp_path / "b", steps=9, batch_size=2)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_snapshot_restores_weights_and_the_optimizer(tmp_path: Path) -> None:
    module, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer, restored = torch.optim.AdamW(module.parameters()), torch.optim.AdamW(other.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_snapshot(tmp_path / "s", {"m": module}, optimizer, {"step": 3})
    assert load_snapshot(tmp_path / "none", {"m": other}, restored) is None
    assert load_snapshot(tmp_path / "s", {"m": other}, restored) == {"step": 3}
    assert torch.equal(other.weight, module.weight)
    moments = optimizer.state[module.weight], restored.state[other.weight]
    assert all(torch.equal(moments[0][key], moments[1][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert not (tmp_path / "s.partial").exists()


def test_an_unknown_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tyro.cli(main, args=["--work", str(tmp_path), "--stage", "stage3"])
    assert end.value.code == 2
    assert "stage3" in capsys.readouterr().err


def test_a_stage_without_its_predecessor_says_which_to_run_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuning.embedded.build", "--work", str(tmp_path), "--stage", "stage1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 2
    assert "Run --stage vision first." in done.stderr
    assert "Traceback" not in done.stderr
