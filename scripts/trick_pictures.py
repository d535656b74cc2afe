"""Draw the pictures of the pages in docs/tricks/: what each trick does to pixels or to a curve.

    python -m scripts.trick_pictures [NAME…] [--folder FOLDER]

NAME is a name as in ``+trick=NAME`` (default: all that have a picture). Each picture is written to
``docs/tricks/NAME.png``. It is made from the embedded data by the trick's own functions, with
fixed seeds; every run writes the same bytes (with the same versions of Pillow and matplotlib).

To add a picture: write a function below, in alphabetical order, that takes the embedded data and
returns an image, and decorate it with ``@picture("NAME")``. :func:`examples`, :func:`grid` and
:func:`chart` do most of the work. The page shows it with ``![what is seen](NAME.png)``.
"""

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from runner.config.auto_augment import AutoAugment
from runner.config.ema import Ema
from runner.config.erasing import Erasing
from runner.config.loss import Loss
from runner.config.mixup import Mixup
from runner.config.overlays import option_values
from runner.config.sampling import Sampling
from runner.config.schema import Augment, Resize
from runner.data.batches import Pixels
from runner.data.embedded import FashionSubset, load_fashion
from runner.training.step import augmented
from runner.tricks import augment as augmentation
from runner.tricks import auto_augment, erasing
from runner.tricks import mixup as mixing
from runner.tricks.accumulate import micro_batches
from runner.tricks.blurpool import BlurMaxPool2d
from runner.tricks.clip import clip_gradients
from runner.tricks.ema import AveragedWeights
from runner.tricks.loss import class_weights, mean_loss
from runner.tricks.normalize import normalize
from runner.tricks.resize import size_at, to_size
from runner.tricks.sampling import epoch_order
from runner.tricks.smoothing import one_hot, smooth
from runner.tricks.stochastic_depth import StochasticDepth, rates
from scripts.imbalanced_table import class_sizes

FOLDER = Path(__file__).parents[1] / "docs" / "tricks"
LARGEST_FILE = 60_000  # bytes of a picture

Draw = Callable[[FashionSubset], Image.Image]

PICTURES: dict[str, Draw] = {}
"""The function that draws each picture, by the name of its trick."""

_GAP, _LABEL_HEIGHT = 4, 18  # px
_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def picture(name: str) -> Callable[[Draw], Draw]:
    """Register the function that draws the picture of the trick ``name``."""

    def register(draw: Draw) -> Draw:
        assert name not in PICTURES, f"{name} has two pictures"
        PICTURES[name] = draw
        return draw

    return register


def examples(data: FashionSubset, count: int, *, first: int = 0) -> Tensor:
    """Training images of different classes, (count, 3, 28, 28), float in 0..1.

    Args:
        data: the embedded data.
        count: number of images, 1 to 10.
        first: which image of each class.
    """
    rows = [np.flatnonzero(data.train_labels == label)[first] for label in range(count)]
    pixels = torch.from_numpy(data.train_images[rows].astype(np.float32) / 255)
    return pixels[:, None].repeat(1, 3, 1, 1)


def grid(rows: Mapping[str, Tensor], *, scale: int = 3) -> Image.Image:
    """Rows of images, each below its label.

    Args:
        rows: images (N, C, H, W) of each row, C of 1 or 3, float in 0..1, by the label of the row.
        scale: side of a square in the picture that shows one pixel, px.
    """
    drawn = [(label, _shown(images, scale)) for label, images in rows.items()]
    width = max(max(sum(one.width + _GAP for one in row) for _, row in drawn), 200)
    height = sum(_LABEL_HEIGHT + row[0].height + _GAP for _, row in drawn)
    sheet = Image.new("RGB", (width + _GAP, height + _GAP), "white")
    pen, top = ImageDraw.Draw(sheet), _GAP
    # matplotlib's own font, because Pillow's has no Greek letters.
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)
    for label, row in drawn:
        pen.text((_GAP, top), label, fill="black", font=font)
        left, top = _GAP, top + _LABEL_HEIGHT
        for one in row:
            sheet.paste(one, (left, top))
            left += one.width + _GAP
        top += row[0].height + _GAP
    return sheet


