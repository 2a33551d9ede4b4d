"""Cross-validation: known answers, controls, leaks, intervals, determinism."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.calibration import PLANTED, PROBING, layers_trial, noise_trial, probing_lines, probing_trial
from probes.evaluation.cross_validation import RIDGE_STRENGTHS, Result, evaluate
from probes.evaluation.folds import plan_folds
from probes.evaluation.jobs import BATCHED
from probes.evaluation.scores import (
    Source,
    dependence,
    permute_classes,
    score_classes,
    score_values,
)
from probes.evaluation.selection import Hurdle, choose_best, hurdles_of, select_sites
from probes.evaluation.shuffled_ridge import Statistic, agreement, gain_in_error, permute_ridge
from probes.linear.estimators import LogisticProbe
from probes.linear.solver import rotate
from records.resampling import draw_permutations


def noise(n: int, d: int, *, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cross_validate(
    x: Tensor,
    labels: Mapping[str, npt.ArrayLike],
    groups: npt.ArrayLike,
    *,
    probe: object = "logistic",
    strengths: Sequence[float] | None = None,
    **options: Any,
) -> Mapping[str, Result]:
    return evaluate(x, plan_folds(labels, groups, **options), probe=probe, strengths=strengths)


def planted(n: int = 240, d: int = 24) -> tuple[list[Tensor], npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Five layers of noise; three classes lie apart along directions in layer 2 only. Two examples a group."""
    labels = np.array(["red", "green", "blue"])[np.random.default_rng(0).integers(0, 3, n)]
    layers = [noise(n, d, seed=layer) for layer in range(5)]
    directions = noise(3, d, seed=9)
    layers[2] += directions[torch.from_numpy(np.unique(labels, return_inverse=True)[1])]
    return layers, labels, np.arange(n) // 2


@pytest.mark.parametrize("probe", ["logistic", "ridge", "mass_mean", "mlp", LogisticRegression(C=0.01)])
def test_a_planted_direction_is_found_at_its_layer_and_not_at_others(probe: object) -> None:
    layers, labels, groups = planted()
    plan = plan_folds({"colour": labels}, groups, controls=["shuffled"])
    found = [evaluate(x, plan, probe=probe)["colour"] for x in layers]
    scores = [result.score.value for result in found]
    assert scores[2] > 0.85
    assert all(score < 0.5 for layer, score in enumerate(scores) if layer != 2)
    assert found[2].score.lower > found[2].chance == pytest.approx(1 / 3, abs=0.05)
    chosen = select_sites(found, [0] * 5, seed=0)
    assert [site.p_max < 0.005 for site in chosen] == [False, False, True, False, False]
    assert chosen[2].best_share == 1


def test_shuffled_labels_score_at_chance_where_real_ones_do_not() -> None:
    layers, labels, groups = planted()
    results = [cross_validate(layers[2], {"colour": labels}, groups, seed=seed)["colour"] for seed in range(8)]
    assert min(result.score.value for result in results) > 0.85
    shuffled = [result.controls["shuffled"]["balanced_accuracy"] for result in results]
    assert np.mean([score.value for score in shuffled]) == pytest.approx(1 / 3, abs=0.04)
    assert sum(score.lower < 1 / 3 < score.upper for score in shuffled) >= 6  # of eight at 95 %


def test_a_label_leaked_through_duplicate_images_is_caught_by_grouping() -> None:
    pictures, copies = 60, 4
    x = noise(pictures, 200, seed=0).repeat_interleave(copies, 0) + 0.01 * noise(pictures * copies, 200, seed=1)
    labels = np.random.default_rng(0).integers(0, 2, pictures).repeat(copies)  # says nothing but which picture it is
    leaked = cross_validate(x, {"y": labels}, np.arange(len(x)), controls=[])["y"].score
    grouped = cross_validate(x, {"y": labels}, np.arange(pictures).repeat(copies), controls=[])["y"].score
    assert leaked.value > 0.95
    assert grouped.lower < 0.5 < grouped.upper + 0.05
    assert grouped.value < 0.65


