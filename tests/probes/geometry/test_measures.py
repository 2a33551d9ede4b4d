"""Measures of geometry against scikit-dimension, brute-force definitions, invariances and planted answers."""

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.geometry import (
    cosine_gap,
    dimension_curve,
    gride,
    id_correlation,
    information_imbalance,
    label_overlap,
    linear_cka,
    mutual_knn,
    nearest,
    neighbourhood_overlap,
    two_nn,
    unique_points,
)
from probes.geometry import neighbours as neighbours_module
from tasks.errors import UserError
from tests.probes.geometry.reference_sets import REFERENCE, point_sets

Array = npt.NDArray[np.float64]
SETS = point_sets()
MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "overlap": lambda a, b: neighbourhood_overlap(a, b, k=5).value,
    "mutual kNN": lambda a, b: mutual_knn(a, b, k=5).value,
    "imbalance": lambda a, b: information_imbalance(a, b).a_to_b,
    "CKA": lambda a, b: linear_cka(a, b, unbiased=False),
    "unbiased CKA": lambda a, b: linear_cka(a, b),
    "cosine gap": cosine_gap,
    "ID correlation": lambda a, b: id_correlation(a, b, draws=1).value,
}


def views(seed: int, n: int = 60, *, noise: float = 0.3) -> tuple[Array, Array]:
    """Two noisy linear views, 6 wide, of 4 latent dimensions."""
    draw = np.random.default_rng(seed)
    latent = draw.normal(size=(n, 4))
    first, second = (latent @ draw.normal(size=(4, 6)) + noise * draw.normal(size=(n, 6)) for _ in range(2))
    return first, second


@pytest.mark.parametrize("name", SETS)
def test_two_nn_and_gride_equal_scikit_dimension(name: str) -> None:
    wanted = json.loads(REFERENCE.read_text(encoding="utf-8"))[name]
    curve = dimension_curve(SETS[name])
    # 1e-3 is what the two libraries that made this measure agree to; float32 distances are right to 1e-6
    for column, key in (("value", "gride"), ("error", "error"), ("radius", "radius")):
        np.testing.assert_allclose(curve[column], wanted[key], atol=1e-3)
    assert curve[["n1", "n2"]].to_numpy().tolist() == [[2**i, 2 ** (i + 1)] for i in range(6)]
    assert gride(SETS[name], rank=(10, 25)).value == pytest.approx(wanted["gride 10,25"], abs=1e-3)
    assert two_nn(SETS[name]).value == pytest.approx(wanted["two_nn linear"], abs=1e-3)
    assert two_nn(SETS[name], method="mle").value == pytest.approx(wanted["two_nn mle"], abs=1e-3)


def test_gride_takes_rank_16_32_and_counts_duplicates() -> None:
    name = "5-d Gaussian, a tenth repeated"
    found = gride(SETS[name])
    assert found.n_duplicates == 250
    assert found.value == pytest.approx(json.loads(REFERENCE.read_text())[name]["gride 16,32"], abs=1e-3)
    assert abs(found.value - 5) < 4 * found.error + 0.2  # a Gaussian's density falls off within 32 neighbours


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_equal_brute_force(metric: neighbours_module.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_BLOCK", 7 * 40)  # several blocks, the last one shorter
    points = np.random.default_rng(0).normal(size=(40, 5)) + 1000 * (metric == "euclidean")
    points = points.astype(np.float32).astype(np.float64)
    if metric == "euclidean":
        wanted = np.linalg.norm(points[:, None] - points[None], axis=2)
    else:
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        wanted = 1 - unit @ unit.T
    np.fill_diagonal(wanted, np.inf)
    found = nearest(points, k=6, metric=metric)
    assert found.indices.tolist() == wanted.argsort(1)[:, :6].tolist()
    # a mean of 1,000 costs 6 of the 16 digits of a squared distance in float64; float32 would lose all of them
    np.testing.assert_allclose(found.distances, np.sort(wanted, 1)[:, :6], rtol=1e-5)


def brute_ranks(points: Array) -> Array:
    """The rank, from 1, of every point among the neighbours of every other; 0 on the diagonal."""
    return np.linalg.norm(points[:, None] - points[None], axis=2).argsort(1).argsort(1)


def test_shares_of_neighbours_equal_their_definitions() -> None:
    a, b = views(0)
    ranks = [brute_ranks(points) for points in (a, b)]
    sets = [[set(np.flatnonzero((row >= 1) & (row <= 5))) for row in found] for found in ranks]
    wanted = np.mean([len(own & other) / 5 for own, other in zip(*sets, strict=True)])
    assert neighbourhood_overlap(a, b, k=5).value == pytest.approx(wanted)
    unit = [points / np.linalg.norm(points, axis=1, keepdims=True) for points in (a, b)]
    assert mutual_knn(a, b, k=5).value == pytest.approx(neighbourhood_overlap(*unit, k=5).value)
    assert neighbourhood_overlap(a, b, k=5).chance == 5 / 59
    labels = np.random.default_rng(1).choice(["x", "y", "z"], 60)
    same = np.array([np.mean([labels[j] == labels[i] for j in own]) for i, own in enumerate(sets[0])])
    assert label_overlap(a, labels, k=5, weighted=False).value == pytest.approx(same.mean())
    by_class = np.mean([same[labels == name].mean() for name in "xyz"])
    assert label_overlap(a, labels, k=5).value == pytest.approx(by_class)


@pytest.mark.parametrize("k", [1, 3])
def test_information_imbalance_equals_its_definition(k: int) -> None:
    a, b = views(1)
    ranks = [brute_ranks(points) for points in (a, b)]
    near = [(found >= 1) & (found <= k) for found in ranks]
    found = information_imbalance(a, b, k=k)
    assert found.a_to_b == pytest.approx(2 / 60 * ranks[1][near[0]].mean())
    assert found.b_to_a == pytest.approx(2 / 60 * ranks[0][near[1]].mean())


def test_cka_equals_its_definition() -> None:
    a, b = views(2, n=20)
    n, centre = 20, np.eye(20) - 1 / 20
    k, m = a @ a.T, b @ b.T

    def biased(x: Array, y: Array) -> float:
        return float(np.trace(x @ centre @ y @ centre))

    def unbiased(x: Array, y: Array) -> float:
        x, y = x - np.diag(np.diag(x)), y - np.diag(np.diag(y))
        one = np.ones(n)
        total = (one @ x @ one) * (one @ y @ one) / ((n - 1) * (n - 2))
        return float((np.trace(x @ y) + total - 2 / (n - 2) * one @ x @ y @ one) / (n * (n - 3)))

    for hsic, flag in ((biased, False), (unbiased, True)):
        wanted = hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5
        assert linear_cka(a, b, unbiased=flag) == pytest.approx(wanted, rel=1e-5)


def test_only_the_unbiased_cka_of_independent_points_is_0() -> None:
    draw = np.random.default_rng(0)
    pairs = [draw.normal(size=(2, 30, 100)) for _ in range(20)]
    found = np.array([[linear_cka(a, b, unbiased=flag) for flag in (False, True)] for a, b in pairs])
    assert found[:, 0].min() > 0.6
    assert abs(found[:, 1].mean()) < 3 * found[:, 1].std() / 20**0.5


def test_cosine_gap_and_id_correlation_equal_their_definitions() -> None:
    a, b = views(3, noise=0.02)
    cosines = [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    assert cosine_gap(a, b) == pytest.approx(1 - np.median(cosines), abs=1e-6)
    x, y = ((points - points.mean(0)) / points.std(0) for points in (a, b))
    own, joint = [two_nn(points).value for points in (x, y)], two_nn(np.hstack([x, y])).value
    found = id_correlation(a, b, draws=19)
    assert found.value == pytest.approx((sum(own) - joint) / max(own), abs=1e-4)
    assert found.joint == pytest.approx(joint, abs=1e-4)
    assert found.p == 1 / 20


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 100))
def test_measures_do_not_depend_on_the_order_of_rows_nor_on_scale(name: str, seed: int, scale: float) -> None:
    a, b = views(seed)
    order = np.random.default_rng(seed).permutation(len(a))
    found = MEASURES[name](a, b)
    assert MEASURES[name](a[order], b[order]) == pytest.approx(found, abs=1e-4)
    assert MEASURES[name](scale * a, b) == pytest.approx(found, abs=1e-4)
    assert MEASURES[name](a, b[order]) != pytest.approx(found, abs=1e-6), "the pairing counts"


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("cosine gap", "ID correlation")])
def test_measures_do_not_depend_on_a_rotation(name: str) -> None:
    a, b = views(5)
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))
    assert MEASURES[name](a @ turn, b) == pytest.approx(MEASURES[name](a, b), abs=1e-5)