def chart(
    draw: Callable[..., None], *, columns: int = 1, rows: int = 1, height: float = 2.4
) -> Image.Image:
    """Return a chart of one or several panels.

    Args:
        draw: gets one ``matplotlib.axes.Axes`` for each panel, row by row, and draws into it.
        columns: number of panels side by side.
        rows: number of rows of panels.
        height: height of the picture, inches of 100 px; it is 7.2 wide.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, height), dpi=100, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        draw(*panels)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")


def content(name: str, data: FashionSubset) -> bytes:
    """Return the bytes of the PNG file of the picture ``name``."""
    file = io.BytesIO()
    # 64 colors are enough for gray images and charts, and make the file small.
    PICTURES[name](data).quantize(64).save(file, "PNG", optimize=True)
    found = file.getvalue()
    assert len(found) <= LARGEST_FILE, f"{name} has {len(found):,} bytes, over {LARGEST_FILE:,}"
    return found


def columns_of(columns: Mapping[str, Tensor]) -> Image.Image:
    """Columns of images (N, 3, H, W), each below its label."""

    def draw(*panels: Axes) -> None:
        for number, (label, images) in enumerate(columns.items()):
            for row, image in enumerate(images):
                axes = panels[row * len(columns) + number]
                axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(label)

    rows = len(next(iter(columns.values())))
    return chart(draw, columns=len(columns), rows=rows, height=1.4 * rows)


def _rows(images: NDArray[np.uint8]) -> Tensor:
    """Images (N, 28, 28) as rows (N, 784), float in 0..1."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)


def _shown(images: Tensor, scale: int) -> list[Image.Image]:
    enlarged = F.interpolate(images.float().clamp(0, 1), scale_factor=scale, mode="nearest")
    pixels = (enlarged * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).contiguous().numpy()]


# ── The pictures, in alphabetical order ──────────────────────────────────────────────────────────


@picture("accumulate")
def draw_accumulate(data: FashionSubset) -> Image.Image:
    """Return what a small network keeps for its backward passes, by the number of micro-batches."""
    images = examples(data, 10).repeat(4, 1, 1, 1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU()
    )

    def kept(steps: int) -> list[float]:
        """Megabytes kept after each layer of one batch."""
        found, held = [0.0], 0
        for rows in micro_batches(len(images), steps):
            values, base = images[rows], held
            for layer in network:
                values = layer(values)
                held += values.numel() * values.element_size()
                found.append(held / 1e6)
            held = base
            found.append(held / 1e6)
        return found

    def draw(axes: Axes) -> None:
        for steps in (1, 4):
            sizes = kept(steps)
            place = np.linspace(0, 1, len(sizes))
            label = f"accumulate.steps={steps}"
            axes.plot(place, sizes, label=label, drawstyle="steps-post")
        axes.set(xlabel="part of the batch that is done", ylabel="activations, MB")
        axes.legend()

    return chart(draw)


@picture("balanced_sampling")
def draw_balanced_sampling(data: FashionSubset) -> Image.Image:
    """Return how often the images of each class come in an epoch of the imbalanced example."""
    sizes = class_sizes()
    labels = np.repeat(np.arange(len(sizes)), sizes)

    def draw(axes: Axes) -> None:
        for number, power in enumerate((0.0, 0.5, 1.0)):
            order = epoch_order(labels, len(labels), Sampling(power), 0, 0)
            counts = np.bincount(labels[order[0].images], minlength=len(sizes))
            place = np.arange(len(sizes)) + 0.27 * (number - 1)
            axes.bar(place, counts, width=0.25, label=f"sampling.power={power:g}")
        axes.set(xlabel="class, by the number of its images", ylabel="images in an epoch")
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.legend()

    return chart(draw)


@picture("bce")
def draw_bce(data: FashionSubset) -> Image.Image:
    """The loss of an image that is mixed of two classes in halves, by the outputs of these two."""
    outputs = torch.linspace(-6, 6, 121)
    target = torch.tensor([[0.5, 0.5, *[0.0] * 8]])
    others = torch.full((8,), -4.0)
    logits = [torch.cat([output.expand(2), others])[None] for output in outputs]

    def draw(axes: Axes) -> None:
        cross_entropy = [mean_loss(each, target, "cross_entropy") for each in logits]
        bce = [mean_loss(each, target, "bce") for each in logits]
        axes.plot(outputs, torch.stack(cross_entropy), label="cross entropy")
        axes.plot(outputs, torch.stack(bce), label="binary cross entropy")
        axes.set(xlabel="output of each of the two classes; the others are -4", ylabel="loss")
        axes.legend()

    return chart(draw)


