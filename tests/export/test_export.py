"""Exported programs say what ``predict`` says, to who prepares images as the documents tell."""

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from small import CLASSES, untrained_bundle

from runner.data.embedded import load_fashion
from runner.data.images import ArrayImages, FileImages
from runner.data.preprocess import Preprocess
from runner.errors import ArtefactError, ConfigError
from runner.export import __main__ as export
from runner.export import programs
from runner.predict import rank
from runner.records.bundle import Bundle, open_bundle

REAL = ArrayImages("fashion", load_fashion().val_images[::150])


def session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options)


def as_a_user(content: bytes, kind: str, squares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a program says, run by what the formats are for."""
    if kind == "onnx":
        return np.asarray(session(content).run(None, {"images": squares})[0])
    module = torch.export.load(io.BytesIO(content)).module()
    return np.asarray(module(torch.from_numpy(squares)).detach())


def square(path: str, how: dict[str, Any]) -> np.ndarray[Any, Any]:
    """An image file as (3, size, size) uint8, by Pillow alone."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    method = Image.Resampling[how["interpolation"].upper()]
    scale = how["presize"] / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), method)
    side = round(how["presize"] * how["crop"])
    left, top = (round((length - side) / 2) for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    return np.array(image.resize((how["size"], how["size"]), method)).transpose(2, 0, 1)


def predicted(bundle: Bundle, paths: list[str]) -> np.ndarray[Any, Any]:
    found = rank(
        bundle, paths, top=len(CLASSES), device="cpu", precision="fp32", threads=1, num_workers=0
    )
    return np.array([[dict(ranking.top)[name] for name in CLASSES] for ranking in found])


@pytest.fixture(scope="module")
def run(finished_run: Callable[..., Path]) -> Path:
    """A finished run with statistics of its own, that sees a part of each image at another size."""
    return finished_run(
        "eval.crop=0.9",
        "data.interpolation=bicubic",
        "normalize=dataset",
        "budget.epochs=3",
        "precision=fp32",
    )


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return open_bundle(run)


@pytest.fixture(scope="module")
def made(bundle: Bundle) -> dict[str, export.Exported]:
    return {kind: export.export(bundle, kind, REAL, threads=1) for kind in export.SUFFIXES}


@pytest.fixture(scope="module")
def val(tiny_folder: Path) -> list[str]:
    return [str(path) for path in sorted((tiny_folder / "val").rglob("*.png"))]


@pytest.mark.parametrize("kind", export.SUFFIXES)
def test_a_program_says_what_predict_says_of_files(
    bundle: Bundle, made: dict[str, export.Exported], val: list[str], kind: str
) -> None:
    how = bundle.preprocess.to_dict()
    squares = np.stack([square(path, how) for path in val])
    own = predicted(bundle, val)
    found = as_a_user(made[kind].content, kind, squares)
    # Half a level of rounding here, as predict resizes in floats.
    assert np.abs(found - own).max() < 0.02
    assert own.std(axis=0).max() > 0.02
    # Negative control: pixels that are not 0..255 RGB are not what it wants.
    assert np.abs(as_a_user(made[kind].content, kind, squares[:, ::-1].copy()) - own).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", export.SUFFIXES)
def test_any_number_of_images_at_a_time(
    bundle: Bundle, made: dict[str, export.Exported], val: list[str], kind: str
) -> None:
    squares = np.stack([square(path, bundle.preprocess.to_dict()) for path in val])
    whole = as_a_user(made[kind].content, kind, squares)
    for count in (1, 2, 5):
        found = as_a_user(made[kind].content, kind, squares[:count])
        np.testing.assert_allclose(found, whole[:count], rtol=0, atol=1e-5)


def test_the_file_says_what_it_is(bundle: Bundle, made: dict[str, export.Exported]) -> None:
    in_onnx = session(made["onnx"].content).get_modelmeta().custom_metadata_map
    extra = {"model.json": ""}
    torch.export.load(io.BytesIO(made["torch"].content), extra_files=extra)
    assert in_onnx == json.loads(extra["model.json"])
    assert json.loads(in_onnx["classes"]) == list(CLASSES)
    assert json.loads(in_onnx["preprocess"]) == bundle.preprocess.to_dict()
    assert json.loads(in_onnx["model"])["name"] == "test_resnet"
    assert "uint8 (N, 3, 16, 16)" in in_onnx["input"]
    (image,) = session(made["onnx"].content).get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("images", "tensor(uint8)", [3, 16, 16])
    assert image.shape[0] == "batch"


def test_the_file_tells_nothing_of_the_machine(made: dict[str, export.Exported]) -> None:
    root = str(Path(export.__file__).parent.parent).encode()
    assert root not in made["onnx"].content
    archive = zipfile.ZipFile(io.BytesIO(made["torch"].content))
    assert not [name for name in archive.namelist() if root in archive.read(name)]


ARCHITECTURES = [
    ("timm", "test_resnet", 35),
    *(
        pytest.param(*architecture, marks=pytest.mark.whole)
        for architecture in (
            ("xresnet", "xresnet18", 28), ("xresnet", "xresnet18", 35),
            ("torchvision", "resnet18", 35), ("timm", "test_resnet", 28),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "size"), ARCHITECTURES)
def test_architectures_at_odd_sizes(source: str, name: str, size: int, tmp_path: Path) -> None:
    statistics = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    bundle = untrained_bundle(
        source, name, Preprocess(size, 2.0, 1.0, size, "bicubic", *statistics)
    )
    random = np.random.default_rng(0)
    paths = []
    for number, pixels in enumerate(load_fashion().val_images[:4]):
        colours = random.uniform(0.4, 1, 3)
        large = Image.fromarray((pixels[..., None] * colours).astype(np.uint8)).resize((131, 90))
        paths.append(str(tmp_path / f"{number}.png"))
        large.save(paths[-1])
    squares = np.stack([square(path, bundle.preprocess.to_dict()) for path in paths])
    done = export.export(bundle, "onnx", REAL, threads=1)
    found = as_a_user(done.content, "onnx", squares)
    own = predicted(bundle, paths)
    # No rounding between: the square that is seen has the size of the input.
    assert np.abs(found - own).max() < 1e-5
    assert done.rounding < 1e-5
    # Negative control: other images, other answers.
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.slow
def test_a_program_of_other_statistics_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_other_statistics(learner: Any, about: dict[str, str]) -> bytes:
        how = replace(learner.preprocess, mean=(0.485, 0.456, 0.406))
        return to_torch(replace(learner, preprocess=how), about)

    to_torch = programs.to_torch
    monkeypatch.setattr(programs, "to_torch", with_other_statistics)
    with pytest.raises(ArtefactError, match="does not agree with the network"):
        export.export(bundle, "torch", REAL, threads=1)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused(bundle: Bundle) -> None:
    tensors = {name: tensor.clone() for name, tensor in bundle.tensors.items()}
    tensors["fc.bias"][0] = float("nan")
    with pytest.raises(ArtefactError, match="not finite"):
        export.export(replace(bundle, tensors=tensors), "torch", REAL, threads=1)


def test_what_an_exporter_cannot_do_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(learner: Any, about: dict[str, str]) -> bytes:
        raise NotImplementedError("no operator aten::strange")

    monkeypatch.setattr(programs, "to_onnx", fail)
    with pytest.raises(ConfigError, match="test_resnet cannot be exported: no operator"):
        export.export(bundle, "onnx", REAL, threads=1)


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (5, [1, 4]), (63, [1, 7, 32, 23])])
def test_batches(count: int, expected: list[int]) -> None:
    parts = export._batches(count)
    assert [len(part) for part in parts] == expected
    assert np.concatenate(parts).tolist() == list(range(count))