def test_the_control_task_scores_high_where_types_recur_and_selectivity_tells() -> None:
    types = np.arange(300) % 10
    x = torch.eye(10)[torch.from_numpy(types)] * 3 + noise(300, 10, seed=0) * 0.1
    result = cross_validate(x, {"y": types % 2}, np.arange(300), types=types, strengths=[1.0], seed=1)["y"]
    assert result.score.value > 0.95  # types are written in x, so any labelling of them can be read: no selectivity
    assert abs(result.selectivity) < 0.05
    fresh = cross_validate(x, {"y": types % 2}, np.arange(300), strengths=[1.0])["y"]
    assert fresh.selectivity > 0.3  # by default every group is its own type, which nothing can learn
    assert np.isnan(cross_validate(x, {"y": types % 2}, np.arange(300), controls=[])["y"].selectivity)


def test_continuous_targets_are_read_by_ridge_with_r2() -> None:
    x = noise(200, 10, seed=0)
    y = (x[:, 0] * 2 + 0.1 * noise(200, 1, seed=1)[:, 0]).numpy() + 40
    results = cross_validate(x, {"size": y, "sign": y > 40}, np.arange(200), continuous=["size"])
    size = results["size"]
    assert (size.probe, size.metric, results["sign"].probe) == ("ridge", "r2", "logistic")
    assert size.score.value > 0.95
    assert size.controls["shuffled"]["r2"].value < 0.1
    assert size.chance == pytest.approx(0, abs=0.05)
    assert size.p_value < 0.01