def test_dimensions_do_not_depend_on_rotation_scale_or_order() -> None:
    points = SETS["5-d Gaussian in 64"][:400]
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(64, 64)))
    moved = 7 * np.random.default_rng(6).permutation(points) @ turn + 3
    np.testing.assert_allclose(dimension_curve(moved)["value"], dimension_curve(points)["value"], rtol=1e-3)
    assert two_nn(moved).value == pytest.approx(two_nn(points).value, rel=1e-3)


def test_duplicates_of_either_side_are_left_out() -> None:
    a, b = views(7)
    wanted = neighbourhood_overlap(a[2:], b[2:], k=5)
    a[0], b[1] = a[10], b[20]
    found = neighbourhood_overlap(np.vstack([a[2:], a[:2]]), np.vstack([b[2:], b[:2]]), k=5)
    assert (found.n, found.n_duplicates) == (58, 2)
    assert found.value == wanted.value
    assert unique_points([[0.0], [-0.0], [1.0], [2.0]], names=("points",)).n_duplicates == 1
    labels = np.arange(60) % 3
    assert label_overlap(np.vstack([a, a[:1]]), [*labels, 9], k=5).n_duplicates == 2


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "NaN": (lambda: two_nn([[0.0], [np.nan], [1.0]]), "must be finite, got NaN or infinity in row 1"),
    "constant": (lambda: gride(np.ones((90, 3))), "at least 33 different points, got 1 without duplicates of 90"),
    "few": (lambda: neighbourhood_overlap(*views(0, n=20)), "must be at least 32 points, got 20"),
    "rows": (lambda: linear_cka(views(0)[0], views(0)[1][:50]), "must hold the same points, got 60 and 50 rows"),
    "vector": (lambda: two_nn([1.0, 2.0]), "must be a matrix"),
    "widths": (lambda: cosine_gap(np.ones((5, 2)), np.ones((5, 3))), "must have the same shape"),
    "rank": (lambda: gride(views(0)[0], rank=(4, 4)), "1 <= n1 < n2, got"),
    "k": (lambda: mutual_knn(*views(0), k=0), "k must be >= 1, got 0"),
    "labels": (lambda: label_overlap(views(0)[0], [1, 2], k=5), "labels must be one for each of 60 points"),
    "one class": (lambda: label_overlap(views(0)[0], np.ones(60), k=5), "at least two classes"),
    "equidistant": (lambda: two_nn(np.eye(4)), "Their distances are equal"),
    "largest": (lambda: dimension_curve(views(0)[0], largest=1), "largest must be >= 2, got 1"),
    "discard": (lambda: two_nn(views(0)[0], discard=1.0), "discard must be >= 0 and < 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_points_are_one_sentence(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(UserError, match=message):
        call()
