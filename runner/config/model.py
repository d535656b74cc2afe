"""The network, and where its weights come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runner.config.group import Group, Problem, option
from runner.config.words import nearest

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


XRESNETS = tuple(f"xresnet{depth}" for depth in (18, 34, 50, 101, 152))


@dataclass(frozen=True)
class Model(Group):
    """The network."""

    source: Literal["xresnet", "torchvision", "timm"] = option(
        "xresnet", "library in which model.name is looked up"
    )
    name: str = option("xresnet18", "architecture, as model.source spells it")
    pretrained: bool = option(
        False, "start from the library's default weights, as model.weights=DEFAULT does"
    )
    weights: str | None = option(
        None,
        "weights that training starts from: a file (.safetensors, .pth), a run or a bundle, "
        "or DEFAULT or another name of torchvision's or timm's weights; null: random "
        "weights",
    )
    num_outputs: int | None = option(
        None, "number of outputs of the head; null: the number of classes", at_least=1
    )
    dropout: float = option(0.0, "probability of dropout before the head", at_least=0, below=1)

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.source == "xresnet" and self.name not in XRESNETS:
            guess = nearest(self.name, XRESNETS) or XRESNETS[0]
            yield Problem(
                f"model.name={self.name}: xresnet has {', '.join(XRESNETS)}",
                f"model={guess}, or model=torchvision model.name={self.name}",
            )
        if self.pretrained and self.weights is not None:
            yield Problem(
                f"model.pretrained=true means the default weights, not {self.weights}",
                f"model.weights={self.weights}, or model.pretrained=true, not both",
            )
