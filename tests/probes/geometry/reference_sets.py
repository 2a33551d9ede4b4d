"""The seeded point sets on which TwoNN and GRIDE are compared with scikit-dimension, and how its values were made.

With scikit-dimension 0.5.0 (and numba, which it imports) on the path, this writes ``skdim_0.5.0.json``:

    python -m tests.probes.geometry.reference_sets
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

REFERENCE = Path(__file__).parent / "skdim_0.5.0.json"
N = 2500
LARGEST = 64
Array = npt.NDArray[np.float32]


def point_sets() -> dict[str, Array]:
    """Five sets of 2,500 points in float32, of known dimension."""
    draw = [np.random.default_rng(seed) for seed in range(5)]
    roll = draw[0].uniform(size=(N, 2)) * [3 * np.pi, 4] + [1.5 * np.pi, 0]
    sets = {
        "2-d roll with noise": np.stack(
            [roll[:, 0] * np.cos(roll[:, 0]), roll[:, 1], roll[:, 0] * np.sin(roll[:, 0])], 1
        )
        + 0.01 * draw[0].normal(size=(N, 3)),
        "5-d Gaussian in 64": draw[1].normal(size=(N, 5)) @ draw[1].normal(size=(5, 64)),
        "tanh of 10-d in 256": np.tanh(draw[2].normal(size=(N, 10)) @ draw[2].normal(size=(10, 256)) / 10**0.5),
        "20-d Gaussian in 576": draw[3].normal(size=(N, 20)) @ draw[3].normal(size=(20, 576)) + 100,
        "5-d Gaussian, a tenth repeated": draw[4].normal(size=(N, 5)),
    }
    repeated = sets["5-d Gaussian, a tenth repeated"]
    repeated[-N // 10 :] = repeated[: N // 10]
    return {name: points.astype(np.float32) for name, points in sets.items()}


def main() -> None:
    """Compute and write the reference."""
    import skdim

    found = {}
    for name, points in point_sets().items():
        exact = np.unique(points, axis=0).astype(np.float64)
        gride = skdim.id.GRIDE(multiscale=True, range_max=LARGEST).fit(exact)
        found[name] = {
            "n": len(exact),
            "gride": gride.dimension_scales_.tolist(),
            "error": gride.error_scales_.tolist(),
            "radius": gride.radius_scales_.tolist(),
            "gride 16,32": float(skdim.id.GRIDE(n1=16, n2=32).fit(exact).dimension_),
            "gride 10,25": float(skdim.id.GRIDE(n1=10, n2=25).fit(exact).dimension_),
            "two_nn linear": float(skdim.id.TwoNN().fit(exact).dimension_),
            "two_nn mle": float(skdim.id.TwoNN(discard_fraction=0, method="mle").fit(exact).dimension_),
        }
    REFERENCE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
