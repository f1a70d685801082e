"""Layers of a model exchanged for those of convx, and back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from . import modules

__all__ = ["Conversion", "convert", "revert"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: modules.Conv2d,
    nn.ConvTranspose2d: modules.ConvTranspose2d,
    nn.ReLU: modules.ReLU,
    nn.ReLU6: modules.ReLU6,
    nn.MaxPool2d: modules.MaxPool2d,
}
_ORIGINALS = {ours: theirs for theirs, ours in _SWAPS.items()} | {modules.Sequential: nn.Sequential}


@dataclass
class Conversion:
    """What `convert` did: the attribute ``conversion`` of its result.

    Attributes
    ----------
    swapped : dict of str to str
        Names of the layers that convx computes now, and their kind.
    fused : dict of str to str
        Names of the first layers of the runs that are computed as one operation, and what they consist of.
    separate : dict of str to str
        Runs of a convolution, ReLU and pooling that are not, and why.
    skipped : dict of str to str
        Layers of these kinds that PyTorch still computes, and why.
    others : dict of str to int
        How many layers there are of each kind that convx does not have.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    separate: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        swapped, others = (
            ", ".join(f"{count} {kind}" for kind, count in counts.items())
            for counts in (Counter(self.swapped.values()), self.others)
        )
        lines = [f"swapped: {swapped or 'nothing'}"]
        for title, entries in (("fused", self.fused), ("not fused", self.separate), ("skipped", self.skipped)):
            lines += [f"{title}: {name}: {text}" for name, text in entries.items()]
        if others:
            lines.append(f"left to PyTorch: {others}")
        return "\n".join(lines)


def convert(model: ModuleT, fuse: bool = True, *, verbose: bool = True) -> ModuleT:
    """Return a copy of `model` whose convolutions, ReLUs and max-poolings are computed by convx.

    The copy shares the Parameters and buffers of `model`: state_dict, an optimizer made before, and checkpoints go on
    as they are, and training either trains both. Layers are swapped by their exact type: Conv2d, ConvTranspose2d, ReLU,
    ReLU6 and MaxPool2d of torch.nn. What is left alone is reported with the reason: subclasses, layers with hooks,
    parametrizations or a replaced ``forward``, quantized and lazy ones, and dtypes and devices that convx has no
    kernels for; and modules made by torch.jit, which are not copied either.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, not yet wrapped (`DistributedDataParallel`, `torch.compile`): convert first, then wrap.
    fuse : bool, default True
        Whether Conv2d-ReLU and Conv2d-ReLU-MaxPool2d runs in `torch.nn.Sequential` are computed as one operation each,
        which keeps one byte per pooled element for the backward pass. Only `torch.nn.Sequential` itself says in which
        order its layers run; for runs written out in a ``forward`` there is `convx.torch.conv2d_relu_max_pool2d`.
    verbose : bool, default True
        Whether to print what was swapped, fused and skipped, and why. It is also the attribute ``conversion``, where
        `model` has none of its own.

    Returns
    -------
    torch.nn.Module
        The copy, of the same type; made by `copy.deepcopy`, with the tensors shared.

    Raises
    ------
    TypeError
        Where `model` is no module, is wrapped already, was made by torch.jit, or cannot be copied.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    >>> converted = convx.torch.convert(model)
    swapped: 1 Conv2d, 1 ReLU, 1 MaxPool2d
    fused: 0: Conv2d-ReLU-MaxPool2d
    left to PyTorch: 1 Flatten, 1 Linear
    >>> images = torch.ones(2, 1, 8, 8)
    >>> torch.allclose(converted(images), model(images), atol=1e-6)
    True
    >>> converted[0].weight is model[0].weight
    True
    """
    _check("convert", model)
    converted, report = _copied("convert", model), Conversion()
    others: Counter[str] = Counter()
    named = list(converted.named_modules())
    for name, module in named:
        if reason := _reason_to_skip(module):
            report.skipped[name] = f"{type(module).__name__}: {reason}"
        elif type(module) in _SWAPS:
            report.swapped[name] = type(module).__name__
            module.__class__ = _SWAPS[type(module)]
        elif type(module) not in _ORIGINALS and not any(module.children()):
            others[type(module).__name__] += 1
    report.others = dict(others)
    if fuse:
        for name, module in named:
            if type(module) is nn.Sequential:
                _fuse(name, module, report)
    if isinstance(getattr(converted, "conversion", report), Conversion):
        converted.conversion = report  # type: ignore[assignment]
    if verbose:
        print(report)
    return converted


