"""Small image files, in the folders that the data sets are made of."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from pictures import encoded, random_pixels
from PIL import Image

from runner.data.images import FileImages
from runner.data.store import content_digests, open_store


@pytest.fixture
def make_images():
    """A function that fills a folder: ``make_images(root, {"train/cat": 3, …})``.

    A number makes that many images, all different; a list gives the names of the files.
    """
    made = 0

    def make(root: Path, folders: Mapping[str, int | list[str]]) -> Path:
        nonlocal made
        for folder, names in folders.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            if isinstance(names, int):
                names = [f"{number}.png" for number in range(names)]
            for name in names:
                made += 1
                kind = Image.registered_extensions()[Path(name).suffix.lower()]
                (root / folder / name).write_bytes(encoded(random_pixels(made), kind))
        return root

    return make


@pytest.fixture
def file_images(tmp_path):
    """A function that writes contents, by name, and returns them as images."""

    def write(contents, folder="images"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, content in contents.items():
            (tmp_path / folder / name).write_bytes(content)
        return FileImages(tmp_path / folder, tuple(contents))

    return write


@pytest.fixture
def opened(tmp_path):
    """A function that opens a store as ``load_dataset`` does, with defaults for tests."""

    def open_images(images, cache=None, progress=lambda *_: None, **options):
        cache = cache or tmp_path / "cache"
        options = {"presize": 8, "max_aspect": 2.0, "cached": True} | options
        digests = content_digests(images, cache, progress)
        return open_store(images, digests, cache, progress=progress, **options)

    return open_images


@pytest.fixture
def unprivileged():
    """A folder to work in without the rights of root, to whom no permission is denied."""
    folder = Path(tempfile.mkdtemp(prefix="unprivileged-"))
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        else:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o700)
        shutil.rmtree(folder)