# The command.


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["export", *words])
    monkeypatch.setattr("runner.machine.hardware.num_cores", lambda: 1)
    try:
        export.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(
    run: Path, val: list[str], here: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = str(Path(val[0]).parent)
    words = [str(run), "--format", "torch", "--images", folder, val[-1]]
    assert called(monkeypatch, *words) == 0
    told = capsys.readouterr()
    assert told.out.startswith("model.pt2: ")
    assert "checked on 9 images" in told.out
    assert "note: predict resizes without rounding" in told.out
    assert told.err == ""
    assert [path.name for path in here.iterdir()] == ["model.pt2"]
    # What is there stays, unless told otherwise.
    (here / "model.pt2").write_bytes(b"mine")
    assert called(monkeypatch, *words) == 2
    assert "--force" in capsys.readouterr().err
    assert (here / "model.pt2").read_bytes() == b"mine"
    monkeypatch.setattr(export, "export", lambda *_, **__: export.Exported(b"new", 1, 0.0, 0.0))
    assert called(monkeypatch, *words, "--force") == 0
    assert (here / "model.pt2").read_bytes() == b"new"
    assert "note:" not in capsys.readouterr().out
    assert called(monkeypatch, *words, "--output", "/dev/null/x") == 4


def test_a_damaged_program_is_not_written(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_onnx = programs.to_onnx

    def damaged(learner: Any, about: dict[str, str]) -> bytes:
        model = onnx.load_model_from_string(to_onnx(learner, about))
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.raw_data = weights.raw_data[::-1]
        return bytes(model.SerializeToString())

    monkeypatch.setattr(programs, "to_onnx", damaged)
    assert called(monkeypatch, str(run)) == 7
    assert "does not agree with the network" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_changed_bundle_is_not_exported(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "bundle", here / "bundle")
    path = here / "bundle" / "model.json"
    path.write_text(path.read_text().replace('"size": 16', '"size": 32'))
    assert called(monkeypatch, "bundle") == 7
    assert "preprocess.size is 32, not 16" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["bundle"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    assert called(monkeypatch, str(run)) == 2
    told = capsys.readouterr().err
    assert f"needs the package {package}," in told
    assert "pip install 'trick-runner[export]'" in told


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no such run": (["nowhere"], 3, "no such folder"),
    "another format": (["RUN", "--format", "tflite"], 2, "invalid choice"),
    "a folder": (["RUN", "--output", "."], 2, "model.onnx"),
    "no images": (["RUN", "--images", "."], 3, "no images found"),
    "no image": (["RUN", "--format", "torch", "--images", "bad.png"], 3, "bad.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:  # fmt: skip
    words, code, reason = WRONG[name]
    if name != "no images":
        (here / "bad.png").write_bytes(b"no image")
    before = list(here.iterdir())
    assert called(monkeypatch, *(str(run) if word == "RUN" else word for word in words)) == code
    assert reason in capsys.readouterr().err
    assert list(here.iterdir()) == before


def test_the_images_to_check_on_are_all_classes() -> None:
    labels = load_fashion().val_labels[:: export._EMBEDDED_STEP]
    assert len(set(labels.tolist())) == 10
    assert len(export._images([])) == len(labels)
    assert isinstance(export._images([Path("x.png")]), FileImages)