def test_predictions_are_those_of_scikit_learn_fitted_on_the_training_folds() -> None:
    layers, labels, groups = planted()
    result = evaluate(layers[2], plan_folds({"c": labels}, groups, controls=[]), strengths=[30.0], tol=1e-10)["c"]
    x = layers[2].double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    for k in range(5):
        test = result.fold == k
        assert not set(groups[test]) & set(groups[~test])
        reference = LogisticRegression(C=1 / 30, tol=1e-8, max_iter=1000).fit(x[~test], labels[~test])
        # Balanced accuracy weighs classes equally, so each probability counts relative to the class's frequency.
        share = np.unique(labels[~test], return_counts=True)[1]
        expected = reference.classes_[(reference.predict_proba(x[test]) / share).argmax(1)]
        assert (expected == result.predicted[test]).all()


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_the_strength_is_chosen_without_the_test_fold(folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, labels, groups = planted()
    plan = plan_folds({"c": labels}, groups, folds=folds)
    target = plan.targets["c"]
    judged = set()
    for split in target.inner:
        for outer, judge in split.judges:
            judged.add(outer)
            assert not (split.train & (target.fold == outer)).any()
            assert not (judge & (target.fold == outer)).any()
            assert not set(groups[split.train]) & set(groups[judge])
    assert judged == set(range(folds))

    trained: list[list[npt.NDArray[np.bool_]]] = []
    real = BATCHED[LogisticProbe]

    def spy(basis, jobs, strengths, tol):  # type: ignore[no-untyped-def]
        trained.append([job.train.copy() for job in jobs])
        return real(basis, jobs, strengths, tol)

    monkeypatch.setitem(BATCHED, LogisticProbe, spy)
    evaluate(layers[2], plan)
    inner_fits, outer_fits = trained
    assert len(inner_fits) == len(target.inner)
    for number, train in enumerate(outer_fits):
        assert not (train & (target.fold == number % folds)).any()


def test_changing_the_labels_of_a_test_fold_does_not_change_its_predictions() -> None:
    layers, labels, groups = planted()
    plan = plan_folds({"c": labels}, groups, controls=[])
    before = evaluate(layers[2], plan)["c"]
    truth = plan.targets["c"].truth
    truth[before.fold == 1] = (truth[before.fold == 1] + 1) % 3
    after = evaluate(layers[2], plan)["c"]
    assert (before.predicted[before.fold == 1] == after.predicted[before.fold == 1]).all()
    assert after.strengths[1] == before.strengths[1]
    assert after.score.value < before.score.value - 0.1


def test_the_better_strength_is_chosen() -> None:
    layers, labels, groups = planted()
    result = cross_validate(layers[2], {"c": labels}, groups, strengths=[1e6, 10.0])["c"]
    assert result.strengths == (10.0,) * 5


def test_transfer_examples_are_never_fitted_and_predicted_without_their_group() -> None:
    layers, labels, groups = planted()
    unseen = np.zeros(len(labels), dtype=bool)
    unseen[::6] = True  # half of some groups
    first = cross_validate(layers[2], {"c": labels}, groups, transfer={"unseen": unseen})["c"]
    assert first.transfer["unseen"]["accuracy"].n == unseen.sum()
    assert first.score.n == (~unseen).sum()
    assert first.transfer["unseen"]["accuracy"].value > 0.8
    for i in np.flatnonzero(unseen):
        partners = (groups == groups[i]) & ~unseen
        assert (first.fold[partners] == first.fold[i]).all()
    other = layers[2].clone()
    other[torch.from_numpy(unseen)] = 0
    second = cross_validate(other, {"c": labels}, groups, transfer={"unseen": unseen})["c"]
    assert (first.predicted[~unseen] == second.predicted[~unseen]).all()
    assert second.transfer["unseen"]["accuracy"].value < 0.6


def test_the_seed_decides_everything() -> None:
    layers, labels, groups = planted()
    first, again, other = (cross_validate(layers[2], {"c": labels}, groups, seed=s)["c"] for s in (3, 3, 4))
    assert (first.fold == again.fold).all()
    assert first.scores == again.scores
    assert first.controls == again.controls
    assert first.p_value == again.p_value
    assert (first.fold != other.fold).any()


def test_a_class_rarer_than_the_folds_does_not_stop_the_others() -> None:
    layers, labels, groups = planted()
    labels = labels.copy()
    labels[:1] = "amber"
    result = cross_validate(layers[2], {"c": labels}, groups)["c"]
    assert "amber" not in result.predicted[:1]
    assert 0.6 < result.score.value < 0.78  # its recall is zero: three of four classes count


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        group = np.arange(150) // 3
        # Examples of a group are right or wrong together: intervals over single examples would be far too short.
        right = np.repeat(generator.random(50) < 0.7, 3)
        truth = generator.integers(0, 2, 150)
        predicted = np.where(right, truth, 1 - truth)
        score = score_classes(truth, predicted, 2, group, source="transfer")["accuracy"]
        hits += score.lower <= 0.7 <= score.upper
    assert 0.88 <= hits / 200 <= 0.99


def test_the_interval_of_a_rare_class_covers_and_counts_that_class() -> None:
    generator = np.random.default_rng(0)
    groups, truth = np.arange(200), (np.arange(200) < 10).astype(np.int64)
    hits = 0
    for _ in range(600):
        predicted = np.where(generator.random(200) < np.where(truth == 1, 0.75, 0.85), truth, 1 - truth)
        score = score_classes(truth, predicted, 2, groups, source="transfer")["balanced_accuracy"]
        hits += score.lower <= 0.8 <= score.upper
        assert 13 <= score.spread.degrees < 25  # of the rare class, not 199
    assert 0.91 <= hits / 600 <= 0.98
    even = np.arange(200) % 2
    guess = np.where(generator.random(200) < 0.8, even, 1 - even)
    assert score_classes(even, guess, 2, groups)["balanced_accuracy"].spread.degrees > 180


def test_scores_equal_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, r2_score

    generator = np.random.default_rng(0)
    truth, guess = generator.integers(0, 4, 90), generator.integers(0, 4, 90)
    score = score_classes(truth, guess, 4, np.arange(90))["balanced_accuracy"]
    assert score.value == pytest.approx(balanced_accuracy_score(truth, guess))
    values, near = generator.normal(size=90) + 1e3, generator.normal(size=90) + 1e3
    assert score_values(values, near, np.arange(90))["r2"].value == pytest.approx(r2_score(values, near))


@pytest.mark.parametrize("source", ["cv", "transfer"])
def test_values_that_are_predicted_exactly_have_no_interval_and_none_has_zero_width(source: Source) -> None:
    values = np.random.default_rng(0).normal(size=40)
    groups = np.arange(40) // 2
    for predicted in (values, values + 1e-12):
        found = score_values(values, predicted, groups, source=source)["r2"]
        assert found.value == pytest.approx(1) and np.isnan([found.lower, found.upper]).all()
        assert found.interval == "none: no group differs"
    near = score_values(values, values + 0.01 * np.random.default_rng(1).normal(size=40), groups, source=source)["r2"]
    assert near.lower < near.value < 1 and near.upper > near.lower
    codes = np.arange(40) % 2
    for guess in (codes, 1 - codes):
        for score in score_classes(codes, guess, 2, groups, source=source).values():
            assert score.upper > score.lower
    best = choose_best(
        [near, score_values(values, values, groups, source=source)["r2"]], [Hurdle(0.0, 0.1)] * 2, seed=0
    )
    assert best is not None and (best.place, best.score) == (1, 1.0) and np.isnan([best.lower, best.upper]).all()


def test_interval_of_a_score_that_is_just_significant_reaches_chance_and_of_others_does_not() -> None:
    truth = np.arange(100) % 2
    scores = [score_classes(truth, np.where(np.arange(100) < n, 1 - truth, truth), 2, np.arange(100))["accuracy"]
              for n in (35, 50)]  # fmt: skip

    def best(needed: float) -> tuple[float, float, float]:
        found = choose_best(scores, [Hurdle(0.5, needed)] * 2, seed=0)
        assert found is not None and found.place == 0
        return found.lower, found.score, found.upper

    unnamed, just, far = best(np.inf), best(1.0), best(0.01)
    assert just[0] == pytest.approx(0.5) and unnamed[0] > 0.51 and just[1:] == unnamed[1:]
    assert unnamed == pytest.approx(far, abs=1e-3)


@pytest.mark.parametrize("r2", [0.3, 0.9, 0.999])
def test_interval_of_a_named_r2_or_share_ends_near_chance_at_the_lowest(r2: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=12)
    predicted = values * r2**0.5 + rng.normal(size=12) * (r2 * (1 - r2)) ** 0.5
    near = score_values(values, predicted, np.arange(12))["r2"]
    codes = np.arange(40) % 2
    right = score_classes(codes, np.where(np.arange(40) == 3, 1 - codes, codes), 2, np.arange(40))["accuracy"]
    for score, chance in ((near, 0.0), (right, 0.5)):
        seen = score.spread.above(chance)
        assert score.spread.below(seen) == pytest.approx(chance, abs=1e-9)
        for needed in (0.5, 0.95, 1.0):
            best = choose_best([score], [Hurdle(chance, needed)], seed=0)
            assert best is not None and min(score.lower, chance - 1e-9) <= best.lower <= score.lower
            assert score.upper <= best.upper < 1 and best.score <= score.value


def test_hurdle_of_a_score_is_that_of_scores_with_smaller_statistics() -> None:
    null = np.stack([np.arange(100.0) / 10, np.arange(100.0) / 50, np.arange(100.0) / 40])
    strong, weak, unnamed = hurdles_of(np.array([0.01, 0.02, 0.2]), np.array([12.0, 3.0, 1.0]), null, [0.5, 0.5, 0.2])
    assert strong == (0.5, pytest.approx(9.5 / 12)) and weak == (0.5, pytest.approx(2.375 / 3))  # 2.375 of the third
    assert unnamed == (0.2, np.inf)


def test_a_weak_curve_beside_a_strong_one_has_an_interval_that_reaches_its_score() -> None:
    rng = np.random.default_rng(2)
    labels, covered = rng.integers(0, 2, 120), []
    plan = plan_folds({"y": labels}, np.arange(120), controls=[], n_permutations=199)
    for gain in (0.7, 0.8, 0.9):
        moved = torch.from_numpy(np.eye(8, dtype=np.float32)[0] * labels[:, None].astype(np.float32))
        x = [noise(120, 8, seed=int(10 * gain) + i) + (4.0 if i < 6 else gain) * moved for i in range(7)]
        results = [evaluate(one, plan, probe="ridge")["y"] for one in x]
        found = select_sites(results, [0] * 6 + [1], seed=0)[-1]
        if found.p_max < 0.05:
            covered.append(found.best_lower < norm.cdf(gain / 2) < found.best_upper and found.best_score > 0.5)
    assert len(covered) >= 2 and all(covered)


def test_p_values_of_cross_validated_noise_keep_their_level() -> None:
    # Shuffling against fixed predictions, uncorrected, calls 12% of such noise significant at 5%.
    p_values = []
    for seed in range(60):
        labels = np.random.default_rng(seed).integers(0, 3, 160)
        x, groups = noise(160, 16, seed=seed), np.arange(160) // 2
        plan = plan_folds({"y": labels}, groups, controls=[], n_permutations=100, seed=seed)
        p_values.append(evaluate(x, plan, probe="ridge", strengths=[30.0])["y"].p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09  # 5% and less than two standard errors


def test_permutation_p_values_are_uniform_without_an_effect_and_small_with_one() -> None:
    generator = np.random.default_rng(0)
    permutations = draw_permutations(np.arange(80), draws=199, generator=generator)
    draws = generator.integers(0, 3, (200, 2, 80))
    null = [permute_classes(truth, guess, 3, permutations).p_value for truth, guess in draws]
    assert np.mean(np.array(null) <= 0.05) < 0.1
    truth = generator.integers(0, 3, 80)
    assert permute_classes(truth, truth, 3, permutations).p_value == pytest.approx(1 / 200)


def test_dependence_of_out_of_fold_predictions_is_that_of_the_decision() -> None:
    assert dependence(0) == 1  # values: each pair of examples counts twice
    assert dependence(2) == pytest.approx(2 / np.pi, abs=1e-6)  # the sign of a normal number
    assert dependence(42) == pytest.approx(0.12, abs=0.01)
    assert dependence(1) == 0


@pytest.mark.parametrize("regime", ["classes 95 to 5", "R2, n = 60, d = 64"])
def test_p_values_of_noise_are_calibrated_for_rare_classes_and_for_ridge(regime: str) -> None:
    p = np.array([noise_trial(PROBING[regime], seed, regime)["p"] for seed in range(60)])
    # It was 0.97 with 95 to 5 classes and 0.68 for numbers, whose shuffles took the penalties of the real labels; three
    # standard errors of 60 trials are 0.11.
    assert 0.39 < p.mean() < 0.61
    assert (p <= 0.05).mean() <= 0.14


@pytest.mark.parametrize(
    ("n", "d", "folds", "gain"), [(60, 64, 5, 0.1), (90, 8, 5, 0.3), (60, 64, 2, 0.1), (48, 8, 3, 0.3)]
)
def test_shuffled_numbers_are_fitted_as_the_real_ones_are(n: int, d: int, folds: int, gain: float) -> None:
    generator = np.random.default_rng(n)
    groups = np.arange(n) // 2
    values = generator.normal(size=n)
    x = noise(n, d, seed=1) + torch.from_numpy(gain * values[:, None]).float()
    apart = np.arange(n) >= n - 6
    plan = plan_folds(
        {"y": values}, groups, folds=folds, continuous=["y"], controls=[], n_permutations=2, transfer={"apart": apart}
    )
    # A "permutation" that leaves all in place must give what the predictions of the real labels give.
    plan = replace(plan, permutations=np.stack([np.arange(n - 6), *plan.permutations]))
    found = evaluate(x, plan)["y"]
    assert len(set(found.strengths)) > 1 or folds < 5
    inside = plan.fitted
    scaled = (values[inside] - values[inside].mean()) / values[inside].std()
    predicted = (found.predicted[inside] - values[inside].mean()) / values[inside].std()
    constant = np.array([scaled[found.fold[inside] != k].mean() for k in found.fold[inside]])
    basis = rotate(x, fitted=torch.from_numpy(inside))
    path = sorted(RIDGE_STRENGTHS, reverse=True)
    for statistic in (gain_in_error, agreement):
        seen: list[Tensor] = []

        def summed(*of: Tensor, statistic: Statistic = statistic, seen: list[Tensor] = seen) -> Tensor:
            seen.append(statistic(*of))
            return seen[-1]

        own, same, other = permute_ridge(
            basis, plan.targets["y"], plan, path, summed, others=torch.cat([basis.rows, 3 * basis.rows])
        )
        sums = torch.stack(seen).unflatten(0, (folds, 3)).sum(0)  # set draw
        expected = float(statistic(*(torch.from_numpy(one) for one in (scaled, predicted, constant))))
        assert sums[0, :2].tolist() == pytest.approx([expected] * 2)
        assert own.null[0] == pytest.approx(own.observed) and abs(own.null[1] - own.observed) > 0.01
        assert own.null.tolist() == pytest.approx(same.null.tolist())
        assert other.null.tolist() != pytest.approx(own.null.tolist())
        assert own.p_value >= 0.5  # an equal draw counts as at least as large
    (expected,) = permute_ridge(basis, plan.targets["y"], plan, path, gain_in_error)
    assert found.permuted.null.tolist() == pytest.approx(expected.null.tolist())


@pytest.mark.parametrize("scale", [1.0, 2000.0, 1.7e9])
def test_shuffles_that_change_nothing_count_as_ties_wherever_the_labels_lie(scale: float) -> None:
    values = np.random.default_rng(0).integers(0, 20, 40) + scale
    plan = plan_folds({"y": values}, np.arange(40), continuous=["y"], controls=[], n_permutations=20)
    plan = replace(plan, permutations=np.concatenate([plan.permutations, np.tile(np.arange(40), (20, 1))]))
    assert evaluate(noise(40, 50, seed=2), plan)["y"].p_value > 0.5


def test_without_permutations_there_is_no_p_value_below_one() -> None:
    plan = plan_folds(
        {"y": np.arange(40.0), "kind": np.arange(40) % 2}, np.arange(40), continuous=["y"], n_permutations=0
    )
    assert plan.permutations.shape == (0, 40)
    assert [found.p_value for found in evaluate(noise(40, 5, seed=0), plan).values()] == [1, 1]


def test_r2_of_noise_is_that_of_the_training_mean() -> None:
    below = 0
    for seed in range(30):
        y = np.random.default_rng(seed).normal(size=60)
        plan = plan_folds({"y": y}, np.arange(60), continuous=["y"], controls=[], n_permutations=20, seed=seed)
        found = evaluate(noise(60, 64, seed=seed), plan)["y"]
        below += found.score.upper < found.chance
    assert below <= 4  # with weak penalties alone, 26 to 42 %


@pytest.mark.parametrize(
    "regime",
    ["2 classes, scores near 1", pytest.param("42 classes of 5", marks=pytest.mark.slow), "groups of 5", "R2, n = 60"],
)
def test_intervals_cover_the_score_of_such_probes_on_new_groups(regime: str) -> None:
    trials = [probing_trial(PROBING[regime], seed, regime) for seed in range(60)]
    covers = {line.what: line.share for line in probing_lines(regime, trials)}
    assert covers["cross-validated score"] >= 0.85  # 60 trials of 95 %: three standard errors are 0.08
    assert covers["transfer score"] >= 0.85
    assert all(trial["upper"] > trial["lower"] for trial in trials)


def test_nothing_is_named_in_layers_of_noise_and_a_planted_layer_is_found() -> None:
    named = [layers_trial((0.0, 2), seed, "noise") for seed in range(6)]
    assert sum(trial["onset"] for trial in named) <= 1
    found = layers_trial((2.0, 2), 0, "planted")
    assert found["onset"] == found["peak"] == 1
    assert found["first"] <= PLANTED <= found["last"]
    assert found["lower"] < found["height"] <= found["raw"] < found["upper"]


def test_errors_name_the_argument_and_the_remedy() -> None:
    x, y, groups = noise(20, 4, seed=0), np.arange(20) % 2, np.arange(20)
    with pytest.raises(ValueError, match="groups must be at least as many as folds=5, got 4"):
        cross_validate(x, {"y": y}, groups % 4)
    with pytest.raises(
        ValueError, match="target 'y' must have at least two classes among the fitted examples, got one"
    ):
        cross_validate(x, {"y": np.zeros(20)}, groups)
    with pytest.raises(ValueError, match="labels of target 'y' must be present and finite"):
        cross_validate(x, {"y": np.where(y, np.nan, 1.0)}, groups)
    with pytest.raises(ValueError, match="labels of target 'y' must have one entry per example"):
        cross_validate(x, {"y": y[:9]}, groups)
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        cross_validate(x, {"y": y}, groups, folds=1)
    with pytest.raises(ValueError, match="x must have one example per label"):
        cross_validate(x[:9], {"y": y}, groups)
    with pytest.raises(ValueError, match="probe must be 'logistic'"):
        cross_validate(x, {"y": y}, groups, probe="svm")
    with pytest.raises(ValueError, match="strengths must be positive"):
        cross_validate(x, {"y": y}, groups, strengths=[0.0])
    with pytest.raises(ValueError, match="transfer 'unseen' must be a boolean mask"):
        cross_validate(x, {"y": y}, groups, transfer={"unseen": np.zeros(20, dtype=bool)})
    with pytest.raises(ValueError, match="must have a class with at least folds=5 examples"):
        cross_validate(x, {"y": groups}, groups)
    with pytest.raises(ValueError, match="y_by_target must name a target"):
        cross_validate(x, {}, groups)
    with pytest.raises(ValueError, match="probe 'mass_mean' must have a class target"):
        cross_validate(x, {"y": x[:, 0].numpy()}, groups, continuous=["y"], probe="mass_mean")
    x[3] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity in example 3"):
        cross_validate(x, {"y": y}, groups)