@picture("blurpool")
def draw_blurpool(data: FashionSubset) -> Image.Image:
    """Pooled maps of an image and of the image moved by one pixel, with and without the blur."""
    images = examples(data, 3)[:, :1]
    moved = F.pad(images, (1, 0, 0, 0))[..., :-1]
    pool = torch.nn.MaxPool2d(2)
    pools = {"max pooling": pool, "with the blur": BlurMaxPool2d(pool)}

    def draw(*panels: Axes) -> None:
        for row, image, shifted in zip(range(3), images[:, None], moved[:, None], strict=True):
            shown: list[tuple[str, Tensor]] = [("image", image)]
            for name, layer in pools.items():
                one, other = layer(image), layer(shifted)
                shown += [
                    (name, one),
                    ("moved by 1 px", other),
                    ("difference", (one - other).abs()),
                ]
            for axes, (title, values) in zip(panels[row * 7 :][:7], shown, strict=True):
                axes.imshow(values[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(title, fontsize=7.5)

    return chart(draw, columns=7, rows=3, height=3.2)


@picture("class_weights")
def draw_class_weights(data: FashionSubset) -> Image.Image:
    """Return the weight of an image by the size of its class, in the imbalanced example."""
    sizes = class_sizes()
    labels = np.repeat(np.arange(len(sizes)), sizes)
    choices = {
        "balanced": Loss(class_weights="balanced"),
        "effective, β = 0.999": Loss(class_weights="effective"),
        "effective, β = 0.99": Loss(class_weights="effective", beta=0.99),
    }

    def draw(axes: Axes) -> None:
        for label, loss in choices.items():
            weights = class_weights(loss, labels, data.classes, len(sizes))
            assert weights is not None
            axes.plot(sizes, weights, "o-", label=label)
        axes.set(
            xlabel="training images of the class", ylabel="weight of an image",
            xscale="log", yscale="log",
        )  # fmt: skip
        axes.legend()

    return chart(draw)


@picture("clip")
def draw_clip(data: FashionSubset) -> Image.Image:
    """Return the norm of a gradient after clipping, by its norm before."""
    weight = torch.nn.Parameter(torch.zeros(2))
    before = np.linspace(0.05, 3, 60)
    after = []
    for norm in before:
        weight.grad = torch.tensor([0.6, 0.8]) * float(norm)
        clip_gradients([weight], 1.0)
        after.append(float(weight.grad.norm()))

    def draw(axes: Axes) -> None:
        axes.plot(before, before, color="0.7", label="clip=none")
        axes.plot(before, after, label="clip.norm=1")
        axes.set(xlabel="norm of the gradient", ylabel="norm that updates")
        axes.legend()

    return chart(draw)


@picture("ema")
def draw_ema(data: FashionSubset) -> Image.Image:
    """Accuracy of the weights and of their average, of a linear classifier during a training."""
    total, batch = 400, 16
    inputs, labels = _rows(data.train_images), torch.from_numpy(data.train_labels.astype(np.int64))
    tests, expected = _rows(data.val_images), torch.from_numpy(data.val_labels.astype(np.int64))
    model = torch.nn.Linear(inputs.shape[1], len(data.classes))
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    averaged = AveragedWeights(model, Ema(span=0.1), total)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    order = np.random.default_rng(0).permutation(len(inputs))
    curves: dict[str, list[float]] = {"the last weights": [], "their average": []}
    steps = []
    for step in range(total):
        rows = torch.from_numpy(order[step * batch % len(order) :][:batch])
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(inputs[rows]), labels[rows]))
        optimizer.step()
        averaged.after_step(model, step)
        if step % 5 == 4:
            steps.append(step + 1)
            for curve, network in zip(
                curves.values(), (model, averaged.network(model)), strict=True
            ):
                correct = network(tests).argmax(dim=1) == expected
                curve.append(100 * correct.float().mean().item())

    def draw(axes: Axes) -> None:
        for label, curve in curves.items():
            axes.plot(steps, curve, label=label)
        axes.set(xlabel="step", ylabel="accuracy (%)", ylim=(50, 85))
        axes.legend(loc="lower right")

    return chart(draw)


