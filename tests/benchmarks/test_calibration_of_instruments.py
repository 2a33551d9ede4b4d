"""Small versions of ``benchmarks.calibration_of_instruments``: intervals cover, and noise is not named."""

from benchmarks.calibration import COVERAGE
from benchmarks.calibration_of_instruments import run


def test_intervals_of_geometry_cover_the_mean_estimate() -> None:
    lines = run("geometry", "2 views of 6 clusters, n = 200", 8)
    shares = {line.what: line.share for line in lines}
    assert {"overlap", "label_overlap cluster", "imbalance_a_to_b", "gride 16,32"} <= shares.keys()
    assert "gride 32,64, not printed" in shares, "200 points are too few for an interval at this rank"
    assert min(line.share for line in lines if line.aim == COVERAGE) >= 0.6  # 5 of 8


def test_intervals_of_lenses_cover_and_noise_names_no_layer() -> None:
    lines = {line.what: line.share for line in run("lenses", "8 layers, strong effect, 12 pictures", 8)}
    assert min(share for what, share in lines.items() if "power" not in what) >= 0.6
    assert lines["power: best layer named"] >= 0.9
    (noise,) = run("lenses", "8 layers of noise, 12 pictures", 8)
    assert noise.share <= 0.25
