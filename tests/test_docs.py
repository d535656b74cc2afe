"""The code that the documents show runs, and says what ``predict`` says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import untrained_bundle

from runner.config.schema import Augment
from runner.data.embedded import load_fashion
from runner.data.images import ArrayImages
from runner.data.preprocess import Preprocess
from runner.export.__main__ import export
from runner.models import build_model
from runner.predict import rank
from runner.records.bundle import (
    BCE,
    Architecture,
    Change,
    EvaluationSettings,
    bundle_files,
    read_bundle,
)
from runner.tricks.loss import probabilities

PAGE = (Path(__file__).parent.parent / "docs" / "using-the-model-elsewhere.md").read_text()
CLASSES = ("blue", "green", "red")
CODE = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
LOADER, USE = CODE["library"].split("model = ")
HOW_BCE_ANSWERS = (Change(BCE, {}),)


def write_bundle(folder: Path, source: str, name: str, changes: tuple[Change, ...] = ()) -> None:
    model = build_model(source, name, len(CLASSES), seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():  # as after a training: every statistic is its own
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.2, 0.6)
            elif isinstance(module, torch.nn.Linear):  # a fresh head is too small to tell apart
                torch.nn.init.normal_(module.weight, 0, 0.05)
    files = bundle_files(
        model,
        architecture=Architecture(source, name, len(CLASSES), changes),
        classes=CLASSES,
        preprocess=Preprocess(72, 2.0, 0.875, 48, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        evaluated=EvaluationSettings("fp32", 8, 0, Augment()),
    )
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("source", "name", "changes"),
    [
        pytest.param("torchvision", "resnet18", (), marks=pytest.mark.slow),
        ("xresnet", "xresnet18", HOW_BCE_ANSWERS),
        pytest.param("xresnet", "xresnet50", (), marks=pytest.mark.slow),
    ],
)
def test_the_loader_says_what_predict_says(
    tmp_path: Path, source: str, name: str, changes: tuple[Change, ...]
) -> None:
    write_bundle(tmp_path / "bundle", source, name, changes)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 131, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "image.jpg", exif=exif)
    code = LOADER + (f"model = {USE}" if source == "torchvision" else CODE["xresnet"])
    code += "print(json.dumps(probabilities.tolist()))\n"

    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, text=True, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    said, numbers = ran.stdout.splitlines()

    bundle = read_bundle(tmp_path / "bundle")
    (ranking,) = rank(bundle, [str(tmp_path / "image.jpg")], top=3, device="cpu", threads=1)
    assert said.split()[0] == ranking.top[0][0]
    assert dict(zip(CLASSES, json.loads(numbers), strict=True)) == pytest.approx(
        dict(ranking.top), abs=1e-5
    )
    # Negative control: without the statistics it says something else.
    assert "return (x - " in code
    wrong = code.replace("return (x -", "return x  # (x -")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", wrong], cwd=tmp_path, text=True, capture_output=True
    )
    assert json.loads(ran.stdout.splitlines()[1]) != pytest.approx(json.loads(numbers), abs=1e-5)


@pytest.mark.whole
def test_an_exported_program_says_what_predict_says(tmp_path: Path) -> None:
    how = Preprocess(72, 2.0, 0.875, 48, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    bundle = untrained_bundle("torchvision", "resnet18", how)
    real = ArrayImages("fashion", load_fashion().val_images[:9])
    done = export(bundle, "onnx", real, threads=1)
    (tmp_path / "model.onnx").write_bytes(done.content)
    shirt = Image.fromarray(load_fashion().val_images[1])
    shirt.resize((131, 90)).save(tmp_path / "image.jpg")
    code = CODE["onnx"] + "print(json.dumps(probabilities.tolist()))\n"

    said, numbers = run_in(tmp_path, code)
    (ranking,) = rank(bundle, [str(tmp_path / "image.jpg")], top=3, device="cpu", threads=1)
    assert said.split()[0] == ranking.top[0][0]
    found = dict(zip(CLASSES, json.loads(numbers), strict=True))
    # It rounds to whole levels where predict does not, and this network is a sensitive one.
    assert found == pytest.approx(dict(ranking.top), abs=0.02)
    # Negative control: without the crop it says something else.
    assert "image.crop(" in code
    _, numbers = run_in(tmp_path, code.replace('* how["crop"])', ")"))
    found = dict(zip(CLASSES, json.loads(numbers), strict=True))
    assert found != pytest.approx(dict(ranking.top), abs=0.04)


def run_in(folder: Path, code: str) -> list[str]:
    """The lines that code prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, text=True, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_loader_is_short() -> None:
    loader = CODE["library"].partition("probabilities = ")[0]
    assert len([line for line in loader.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("changes", [(), HOW_BCE_ANSWERS], ids=["cross entropy", "bce"])
def test_the_loader_turns_outputs_into_the_probabilities_of_predict(
    changes: tuple[Change, ...],
) -> None:
    about = json.loads(json.dumps(Architecture("timm", "any", len(CLASSES), changes).to_dict()))
    names: dict[str, Any] = {"F": torch.nn.functional, "net": about}
    exec("def answer" + CODE["library"].split("def answer")[1].split("\n\n\n")[0], names)  # noqa: S102
    logits = torch.tensor([[2.0, 1.0, -1.0], [-200.0, -201.0, -300.0]])
    expected = {kind: probabilities(logits, kind) for kind in ("cross_entropy", "bce")}
    kind, other = ("bce", "cross_entropy") if changes else ("cross_entropy", "bce")
    assert torch.equal(names["answer"](logits), expected[kind])
    assert not torch.allclose(expected[kind], expected[other], atol=0.01)