@picture("label_smoothing")
def draw_label_smoothing(data: FashionSubset) -> Image.Image:
    """Return the target of an image, plain and smoothed."""
    plain = one_hot(torch.tensor([3]), len(data.classes))

    def draw(*panels: Axes) -> None:
        targets = {"before": plain, "after, ε = 0.1": smooth(plain, 0.1)}
        for axes, (title, target) in zip(panels, targets.items(), strict=True):
            bars = axes.barh(range(len(data.classes)), target[0].tolist())
            axes.bar_label(bars, fmt="%.2f", padding=2)
            axes.set(title=title, xlim=(0, 1.15), xlabel="target")
            axes.set_yticks(range(len(data.classes)), data.classes)
            axes.invert_yaxis()

    return chart(draw, columns=2, height=2.8)


@picture("mixup")
def draw_mixup(data: FashionSubset) -> Image.Image:
    """Images, their partners, and the blends, with λ of mixup=beta."""
    images = examples(data, 8)
    settings = Mixup(probability=1)
    mix = mixing.draw(np.random.default_rng(3), settings, len(images), *images.shape[-2:])
    return grid(
        {
            "before": images,
            "partner": images[mix.partner],
            "after: λ · image + (1 - λ) · partner": mixing.mix_images(images, mix),
        }
    )


@picture("normalize")
def draw_normalize(data: FashionSubset) -> Image.Image:
    """The values of pixels before and after, with the statistics of ImageNet and of the data."""
    pixels = data.train_images[:500].astype(np.float32) / 255
    images = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1)
    whole = data.train_images.astype(np.float64) / 255
    own = (float(whole.mean()),) * 3, (float(whole.std()),) * 3
    chosen = option_values("normalize", "imagenet")

    def draw(*panels: Axes) -> None:
        shown = {
            "before": images,
            "normalize=imagenet": normalize(images, chosen["mean"], chosen["std"]),
            "normalize=dataset": normalize(images, *own),
        }
        for axes, (title, values) in zip(panels, shown.items(), strict=True):
            for channel, color in enumerate(("tab:red", "tab:green", "tab:blue")):
                found = values[:, channel].flatten().numpy()
                axes.hist(found, 40, range=(-2.5, 3), histtype="step", density=True, color=color)
            axes.set(title=title, xlabel="value of a pixel", yticks=[], ylim=(0, 3))

    return chart(draw, columns=3)


