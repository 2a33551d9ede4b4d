"""Photographs with COCO's captions and categories through every command that reads activations.

The photographs lie beside the repository, where a checkout has them; without them these tests are skipped by name.
"""

import json
from pathlib import Path

import pandas as pd
import pytest

from probes.activations.capture_run import run_capture
from probes.activations.config import CaptureConfig, CapturedSites
from probes.activations.open import open_activations
from probes.config import DataOptions, ProbeOptions, SweepConfig
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from probes.lenses.config import DataOptions as LensData
from probes.lenses.config import LensConfig
from probes.lenses.sweep import run_lens_sweep
from probes.sweep import run_sweep
from probes.transfer.config import TransferConfig
from probes.transfer.sweep import run_transfer
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.errors import UserError
from tasks.prompts import CAPTION

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"
pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/photos beside the repository")
N = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the first photographs, without captions, and a captions file in COCO's layout that lacks the last one."""
    folder = tmp_path_factory.mktemp("photos")
    photos = [json.loads(line) for line in (PHOTOS / "photos.jsonl").read_text().splitlines()[:N]]
    rows, annotations = [], []
    for photo in photos:
        largest = max(
            photo["objects"], key=lambda one: (one["box"][2] - one["box"][0]) * (one["box"][3] - one["box"][1])
        )
        rows.append(
            {
                "id": photo["id"], "image": photo["image"], "question": CAPTION, "answer": photo["captions"][0],
                "boxes": {largest["name"]: largest["box"]},
                "focus": largest["name"], "person": any(one["name"] == "person" for one in photo["objects"]),
                "supercategory": largest["supercategory"],
            }
        )  # fmt: skip
        annotations += [{"image_id": int(photo["id"]), "caption": text} for text in photo["captions"]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [{"id": int(photo["id"]), "file_name": photo["image"]} for photo in photos]
    last = int(photos[-1]["id"])
    coco = {"images": images, "annotations": [one for one in annotations if one["image_id"] != last]}
    (folder / "captions.json").write_text(json.dumps(coco))
    return folder


def options(data: Path, **more: bool) -> DataOptions:
    return DataOptions(
        str(data / "rows.jsonl"), images=PHOTOS / "images", captions=data / "captions.json", **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def captured(data: Path, checkpoint: Path) -> Path:
    config = CaptureConfig(
        ModelOptions(str(checkpoint)), options(data, skip_bad=True), "both",
        CapturedSites(("resid_post",), "0,2", ("image", "caption", "last")), out=data / "activations",
    )  # fmt: skip
    finished = run_capture(config)
    assert isinstance(finished, FinishedRun)
    assert finished.notes[0].startswith("1 examples left out")
    return config.folder


def test_a_photograph_without_caption_is_refused_or_left_out_and_listed(
    data: Path, captured: Path, checkpoint: Path
) -> None:
    with pytest.raises(UserError, match=r"captions must be given for every example, got none for 1 of 20"):
        run_capture(CaptureConfig(ModelOptions(str(checkpoint)), options(data), "caption", out=data / "refused"))
    skipped = pd.read_csv(captured / "skipped.csv")
    assert len(skipped) == 1 and skipped["reason"][0] == "caption must be given for the condition caption, got none"
    stored = open_activations(captured)
    assert len(stored) == N - 1 and skipped["id"][0] not in set(stored.examples["id"].astype(int))
    first = json.loads((PHOTOS / "photos.jsonl").read_text().splitlines()[0])
    assert stored.examples["caption"][0] == first["captions"][0]


def test_photographs_pass_through_every_command(data: Path, captured: Path, checkpoint: Path) -> None:
    probed = run_sweep(
        SweepConfig(
            activations=captured, out=data / "probes",
            probing=ProbeOptions(("person",), folds=2, controls=False, maps=0),
        )
    )  # fmt: skip
    assert isinstance(probed, FinishedRun) and set(probed.results["target"]) == {"person"}
    transferred = run_transfer(TransferConfig(captured, targets=("person",), folds=2, out=data / "transfer"))
    assert isinstance(transferred, FinishedRun) and len(transferred.results) == 8
    assert transferred.results["n"].unique().tolist() == [N - 1]
    measured = run_geometry_sweep(
        GeometryConfig(
            captured, tokens=("image=caption",), target=("supercategory",), rank=(2, 4), largest=8, k=5,
            mutual_k=3, draws=4, shuffles=19, out=data / "geometry",
        )
    )  # fmt: skip
    assert isinstance(measured, FinishedRun) and {"overlap", "cka"} <= set(measured.results["measure"])
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()[:4]]
    known = ("picture", "question", "letter", "word")  # the tiny tokenizer has no token of COCO's categories
    synonyms = dict(zip(dict.fromkeys(row["focus"] for row in rows), ([word] for word in known), strict=False))
    (data / "words.json").write_text(json.dumps(synonyms))
    read = run_lens_sweep(
        LensConfig(
            model=ModelOptions(str(checkpoint)), layers="2", words=data / "words.json", controls=False, shown=1,
            out=data / "lens", data=LensData(str(data / "rows.jsonl"), images=PHOTOS / "images", limit=4),
        )
    )  # fmt: skip
    assert isinstance(read, FinishedRun) and set(read.results["place"]) >= {"inside"}