def revert(model: ModuleT) -> ModuleT:
    """Return a copy of `model` whose layers are PyTorch's again: the reverse of `convert`.

    Parameters
    ----------
    model : torch.nn.Module
        A result of `convert`, trained or not; others come back as they are. The copy shares its Parameters and buffers.

    Returns
    -------
    torch.nn.Module
        The copy, of the same type, with the same state_dict in every bit.

    Raises
    ------
    TypeError
        As `convert` does.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> converted = convx.torch.convert(torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3)), verbose=False)
    >>> type(convx.torch.revert(converted)[0])
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    _check("revert", model)
    reverted = _copied("revert", model)
    for module in reverted.modules():
        kind = type(module)
        if kind in _ORIGINALS:
            module.__class__ = _ORIGINALS[kind]
        elif kind.__base__ in _ORIGINALS and is_parametrized(module):
            # PyTorch makes a class of its own for each layer that is given a parametrization.
            module.__class__ = type(kind.__name__, (_ORIGINALS[kind.__base__],), dict(vars(kind)))
    if isinstance(vars(reverted).get("conversion"), Conversion):
        del reverted.conversion
    return reverted


def _check(op: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model is a {type(model).__qualname__}, expected a torch.nn.Module")
    if isinstance(model, ScriptModule):
        raise TypeError(f"{op}: model was made by torch.jit: {op} the model that it was made from")
    for module in model.modules():
        # What torch.compile returns is of no public class; the attribute has been its mark since PyTorch 2.0.
        if isinstance(module, (nn.DataParallel, DistributedDataParallel)) or hasattr(module, "_orig_mod"):
            raise TypeError(
                f"{op}: model is wrapped in {type(module).__qualname__}: {op} the model first, then wrap it"
            )


def _copied(op: str, model: ModuleT) -> ModuleT:
    """Copy the modules and whatever else they hold, but no tensors of theirs.

    Modules made by torch.jit hold theirs where they cannot be shared: they are shared as a whole.
    """
    memo: dict[int, object] = {id(tensor): tensor for module in model.modules() for tensor in _tensors(module)}
    memo |= {id(module): module for module in model.modules() if isinstance(module, ScriptModule)}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{op}: model cannot be copied, expected one that copy.deepcopy can copy: {error}") from error


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for held in (module._parameters, module._buffers, vars(module)):
        yield from (value for value in held.values() if isinstance(value, Tensor))


def _reason_to_skip(module: nn.Module) -> str | None:
    """Return why a layer of one of the kinds that convx has is left to PyTorch; None where it is not, or is no such."""
    kind = type(module)
    if kind in _ORIGINALS:
        return None
    if isinstance(module, ScriptModule):
        return "made by torch.jit"
    if kind not in _SWAPS:
        if "quantized" in kind.__module__.split(".") and kind.__name__ in {each.__name__ for each in _SWAPS}:
            return "quantized"
        return _kind_of_subclass(module) if isinstance(module, tuple(_SWAPS)) else None
    if modules.has_hooks(module):
        return "it has hooks"
    if modules.has_own_forward(module):
        return "its forward was replaced"
    for name, tensor in module.named_parameters(recurse=False):
        if type(tensor) is not nn.Parameter:
            return f"its {name} is a {type(tensor).__qualname__}"
        if reason := modules.unsupported(tensor):
            return f"its {name} is {reason}"
    return None


def _kind_of_subclass(module: nn.Module) -> str:
    if isinstance(module, LazyModuleMixin):
        return "lazy: its sizes are known after a first batch"
    if is_parametrized(module):
        return "parametrized"
    return f"a subclass, {type(module).__module__}.{type(module).__qualname__}"


def _fuse(name: str, module: nn.Sequential, report: Conversion) -> None:
    """Exchange an nn.Sequential that has a run for the kind that computes it as one operation."""
    layers, names = list(module), [f"{name}.{child}".lstrip(".") for child in module._modules]
    start = 0
    while start < len(layers):
        length = 1
        for run in modules.runs(layers, start):
            text = "-".join(type(layer).__name__ for layer in run)
            reason = modules.obstacle(run)
            if reason is None:
                report.fused[names[start]], length = text, len(run)
                break
            report.separate[names[start]] = f"{text}: {reason}"
        start += length
    if report.fused.keys() & set(names):
        module.__class__ = modules.Sequential