@picture("progressive_resizing")
def draw_progressive_resizing(data: FashionSubset) -> Image.Image:
    """Return an image at the sizes of a training, and the size in the course of training."""
    settings = Resize(**option_values("resize", "progressive"))
    progress = np.linspace(0, 1, 500, endpoint=False)
    image = examples(data, 10)[9:, :1]

    def draw(*panels: Axes) -> None:
        for axes, moment in zip(panels, (0.0, 0.6, 0.9), strict=False):
            size = size_at(moment, 28, settings)
            axes.imshow(to_size(image, size)[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(title=f"{size} px, at {moment:.0%}", xticks=[], yticks=[])
        curve = panels[3]
        curve.plot(progress, [size_at(float(at), 28, settings) for at in progress])
        curve.axhline(28, color="gray", linestyle=":")
        curve.set(xlabel="part of training", title="size (px)", ylim=(0, 31))

    return chart(draw, columns=4, height=2.1)


@picture("rand_augment")
def draw_rand_augment(data: FashionSubset) -> Image.Image:
    """Images after two operations each, weak and strong."""
    images = examples(data, 10)
    rows = {"before": images}
    for magnitude in (9, 24):
        policy = AutoAugment("rand", magnitude=magnitude)
        chosen = auto_augment.draw(policy, len(images), images.shape[-1], 0, 0, 0)
        rows[f"after two operations, magnitude={magnitude}"] = auto_augment.apply(images, chosen)
    return grid(rows)


@picture("random_erasing")
def draw_random_erasing(data: FashionSubset) -> Image.Image:
    """Images with a box each, in each of the fills."""
    images = examples(data, 10)
    mean, size = (float(images.mean()),) * 3, images.shape[-1]
    rows = {"before": images}
    for fill in ("mean", "zero", "noise"):
        settings = Erasing(probability=1, fill=fill)
        boxes = erasing.draw(settings, len(images), size, size, 0, 0, 0)
        cover = partial(erasing.fill_of, settings, mean, size, 0, images.device)
        rows[f"after, fill={fill}"] = erasing.erase(images, boxes, cover)
    return grid(rows)


@picture("sam")
def draw_sam(data: FashionSubset) -> Image.Image:
    """A loss with a sharp and a flat minimum, and the highest loss nearby, which SAM lowers."""
    rho = 0.3
    weights = torch.linspace(0.5, 4, 701)

    def loss(weight: Tensor) -> Tensor:
        sharp = 1.1 * torch.exp(-((weight - 1.2) ** 2) / 0.03)
        flat = torch.exp(-((weight - 2.6) ** 2) / 0.8)
        return 1.4 - sharp - flat + 0.02 * weight

    highest = loss(weights[:, None] + torch.linspace(-rho, rho, 61)).amax(dim=1)

    def draw(axes: Axes) -> None:
        for values, label in ((loss(weights), "loss"), (highest, f"highest loss within {rho}")):
            (line,) = axes.plot(weights, values, label=label)
            lowest = values.argmin()
            axes.plot(weights[lowest], values[lowest], "o", color=line.get_color())
        axes.set(xlabel="a weight", ylabel="loss")
        axes.legend()

    return chart(draw)


@picture("stochastic_depth")
def draw_stochastic_depth(data: FashionSubset) -> Image.Image:
    """Return which images of a step keep which branches, and the probability of dropping them."""
    num_images, probabilities = 32, rates(0.3, 16)
    branches = torch.ones(num_images, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        columns = [StochasticDepth(rate).train()(branches) for rate in probabilities]
    factors = torch.cat(columns, dim=1)

    def draw(left: Axes, right: Axes) -> None:
        left.imshow(factors.numpy(), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
        left.set(
            xlabel="residual branch, from input to output",
            ylabel="image of the step",
            title="white: dropped; darker: scaled up by more",
        )
        right.bar(range(len(probabilities)), probabilities)
        right.set(xlabel="residual branch", title="probability of dropping, up to 0.3")

    return chart(draw, columns=2, height=2.8)


@picture("trivial_augment")
def draw_trivial_augment(data: FashionSubset) -> Image.Image:
    """One image after each of the 14 operations, weak and strong."""
    images, rows = examples(data, 8, first=3)[[7]], {}
    names = auto_augment.OPERATIONS
    for half in (names[:7], names[7:]):
        for level in (10, 25):
            strengths = [
                auto_augment.magnitude("trivial", name, level, images.shape[-1]) for name in half
            ]
            chosen = auto_augment.Chosen(
                np.array([[names.index(name)] for name in half]), np.array(strengths)[:, None]
            )
            label = f"level {level}: " + ", ".join(half).replace("_", " ")
            rows[label] = auto_augment.apply(images.repeat(len(half), 1, 1, 1), chosen)
    return grid(rows, scale=3)


@picture("tta")
def draw_tta(data: FashionSubset) -> Image.Image:
    """Three images, and the views whose predictions tta=book averages."""
    images = examples(data, 10)[[0, 7, 9]]
    settings = Augment(**option_values("augment", "standard"))
    canvas = (images * 255).round().to(torch.uint8)
    extents = np.full((len(images), 2), images.shape[-1], np.int64)
    views = [
        augmented(
            Pixels(canvas, extents),
            augmentation.draw(settings, len(images), 0, "tta", number),
            images.shape[-1],
            settings,
            torch.device("cpu"),
        )
        for number in range(4)
    ]
    rows = {"the plain view": images}
    rows.update({f"view {number + 1}": view for number, view in enumerate(views)})
    return columns_of(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Draw the pictures that the command line names."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m scripts.trick_pictures",
        description="Draw the pictures of docs/tricks/.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(sorted(PICTURES)))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    arguments = parser.parse_args(words)
    if unknown := sorted(set(arguments.names) - set(PICTURES)):
        parser.error(f"no picture of {', '.join(unknown)}; there are {', '.join(sorted(PICTURES))}")
    data = load_fashion()
    for name in arguments.names or sorted(PICTURES):
        path = arguments.folder / f"{name}.png"
        path.write_bytes(content(name, data))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
