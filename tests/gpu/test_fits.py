"""Probes and training on the device: the solver against scikit-learn, gradients and weights against the CPU."""

import importlib

import numpy as np
import pytest
import torch

from models.inputs import prepare
from models.loading.load import load
from probes.geometry import nearest
from probes.linear.solver import rotate, solve_logistic
from tests.conftest import make_examples
from tests.gpu.places import CUDA, PLACES, Place, close, model, on_gpu
from tests.probes.geometry.reference_sets import point_sets
from tests.probes.test_solver import CLOSE, example_set, sklearn_logistic
from tuning.cost.measure import synthetic_batch
from tuning.plan.apply import applied, trained_parameters
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import resolve
from tuning.training.loss import loss_of


@pytest.mark.parametrize(("n", "d", "classes"), [(150, 20, 2), (150, 20, 5), (40, 60, 3)])
@pytest.mark.parametrize("place", [PLACES[0], PLACES[1]])
def test_the_batched_solver_equals_scikit_learn_for_all_folds_and_penalties(
    place: Place, n: int, d: int, classes: int
) -> None:
    x, y = example_set(n, d, classes)
    basis = rotate(x.to(place.device))
    strengths = torch.tensor([100.0, 1.0]).repeat(2)
    weights = torch.ones(4, n)
    weights[2:, -n // 5 :] = 0  # a fold
    fit = solve_logistic(
        basis, y.expand(4, n).to(place.device), weights.to(place.device), [classes] * 4, strengths.to(place.device),
        tol=1e-10,
    )  # fmt: skip
    assert fit.converged.all()
    scaled = (x - basis.centre.cpu()) / basis.scale.cpu()
    for problem in range(4):
        rows = weights[problem] > 0
        reference = sklearn_logistic(scaled[rows], y[rows], float(strengths[problem]))
        coef = fit.linear(problem)[0] @ basis.rotation.T
        assert coef.device.type == place.device
        torch.testing.assert_close(coef.cpu().double(), torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE)
        assert np.abs(reference.coef_).max() > 0.01


@pytest.mark.parametrize("plan", [LayerPlan("1"), LayerPlan("all", (), "lora", Lora(4, 8, 0.0))], ids=["full", "lora"])
@pytest.mark.parametrize("place", PLACES)
def test_gradients_on_the_device_equal_those_on_the_cpu_in_float32(place: Place, plan: LayerPlan) -> None:
    found = []
    for where in (place, Place("cpu", torch.float32)):
        llava = model(where)
        batch = synthetic_batch(llava, rows=2, text_tokens=12)
        with applied(llava, resolve(plan, llava)):
            for name, parameter in trained_parameters(llava).items():
                if ".lora_B." in name:  # zero at the start, where the other factor has no gradient
                    with torch.no_grad():
                        parameter.fill_(0.02)
                if ".lora_A." in name:  # drawn by each device's own generator
                    with torch.no_grad():
                        parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
            loss = loss_of(llava, batch)
            loss.backward()
            gradients = {name: p.grad for name, p in trained_parameters(llava).items()}
        assert gradients and all(gradient is not None for gradient in gradients.values())
        flat = torch.cat([gradients[name].flatten().float().cpu() for name in sorted(gradients)])  # type: ignore[union-attr]
        found.append((loss.detach().cpu(), flat))
        llava.model.zero_grad(set_to_none=True)
    (loss, gradient), (wanted, reference) = found
    assert float((loss - wanted).abs()) < 4 * place.tolerance * float(wanted)
    cosine = torch.nn.functional.cosine_similarity(gradient, reference, dim=0)
    # in bfloat16 each gradient is rounded on its way through three blocks, and so are the weights
    assert float(cosine) > (0.99999 if place.dtype == torch.float32 else 0.97)
    assert float(reference.norm()) > 0


@pytest.mark.parametrize("place", PLACES)
def test_logits_on_the_device_equal_those_on_the_cpu_in_float32(place: Place) -> None:
    reference = model(Place("cpu", torch.float32))
    inputs = (prepare(llava, make_examples(3)) for llava in (model(place), reference))
    got, expected = (llava.logits(batch) for llava, batch in zip((model(place), reference), inputs, strict=True))
    # a convolution on a GPU may round its operands to 10 bits
    assert float((got.cpu() - expected).abs().max() / expected.abs().max()) < max(place.tolerance, 5e-3)


@pytest.mark.parametrize("place", CUDA)
def test_weights_drawn_on_the_device_are_seeded_and_have_a_hash_of_their_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = importlib.import_module("models.loading.load")
    on_cpu = load("random:tiny", device=place.device, dtype=place.dtype)
    monkeypatch.setattr(loading, "_DRAW_ON_CPU_BELOW", 0)
    one, same, other = (load("random:tiny", device=place.device, dtype=place.dtype, seed=seed) for seed in (0, 0, 1))
    weights = [m.model.get_parameter("model.language_model.layers.1.mlp.up_proj.weight") for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len({on_cpu.weight_hash, one.weight_hash, other.weight_hash}) == 3
    # 96 x 48 draws of variance 1 / 48: their standard deviation is known to 1 %, five times that is allowed
    assert abs(float(weights[0].float().std()) * 48**0.5 - 1) < 0.05
    inputs = prepare(one, make_examples(2))
    assert close(place, one.logits(inputs), same.logits(inputs))


@on_gpu
def test_neighbours_on_the_device_equal_those_on_the_cpu(place: Place) -> None:
    points = torch.from_numpy(point_sets()["20-d Gaussian in 576"])
    here, there = nearest(points, k=32), nearest(points.to(place.device), k=32)
    assert torch.equal(there.indices.cpu(), here.indices)
    torch.testing.assert_close(there.distances.cpu(), here.distances)


@on_gpu
def test_peak_memory_of_a_step_is_measured(place: Place) -> None:
    from tuning.cost.measure import measure_step

    llava = model(place)
    resolved = resolve(LayerPlan("1"), llava)
    with applied(llava, resolved):
        cost = measure_step(llava, resolved, synthetic_batch(llava, rows=2, text_tokens=12), repeats=1, warmup=1)
    assert cost.peak_is_measured
    assert cost.peak_memory > cost.memory.weights
