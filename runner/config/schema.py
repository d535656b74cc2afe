"""The configuration: every key with its type, range and meaning.

``RunConfig`` is what the rest of the package sees: plain frozen dataclasses, one per group of
``conf/``, filled and checked by :func:`runner.config.checks.from_dict`. The defaults here are
neutral: a group left alone changes nothing. Options that turn a trick on live in ``conf/``.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

XRESNETS = tuple(f"xresnet{depth}" for depth in (18, 34, 50, 101, 152))
OVERLAYS = ("trick", "recipe")
"""Groups of ``conf/`` whose options change other groups and that hold no keys of their own."""


def option(
    default: Any,
    help: str,  # noqa: A002  the word the command line uses
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with its one-line meaning and its allowed range (of each item, for a tuple)."""
    limits = {"≥": at_least, ">": above, "≤": at_most, "<": below}
    given = {sign: limit for sign, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"help": help, "limits": given})


@dataclass(frozen=True)
class Data:
    """Which images, how they are split, stored and batched."""

    name: Literal["fashion", "imagenette", "fashion_mnist", "cifar10", "folder", "table"] = option(
        "fashion", "data set"
    )
    root: str | None = option(None, "folder or archive with the data; null: embedded or downloaded")
    variant: Literal["full", "320", "160"] = option("160", "Imagenette: shorter side of its images")
    label_noise: Literal[0, 1, 5, 25, 50] = option(
        0, "Imagenette: percentage of wrong training labels, from its own noisy label file"
    )
    val_fraction: float = option(
        0.2, "part held out per class where the data brings no split", above=0, below=1
    )
    path_column: str = option("path", "table: column with image paths, relative to the table")
    label_column: str = option("label", "table: column with class names")
    split_column: str | None = option(None, "table: column that says train or val; null: drawn")
    default_size: int = option(28, "image size used where resize.size is null", at_least=1)
    presize: int | None = option(
        None,
        "short side of the stored images, px; null: twice the final size, at most the images' own",
        at_least=1,
    )
    max_aspect: float = option(
        2.0, "longest stored side / shortest; the ends beyond are cut off evenly", at_least=1
    )
    interpolation: Literal["bilinear", "bicubic"] | None = option(
        None, "of resizing; null: that of the weights with normalize=pretrained, else bilinear"
    )
    batch_size: int = option(64, "images per training step", at_least=1)
    cache_gb: float = option(16.0, "larger sets stream from their files instead", at_least=0)
    num_workers: int | None = option(
        None,
        "processes that read ahead; 0: this one reads; null: 0, or all cores for a streamed set",
        at_least=0,
    )
    on_corrupt: Literal["error", "skip"] = option("error", "what a broken image does")
    on_leak: Literal["warn", "error"] = option(
        "warn", "what an image that is in training and validation does"
    )


@dataclass(frozen=True)
class Normalize:
    """Per-channel statistics taken off the pixels: (x/255 - mean) / std."""

    source: Literal["fixed", "dataset", "pretrained"] = option(
        "fixed",
        "fixed: mean and std as given; dataset: measured on the training split; pretrained: those "
        "that the weights were trained with",
    )
    mean: tuple[float, ...] = option((0.0, 0.0, 0.0), "per channel, on pixels in 0..1")
    std: tuple[float, ...] = option((1.0, 1.0, 1.0), "per channel, on pixels in 0..1", above=0)
    allow_mismatch: bool = option(
        False, "take other statistics than the pretrained weights were trained with"
    )


