"""The user's own idea: functions in a Python file, each of which acts at one place.

``code=my_idea.py`` names the file. Its functions have the names, the parameters and the meaning of
the methods of :class:`Idea`; a function that the file lacks changes nothing. Shapes: M
images of a step with the partners that mixup needs, of which the first N are trained on (M = N in
a single process); K outputs; S pixels.

``generator`` is a :class:`torch.Generator` on the device of the tensors. It is a function of the
seed, the name of the function, the epoch and the step, so that runs with and without the idea stay
paired, and a run that was killed resumes as if it had not been. Its draws differ
between processes that share a run. ``progress`` is the part of the training that is done, from 0 to
1. A function must keep its state between steps in a buffer of the network, because
checkpoints hold only the network and the optimizer.

A file runs only because the user named it on the command line. Files that are read (a run, a
bundle, a checkpoint) never provide code that runs.
"""

import linecache
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.idea import MODULE, SEAMS, IdeaFile, blamed
from runner.errors import CodeError, ConfigError

Keyed = Callable[[str], torch.Generator]
"""A function that returns a fresh generator for a purpose."""

_ROW_SUM = 1e-3  # largest deviation from 1 of the sum of a row of probabilities


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


@dataclass(frozen=True)
class Idea:
    """The functions of an idea file; without any, each method is an exact identity.

    Attributes:
        file: the file of the functions; None if there is no idea.
        functions: the functions by name.
    """

    file: IdeaFile | None = None
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def images(self, images: Tensor, keyed: Keyed, progress: float) -> Tensor:
        """Change the images of a step: (M, 3, S, S) float32 in 0..1 → the same shape.

        Raises:
            CodeError: the function returns something else or, on a CPU, values that are not finite.
        """
        if "images" not in self.functions:
            return images
        found = self.functions["images"](images, keyed("images"), progress)
        return self._like(images, found, "images")

    def targets(self, targets: Tensor, keyed: Keyed, progress: float) -> Tensor:
        """Change the targets of a step: (N, K) float32 → the same shape.

        Raises:
            CodeError: as for :meth:`images`.
        """
        if "targets" not in self.functions:
            return targets
        found = self.functions["targets"](targets, keyed("targets"), progress)
        return self._like(targets, found, "targets")

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        ours: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> Tensor:
        """Return the training loss, a scalar: the mean over the images.

        Args:
            logits: (N, K) float32.
            targets: (N, K) float32.
            ours: our loss as a function of logits and targets, used if the file has none.

        Raises:
            CodeError: the function returns no loss or, on a CPU, one that is not finite for
                finite logits.
        """
        if "loss" not in self.functions:
            return ours(logits, targets)
        found = self.functions["loss"](logits, targets)
        if not isinstance(found, Tensor) or found.shape not in ((), (len(logits),)):
            raise self._wrong("loss", found, f"a tensor () or ({len(logits)},)")
        if found.device != logits.device or not found.is_floating_point():
            raise self._wrong("loss", found, f"floating point on {logits.device}")
        if logits.requires_grad and not found.requires_grad:
            raise self._wrong("loss", found, "a function of the logits, which has a gradient")
        if not _is_finite_on_cpu(found) and _is_finite_on_cpu(logits):
            raise self._wrong("loss", found, "finite numbers", "values that are not finite")
        return found.float().mean()

    def model(self, model: nn.Module) -> nn.Module:
        """Change the network: from normalized images (N, 3, H, W) to logits (N, K).

        Layers that the function makes draw their weights from the run's seed.

        Raises:
            CodeError: the function does not return a network.
        """
        if "model" not in self.functions:
            return model
        found = self.functions["model"](model)
        if not isinstance(found, nn.Module):
            raise self._wrong("model", found, "a torch.nn.Module")
        return found

    def logits(self, images: Tensor, outputs: Tensor, num_outputs: int) -> Tensor:
        """Return the ``outputs`` for ``images`` of a network that :meth:`model` may have changed.

        Raises:
            CodeError: the outputs are not logits (N, K).
        """
        if "model" in self.functions and not torch.compiler.is_exporting():
            wanted = (len(images), num_outputs)
            if not isinstance(outputs, Tensor) or outputs.shape != wanted:
                raise self._wrong(
                    "model", outputs, f"logits {wanted}", f"a network that returns {_kind(outputs)}"
                )
        return outputs

    def optimizer(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer | None:
        """Return the optimizer, with fresh state; None to use the one that ``optim`` configures.

        The schedule sets the rate of each group before each step: the rate of the moment times the
        group's ``lr_factor``; and ``betas[0]``, or a ``momentum`` that is not 0. On a GPU, only a
        fused optimizer of torch's leaves the weights as they are after a loss that is not finite;
        the run ends in any case.

        Args:
            groups: the parameters, with ``weight_decay`` and ``lr_factor`` of each group.
            lr: the highest learning rate of the schedule.

        Raises:
            CodeError: the function returns no optimizer, or one for other parameters.
        """
        if "optimizer" not in self.functions:
            return None
        wanted = {id(each) for group in groups for each in group["params"]}
        found = self.functions["optimizer"](groups, lr)
        if not isinstance(found, torch.optim.Optimizer):
            raise self._wrong("optimizer", found, "a torch.optim.Optimizer")
        if {id(each) for group in found.param_groups for each in group["params"]} != wanted:
            raise self._wrong("optimizer", found, "an optimizer of all parameters", "one of others")
        if not all("lr_factor" in group and "lr" in group for group in found.param_groups):
            raise self._wrong(
                "optimizer", found, "an optimizer of these groups", "groups without lr_factor"
            )
        return found

    def after_step(self, model: nn.Module, progress: float) -> None:
        """Change the network in place after an update, without gradients.

        Raises:
            CodeError: the function returns something.
        """
        if "after_step" not in self.functions:
            return
        with torch.no_grad():
            found = self.functions["after_step"](model, progress)
        if found is not None:
            raise self._wrong("after_step", found, "nothing; it changes the model in place")

    def predictions(self, logits: Tensor, ours: Callable[[Tensor], Tensor] = _softmax) -> Tensor:
        """Convert logits (N, K) float32 to probabilities (N, K) float32, whose rows sum to 1.

        Args:
            logits: the logits.
            ours: our function for probabilities, used if the file has none.

        Raises:
            CodeError: the function returns no probabilities for finite logits.
        """
        if "predictions" not in self.functions:
            return ours(logits)
        found: Any = self.functions["predictions"](logits)
        if torch.compiler.is_exporting():  # what is exported is compared with this afterwards
            return torch.as_tensor(found)
        if _kind(found) != _kind(logits):
            raise self._wrong("predictions", found, _kind(logits))
        is_one = bool((found >= 0).all() and ((found.sum(dim=1) - 1).abs() < _ROW_SUM).all())
        if not is_one and bool(logits.isfinite().all()):
            raise self._wrong(
                "predictions", found, "probabilities", "rows that are negative or do not sum to 1"
            )
        return torch.as_tensor(found)

    def _like(self, given: Tensor, found: Any, name: str) -> Tensor:
        """Return ``found`` if it is a tensor like ``given``."""
        if _kind(found) != _kind(given):
            raise self._wrong(name, found, _kind(given))
        if not _is_finite_on_cpu(found):
            raise self._wrong(name, found, "finite numbers", "some that are not finite")
        return torch.as_tensor(found)

    def _wrong(self, name: str, found: Any, wanted: str, returned: str = "") -> CodeError:
        assert self.file is not None
        return CodeError(
            f"{name} must return {wanted}, and returned {returned or _kind(found)}",
            where=self.file.place(name),
            fix=f"the function returns {SEAMS[name].returns}",
        )


NO_IDEA = Idea()
"""The idea that changes nothing."""


def load_idea(file: IdeaFile) -> Idea:
    """Run the file, and return its functions.

    Raises:
        ConfigError: the file raises an exception, or its functions are not those that the
            configuration lists for it.
    """
    name, path = f"{MODULE}{file.sha256}", str(file.path.absolute())
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # where dataclasses and pickle look for it
    text = file.content.decode(errors="replace")  # the content as recorded
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    try:
        # The one place where a file's code runs: the user has named it on the command line.
        exec(compile(file.content, path, "exec", dont_inherit=True), vars(module))  # noqa: S102
    except (Exception, SystemExit) as error:
        told = blamed(error)
        raise ConfigError(
            f"the file cannot be run: {type(error).__name__}: {error}",
            where=told.where if told else file.name,
            fix="correct the file; RUNNER_DEBUG=1 shows the whole traceback",
        ) from error
    functions = {seam: vars(module)[seam] for seam in SEAMS if seam in vars(module)}
    for seam, function in functions.items():
        if seam not in file.lines or not callable(function):
            raise ConfigError(
                f"{seam} is not a function that the file itself defines at its top",
                where=file.name,
                fix=SEAMS[seam].definition(seam),
            )
    return Idea(file, functions)


def _is_finite_on_cpu(tensor: Tensor) -> bool:
    """Return whether all is finite; True on a GPU, because a step must not synchronize."""
    return tensor.device.type != "cpu" or bool(tensor.isfinite().all())


def _kind(value: Any) -> str:
    """Describe a value: the shape, type and device of a tensor."""
    if not isinstance(value, Tensor):
        return "nothing" if value is None else f"{type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
