"""Images per second of training in bfloat16, relative to float32, by network and image size.

    python -m benchmarks.precision --json FILE [--networks NAME …] [--sizes PX …] [--words WORDS…]

This is what ``precision=auto`` rests on (``runner/machine/hardware.py``). Both trainings are those
of the embedded data and live in one process, where they take turns; the ratio is that of each
round. FILE gets every line as soon as it is measured, and lines that it has are not measured again,
so a long measurement can be made in pieces.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Spread, machine, parser, ratio
from benchmarks.own_worker import OwnTraining
from runner.machine.files import write_output
from runner.machine.hardware import cpu_flags
from runner.terminal.console import table_console
from runner.terminal.tables import Table

PRECISIONS = ("fp32", "bf16")
NETWORKS = {
    "xresnet18": ("model=xresnet18",),
    "xresnet50": ("model=xresnet50",),
    "resnet18": ("model=timm", "model.name=resnet18"),
    "mobilenet_v3_small": ("model=torchvision", "model.name=mobilenet_v3_small"),
    "convnext_atto": ("model=timm", "model.name=convnext_atto"),
}
"""The words of each network; the last two have convolutions of one channel each (depthwise)."""
SMALLEST = {"convnext_atto": 32}  # px, of the networks that do not take every size


def measured(words: list[str], seconds: float, repeats: int) -> dict[str, Any]:
    """Train in both precisions in turns.

    Args:
        words: words of runner.train.
        seconds: length of a turn, approximately.
        repeats: number of measured rounds, 1 or more.
    """
    trainings = {name: OwnTraining([*words, f"precision={name}"], "run") for name in PRECISIONS}
    rates: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    steps = {}
    for name, training in trainings.items():
        training.train(2)  # builds the kernels
        steps[name] = max(1, round(4 * seconds / training.train(4)["seconds"]))
    for _ in range(repeats):
        for name, training in trainings.items():
            found = training.train(steps[name])
            rates[name].append(found["images"] / found["seconds"])
    fp32, bf16 = (Spread(tuple(rates[name])) for name in PRECISIONS)
    times = ratio(bf16, fp32)
    return {"fp32": fp32.to_dict(), "bf16": bf16.to_dict(), "bf16_times": times.to_dict()}


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("precision", "Images per second of training in bf16, relative to fp32.")
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--sizes", type=int, nargs="+", default=[16, 28, 32, 64], metavar="PX")
    options.add_argument("--repeats", type=int, default=5, help="measured rounds")
    options.add_argument("--seconds", type=float, default=2.0, help="of a turn, about")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    flags = sorted(flag for flag in cpu_flags() if flag in ("avx2", "avx512f") or "bf16" in flag)
    content: dict[str, Any] = {"benchmark": "precision", "results": []}
    if arguments.json is not None and arguments.json.exists():
        content = json.loads(arguments.json.read_text())
    content |= {"command": " ".join(sys.argv), "machine": machine(), "flags": flags}
    done = {(line["network"], line["size"]) for line in content["results"]}
    for network in arguments.networks:
        for size in arguments.sizes:
            if (network, size) in done or size < SMALLEST.get(network, 0):
                continue
            words = [*NETWORKS[network], f"resize.size={size}", f"outputs='{outputs}'"]
            found = measured([*words, *arguments.words], arguments.seconds, arguments.repeats)
            content["results"].append({"network": network, "size": size, **found})
            _save(arguments.json, content)
            print(network, size, f"{found['bf16_times']['median']:.3g}", file=sys.stderr)
            gc.collect()  # the two networks and their optimizers
    _print(content)


def _save(target: Path | None, content: dict[str, Any]) -> None:
    if target is not None:
        write_output(target, (json.dumps(content, indent=2) + "\n").encode())


def _print(content: dict[str, Any]) -> None:
    rows = [
        (
            line["network"],
            str(line["size"]),
            *(str(Spread(tuple(line[what]["values"]))) for what in ("fp32", "bf16", "bf16_times")),
        )
        for line in content["results"]
    ]
    table = Table(
        "training, images/s, median [min, max] of the rounds",
        ("network", "px", "fp32", "bf16", "bf16 ×"),
        tuple(rows),
        ("network",),
    )
    about = content["machine"]
    console = table_console()
    table.print(console)
    text = f"{about['processor']}, {about['cores']} cores, {about['date']}, flags: "
    console.print(text + " ".join(content["flags"]), markup=False)


if __name__ == "__main__":
    main()