@dataclass(frozen=True)
class Augment:
    """Random geometry and light of the training images, drawn per image."""

    crop_from: Literal["square", "rectangle"] = option(
        "square", "crops lie in a random presized square, or anywhere in the stored rectangle"
    )
    min_scale: float = option(1.0, "smallest crop, as a part of the area", above=0, at_most=1)
    max_ratio: float = option(1.0, "crop width / height lies in 1/max_ratio..max_ratio", at_least=1)
    crop_per: Literal["image", "batch"] = option(
        "image", "one crop per image, or fastai's per batch"
    )
    flip: float = option(0.0, "probability of a horizontal flip", at_least=0, at_most=1)
    max_rotate: float = option(0.0, "degrees to either side", at_least=0, at_most=180)
    max_zoom: float = option(1.0, "largest magnification", at_least=1)
    max_warp: float = option(0.0, "perspective: shift of the corners", at_least=0, below=1)
    affine_probability: float = option(
        0.75, "for each of rotate, zoom, warp", at_least=0, at_most=1
    )
    max_lighting: float = option(0.0, "brightness and contrast change", at_least=0, below=1)
    lighting_probability: float = option(
        0.75, "for each of brightness, contrast", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class Resize:
    """The image size over the course of training."""

    schedule: Literal["fixed", "progressive", "book"] = option(
        "fixed",
        "fixed; progressive: small to full size in one run; book: first_epochs at first_size, "
        "then fine_tune at the full size",
    )
    size: int | None = option(
        None, "final size, px; null: the usual one of the data", at_least=8, at_most=4096
    )
    initial_scale: float = option(0.5, "progressive: first size / final size", above=0, at_most=1)
    delay: float = option(
        0.5, "progressive: part of training held at the first size", at_least=0, at_most=1
    )
    finish: float = option(
        0.2, "progressive: last part of training at the full size", at_least=0, at_most=1
    )
    multiple: int = option(4, "progressive: sizes are multiples of this, px", at_least=1)
    match: Literal["epochs", "compute"] = option(
        "epochs",
        "progressive: same number of epochs as fixed, or as many as cost the same images × pixels",
    )
    first_size: int | None = option(
        None,
        "book: size of the first phase, px; null: 128/224 of the final one",
        at_least=8,
        at_most=4096,
    )
    first_epochs: int = option(4, "book: epochs of the first phase", at_least=1)
    first_batch_size: int = option(128, "book: images per step of the first phase", at_least=1)
    first_lr: float = option(3e-3, "book: learning rate of the first phase", above=0)


@dataclass(frozen=True)
class Mixup:
    """Mixing pairs of training images and their labels."""

    probability: float = option(
        0.0, "part of the batches (or images, with per: image) that is mixed", at_least=0, at_most=1
    )
    distribution: Literal["beta", "uniform"] = option(
        "beta", "λ ~ Beta(alpha, alpha), or λ ~ U(0.5, 1)"
    )
    alpha: float = option(0.4, "of the Beta distribution; 0 mixes nothing", at_least=0)
    fold: bool = option(True, "λ becomes max(λ, 1-λ)")
    per: Literal["image", "batch"] = option("image", "one λ per image, or per batch")
    cutmix: float = option(
        0.0, "part of the mixing done by pasting a box instead of blending", at_least=0, at_most=1
    )
    cutmix_alpha: float = option(1.0, "Beta of the box's area, never folded", at_least=0)
    until: float = option(1.0, "part of training after which mixing stops", at_least=0, at_most=1)


@dataclass(frozen=True)
class Smoothing:
    """Label smoothing of the training targets."""

    epsilon: float = option(0.0, "mass spread evenly over all classes", at_least=0, at_most=1)


@dataclass(frozen=True)
class Model:
    """The network."""

    source: Literal["xresnet", "torchvision", "timm"] = option("xresnet", "where name is looked up")
    name: str = option("xresnet18", "architecture, as its source spells it")
    pretrained: bool = option(False, "start from the library's default weights: weights=DEFAULT")
    weights: str | None = option(
        None,
        "where training starts: a file (.safetensors, .pth), a run or a bundle, or DEFAULT or "
        "another name of torchvision's or timm's weights; null: from scratch",
    )
    num_outputs: int | None = option(
        None, "outputs of the head; null: the number of classes", at_least=1
    )
    dropout: float = option(0.0, "before the head", at_least=0, below=1)


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule."""

    name: Literal["adamw", "sgd"] = option("adamw", "optimizer")
    lr: float = option(3e-3, "peak learning rate", above=0)
    weight_decay: float = option(0.01, "decoupled (adamw) or L2 (sgd)", at_least=0)
    beta2: float = option(0.99, "adamw: decay of the squared gradient", at_least=0, below=1)
    eps: float = option(1e-5, "adamw: added to the denominator", above=0)
    nesterov: bool = option(False, "sgd: Nesterov momentum")
    schedule: Literal["one_cycle", "flat_cosine", "constant", "fine_tune"] = option(
        "one_cycle", "learning rate over training"
    )
    warmup: float = option(0.25, "one_cycle: part of training spent rising", at_least=0, below=1)
    decay_from: float = option(
        0.75, "flat_cosine: part of training after which it falls", at_least=0, below=1
    )
    div: float = option(25.0, "one_cycle: starts at lr / div", at_least=1)
    div_final: float = option(1e5, "ends at lr / div_final", at_least=1)
    momentum: float = option(0.95, "at the ends of one_cycle; β1 of adamw", at_least=0, below=1)
    momentum_low: float = option(0.85, "at the peak of one_cycle", at_least=0, below=1)
    frozen: bool = option(
        False, "with 3 layer groups: only the head and the BatchNorms train, all the time"
    )
    freeze_epochs: int = option(1, "fine_tune: epochs with all but the head frozen", at_least=0)
    lr_spread: float = option(
        100.0, "with 3 layer groups: the first trains at lr / lr_spread", at_least=1
    )
    layer_groups: Literal[1, 3] = option(
        1, "groups for freezing and spread learning rates: 1, or early body | late body | head"
    )


@dataclass(frozen=True)
class Tta:
    """Test time augmentation: which views of an image are averaged."""

    flip: bool = option(False, "each view also mirrored")
    crops: int = option(1, "squares along the long side of the image", at_least=1, at_most=64)
    corners: bool = option(False, "also the four corners at corner_scale: 5-crop")
    corner_scale: float = option(0.875, "side of a corner crop / short side", above=0, at_most=1)
    scales: tuple[float, ...] = option(
        (1.0,), "sizes, as multiples of eval.size", above=0, at_most=4
    )
    passes: int = option(0, "views with the training augmentation", at_least=0, at_most=1000)
    beta: float | None = option(
        None, "weight of the plain view against the augmented mean", at_least=0, at_most=1
    )
    reduce: Literal["mean", "max", "logit_mean", "geometric"] = option("mean", "how views combine")


@dataclass(frozen=True)
class Budget:
    """How long training lasts."""

    epochs: int = option(5, "passes over the training split", at_least=1, at_most=100_000)


@dataclass(frozen=True)
class Eval:
    """How the validation split is evaluated."""

    size: int | None = option(
        None, "evaluation size, px; null: the final training size", at_least=8, at_most=4096
    )
    crop: float | None = option(
        None,
        "side of the centre square / short side; null: that of the weights with "
        "normalize=pretrained, else 1",
        above=0,
        at_most=1,
    )
    batch_size: int | None = option(
        None, "images per forward pass; null: 256, on a CPU fewer above 64 px", at_least=1
    )
    every: int = option(
        1, "epochs from one evaluation to the next; always after the last", at_least=1
    )


@dataclass(frozen=True)
class Checkpoint:
    """When the state of a run is saved, besides at the end of each epoch."""

    minutes: float = option(5.0, "between two savings", at_least=0)


@dataclass(frozen=True)
class RunConfig:
    """One run, complete: equal values and equal data give an equal result."""

    data: Data = field(default_factory=Data)
    normalize: Normalize = field(default_factory=Normalize)
    augment: Augment = field(default_factory=Augment)
    resize: Resize = field(default_factory=Resize)
    mixup: Mixup = field(default_factory=Mixup)
    smoothing: Smoothing = field(default_factory=Smoothing)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    tta: Tta = field(default_factory=Tta)
    budget: Budget = field(default_factory=Budget)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    seed: int = option(0, "of every random draw", at_least=0, below=2**63)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 …")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "auto: bf16 where hardware has it")
    compile: Literal["none", "default", "reduce-overhead"] = option(
        "none", "mode of torch.compile for the network; reduce-overhead: CUDA graphs"
    )
    threads: int = option(0, "CPU threads; 0: all cores", at_least=0)
    outputs: str = option("outputs", "root of everything written")
    run_dir: str | None = option(
        None, "folder of this run; null: below outputs, named by what the run is"
    )
    force: bool = option(False, "run anew although a result exists")

    @property
    def size(self) -> int:
        """Final training size, px."""
        return self.resize.size or self.data.default_size

    @property
    def eval_size(self) -> int:
        """Evaluation size, px."""
        return self.eval.size or self.size

    @property
    def eval_crop(self) -> float:
        """Side of the evaluated square, as a part of the short side."""
        return self.eval.crop or 1.0

    @property
    def interpolation(self) -> Literal["bilinear", "bicubic"]:
        """Of all resizing of stored and evaluated images."""
        return self.data.interpolation or "bilinear"

    @property
    def largest_size(self) -> int:
        """Largest size that is trained or evaluated at, px."""
        return max(self.size, self.eval_size)

    @property
    def names_weights(self) -> bool:
        """Whether something here speaks of pretrained weights."""
        return (
            self.model.weights is not None
            or self.model.pretrained
            or self.normalize.source == "pretrained"
        )

    @property
    def tricks(self) -> list[str]:
        """The tricks that are on, by the values of the config and not by how it was spelled."""
        names = {
            "normalize": chooses_statistics(self),
            "progressive_resizing": self.resize.schedule != "fixed",
            "mixup": mixes_images(self.mixup),
            "cutmix": pastes_boxes(self.mixup),
            "label_smoothing": self.smoothing.epsilon > 0,
            "tta": has_views(self.tta),
        }
        return [name for name, is_on in names.items() if is_on]


def chooses_statistics(config: RunConfig) -> bool:
    """Whether pixels are normalized; with pretrained weights, otherwise than those are used to."""
    chosen, none = config.normalize, Normalize()
    if chosen.source == "pretrained":
        return False
    is_none = (chosen.source, chosen.mean, chosen.std) == (none.source, none.mean, none.std)
    return config.model.weights is not None or not is_none


def mixes_images(mixup: Mixup) -> bool:
    """Whether some images are blended."""
    blends = mixup.distribution == "uniform" or mixup.alpha > 0
    return mixup.probability > 0 and mixup.until > 0 and mixup.cutmix < 1 and blends


def pastes_boxes(mixup: Mixup) -> bool:
    """Whether some images get a box of another pasted in."""
    is_on = mixup.probability > 0 and mixup.until > 0
    return is_on and mixup.cutmix > 0 and mixup.cutmix_alpha > 0


def has_views(tta: Tta) -> bool:
    """Whether anything but the plain view of an image is looked at."""
    return tta.passes > 0 or shows_more(tta)


def shows_more(tta: Tta) -> bool:
    """Whether the deterministic views are others than the plain one alone."""
    return tta.crops > 1 or tta.corners or tta.flip or tta.scales != (1.0,)


def default_dict() -> dict[str, Any]:
    """The defaults of every key as nested plain containers: what ``conf/`` is merged onto."""
    plain: dict[str, Any] = _plain(asdict(RunConfig()))
    return plain


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The values of ``config`` as nested plain containers, ready for JSON and YAML."""
    plain: dict[str, Any] = _plain(asdict(config))
    return plain


def resolved(
    config: RunConfig,
    *,
    num_classes: int,
    presize: int,
    device: str,
    precision: Literal["fp32", "bf16"],
) -> RunConfig:
    """``config`` with every null and ``auto`` that decides a result replaced by what it means."""
    return replace(
        config,
        data=replace(config.data, presize=presize, interpolation=config.interpolation),
        resize=replace(config.resize, size=config.size),
        eval=replace(config.eval, size=config.eval_size, crop=config.eval_crop),
        model=replace(config.model, num_outputs=config.model.num_outputs or num_classes),
        device=device,
        precision=precision,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
