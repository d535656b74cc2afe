"""Make the environments in which the peers of trick-runner are measured.

    python -m benchmarks.peers FOLDER

makes ``FOLDER/fastai`` and ``FOLDER/timm`` (the latter serves torchvision's worker, too), each a
virtual environment with the pinned release of its library, and prints the Python of each. What is
there already is left as it is, unless it was made with another torch. Takes about two minutes.

The environments compute with the very torch and torchvision that this command runs with, so that
no contestant has other kernels. By default they are not copied but shared (``--share-torch``): a
``.pth`` file in each environment appends this environment's packages to its path. Its own packages
come first; what its library requires and finds here in a release that it accepts (numpy and Pillow,
say) is shared as well, so that all decode with the same build. Editable installations, and so
trick-runner itself, are not visible there. ``--no-share-torch`` installs the same releases of torch
and torchvision into each instead, which on Linux takes 5 GB a piece.

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
# The worker of each contestant, and the environment that it runs in.
ENVIRONMENT_OF = {"fastai": "fastai", "timm": "timm", "torchvision": "timm"}
# What all contestants compute with, of one release and build.
SAME = ("torch", "torchvision")
# What an environment was made of; written last, so that it also says that it is whole.
MADE_OF = "made-of.json"
LINK = "shared_torch.pth"


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of contestant ``name`` (a key of ``ENVIRONMENT_OF``) below ``folder``."""
    return folder / ENVIRONMENT_OF[name] / "bin" / "python"


def make(folder: Path, pinned: str, share_torch: bool) -> bool:
    """Make one environment; return whether there was anything to do.

    Args:
        folder: the environment's own folder; an unfinished or outdated one is made anew.
        pinned: the library, as pip takes it.
        share_torch: link to this environment's packages rather than install torch again.
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
        # Where an environment keeps compiled packages apart (lib64), both belong to it.
        linked = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (packages / LINK).write_text("".join(f"{path}\n" for path in linked))
    same = [f"{name}=={version(name).partition('+')[0]}" for name in SAME]
    # Asking for torch by its release keeps pip from taking another one along with the library.
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
        prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--share-torch", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    for name, pinned in PINNED.items():
        print(f"{name}: {pinned} …", file=sys.stderr)
        made = make(folder / name, pinned, arguments.share_torch)
        print("  made" if made else "  was there", file=sys.stderr)
    for name in ENVIRONMENT_OF:
        print(f"{name}\t{python_of(folder, name)}")


if __name__ == "__main__":
    main()
