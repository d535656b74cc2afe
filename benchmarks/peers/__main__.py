"""Make the environments in which the peers of trick-runner are measured.

    python -m benchmarks.peers FOLDER

makes ``FOLDER/fastai`` and ``FOLDER/timm`` (the latter serves torchvision's worker, too), each a
virtual environment with the pinned release of its library, and prints the Python of each. An
existing environment is kept, unless it was made with another torch. Takes about two minutes.

The environments use the same torch and torchvision as this command, so that no contestant has other
kernels. By default these packages are not copied but shared (``--share-torch``): a ``.pth`` file in
each environment appends the packages of this environment to its path. Its own packages come first.
Other requirements of its library that are here in an accepted release (numpy and Pillow, say) are
shared as well, so that all contestants decode with the same build. Editable installations, and so
trick-runner itself, are not visible there. ``--no-share-torch`` installs the same releases of torch
and torchvision into each environment, which takes 5 GB each on Linux.

fastai 2.8.12 accepts torch below 3 and needs no workaround.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

# The library of each environment, as pip takes it.
PINNED = {"fastai": "fastai==2.8.12", "timm": "timm==1.0.31"}
# The environment that the worker of each contestant runs in.
ENVIRONMENT_OF = {"fastai": "fastai", "timm": "timm", "torchvision": "timm"}
# The packages that all contestants must have in the same release and build.
SAME = ("torch", "torchvision")
# The file that records what an environment was made of. It is written last, so it also marks the
# environment as complete.
MADE_OF = "made-of.json"
LINK = "shared_torch.pth"


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of contestant ``name`` (a key of ``ENVIRONMENT_OF``) below ``folder``."""
    return folder / ENVIRONMENT_OF[name] / "bin" / "python"


def make(folder: Path, pinned: str, share_torch: bool) -> bool:
    """Make one environment; return whether there was anything to do.

    Args:
        folder: folder of the environment; an unfinished or outdated environment is made again.
        pinned: the library, as pip takes it.
        share_torch: link to the packages of this environment instead of installing torch again.
    """
    wanted = {
        "library": pinned,
        "shares": sysconfig.get_path("purelib") if share_torch else None,
        **{name: version(name) for name in SAME},
    }
    record = folder / MADE_OF
    if record.is_file() and json.loads(record.read_text()) == wanted:
        return False
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    if share_torch:
        packages = Path(_output(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
        # An environment may keep compiled packages in a folder of their own (lib64).
        linked = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (packages / LINK).write_text("".join(f"{path}\n" for path in linked))
    same = [f"{name}=={version(name).partition('+')[0]}" for name in SAME]
    # Naming the release of torch keeps pip from installing another release with the library.
    subprocess.run(  # noqa: S603
        [str(python), "-m", "pip", "install", "--quiet", pinned, *same], check=True
    )
    code = "import torch, torchvision; print(torch.__version__, torchvision.__version__)"
    found, expected = _output(python, code), _output(Path(sys.executable), code)
    if found != expected:
        raise SystemExit(f"{folder}: has torch and torchvision {found}, this Python has {expected}")
    record.write_text(json.dumps(wanted, indent=2) + "\n")
    return True


def _output(python: Path, code: str) -> str:
    command = [str(python), "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def main() -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m benchmarks.peers",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--share-torch", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    for name, pinned in PINNED.items():
        print(f"{name}: {pinned} …", file=sys.stderr)
        made = make(folder / name, pinned, arguments.share_torch)
        print("  made" if made else "  already there", file=sys.stderr)
    for name in ENVIRONMENT_OF:
        print(f"{name}\t{python_of(folder, name)}")


if __name__ == "__main__":
    main()
