"""Layers of a model exchanged for those of convx, and back."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from . import _layers, _models, modules
from ._models import ModuleT

try:
    from torch.ao.quantization import fuser_method_mappings
except ImportError:  # PyTorch means to leave this to a package of its own
    _FUSER_METHODS: dict[Any, Any] = {}
else:
    _FUSER_METHODS = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})

__all__ = ["Conversion", "convert", "revert"]

SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: modules.Conv2d,
    nn.ConvTranspose2d: modules.ConvTranspose2d,
    nn.ReLU: modules.ReLU,
    nn.ReLU6: modules.ReLU6,
    nn.MaxPool2d: modules.MaxPool2d,
}
_ORIGINALS = {ours: theirs for theirs, ours in SWAPS.items()} | {modules.Sequential: nn.Sequential}


@dataclass
class Conversion:
    """What `convert` did: the attribute ``conversion`` of its result.

    Attributes
    ----------
    inplace : bool
        Whether the layers of the model itself were exchanged; otherwise those of a copy.
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
    algorithm : dict of str to str
        Names of the convolutions that were given an algorithm, or could not be, and which or why.
    copied : list of str
        Names of the modules that are copies; everything else is what the model holds.
    references : list of str
        Where the copy refers to a module of the model in whose place it has one of its own.
    """

    inplace: bool = True
    swapped: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    separate: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    algorithm: dict[str, str] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        swapped, others = (
            ", ".join(f"{count} {kind}" for kind, count in counts.items())
            for counts in (Counter(self.swapped.values()), self.others)
        )
        lines = [*_where("converted", self.inplace, self.copied, self.references), f"swapped: {swapped or 'nothing'}"]
        entries = (("fused", self.fused), ("not fused", self.separate), ("skipped", self.skipped))
        for title, texts in entries:
            lines += [f"{title}: {name}: {text}" for name, text in texts.items()]
        lines += [f"algorithm: {text}: {count}" for text, count in Counter(self.algorithm.values()).items()]
        if others:
            lines.append(f"left to PyTorch: {others}")
        return "\n".join(lines)


def _where(done: str, inplace: bool, copied: list[str], references: list[str]) -> list[str]:
    if inplace:
        return [f"{done} in place"]
    kept = [f"refers to the original: {where}" for where in references]
    return [f"{done} a copy: {len(copied)} modules are new, their tensors and all else are shared", *kept]


def convert(
    model: ModuleT, fuse: bool = True, *, inplace: bool = True, algorithm: str = "auto", verbose: bool = True
) -> ModuleT:
    """Let convx compute the convolutions, ReLUs and max-poolings of a model.

    The layers become subclasses of their own types, with the same Parameters, options and state: state_dict, an
    optimizer made before, checkpoints, hooks and whatever else refers to the model or to a layer go on as they are.
    Layers are swapped by their exact type: Conv2d, ConvTranspose2d, ReLU, ReLU6 and MaxPool2d of torch.nn. What is left
    alone is reported with the reason: subclasses, layers with hooks, parametrizations or a replaced ``forward``,
    quantized and lazy ones, modules made by torch.jit, dtypes and devices that convx has no kernels for; and modules
    that are not registered, as in a plain list.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, not yet wrapped (`DistributedDataParallel`, `torch.compile`): convert first, then wrap.
    fuse : bool, default True
        Whether Conv2d-ReLU and Conv2d-ReLU-MaxPool2d runs in `torch.nn.Sequential` are computed as one operation each,
        which keeps one byte per pooled element for the backward pass. Only `torch.nn.Sequential` itself says in which
        order its layers run; for runs written out in a ``forward`` there is `convx.torch.conv2d_relu_max_pool2d`.
    inplace : bool, default True
        Whether to exchange the layers of `model` itself. Otherwise `model` stays as it is, and the result is a copy of
        it and of the modules that hold layers of convx; it shares all tensors, all other modules and whatever else
        they hold, so training either trains both. What refers to the model from inside, a hook or a function that it
        holds, still refers to `model`, and not to the copy: such places are reported.
    algorithm : str, default "auto"
        What the convolutions are given, as of `convx.conv2d`: ``"winograd"`` those that it can compute. Layers of
        convx that are there already keep what they have where it is ``"auto"``. The fused operation with pooling
        has ``"auto"`` alone: other convolutions are not fused with it.
    verbose : bool, default True
        Whether to print what was swapped, fused and skipped, and why. It is also the attribute ``conversion``, where
        `model` has none of its own.

    Returns
    -------
    torch.nn.Module
        `model`, or the copy, of the same type.

    Raises
    ------
    TypeError
        Where `model` is no module, is wrapped already, or was made by torch.jit.
    ShapeError
        Where `algorithm` is another word.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    >>> images = torch.ones(2, 1, 8, 8)
    >>> before = model(images)
    >>> model = convx.torch.convert(model)
    converted in place
    swapped: 1 Conv2d, 1 ReLU, 1 MaxPool2d
    fused: 0: Conv2d-ReLU-MaxPool2d
    left to PyTorch: 1 Flatten, 1 Linear
    >>> torch.allclose(model(images), before, atol=1e-6)
    True
    """
    _check("convert", model)
    word = _layers.check_algorithm("convert", algorithm)
    report = Conversion(inplace)
    report.skipped = _reasons_to_skip(model)
    out_of_reach = _unregistered(model, "swapped", SWAPS)
    if not inplace:
        holders = [each for name, each in model.named_modules() if name not in report.skipped and _concerns(each)]
        model, report.copied, report.references = _models.copy_modules(model, holders)
    others: Counter[str] = Counter()
    named = list(model.named_modules())
    for name, module in named:
        if name in report.skipped:
            continue
        if type(module) in SWAPS:
            report.swapped[name] = type(module).__name__
            module.__class__ = SWAPS[type(module)]
        elif type(module) not in _ORIGINALS and not any(module.children()):
            others[type(module).__name__] += 1
        if word != "auto" and isinstance(module, (modules.Conv2d, modules.ConvTranspose2d)):
            report.algorithm[name] = _give_algorithm(module, word)
    report.others = dict(others)
    report.skipped |= out_of_reach
    if fuse:
        for name, module in named:
            if type(module) is nn.Sequential and not modules.has_own_forward(module):
                _fuse(name, module, report)
    if _may_keep_report(model):
        vars(model)["conversion"] = report
    if verbose:
        print(report)
    return model


def revert(model: ModuleT, *, inplace: bool = True, verbose: bool = True) -> ModuleT:
    """Let PyTorch compute all layers of a model again: the reverse of `convert`.

    Parameters
    ----------
    model : torch.nn.Module
        A result of `convert`, trained or not; others stay as they are.
    inplace : bool, default True
        As of `convert`.
    verbose : bool, default True
        Whether to print how many layers were swapped back, and which not: those whose ``forward`` was replaced since,
        which may call that of convx, and those that are not registered.

    Returns
    -------
    torch.nn.Module
        `model`, or the copy, of the same type, with the same state_dict in every bit.

    Raises
    ------
    TypeError
        As `convert` does.

    Examples
    --------
    >>> import torch
    >>> import convx.torch
    >>> model = convx.torch.convert(torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3)), verbose=False)
    >>> type(convx.torch.revert(model)[0])
    reverted in place
    swapped back: 1 Conv2d
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    _check("revert", model)
    skipped = _unregistered(model, "swapped back", _ORIGINALS)
    copied, references = list[str](), list[str]()
    if not inplace:
        model, copied, references = _models.copy_modules(model, list(filter(_concerns, model.modules())))
    swapped: Counter[str] = Counter()
    for name, module in model.named_modules():
        kind = type(module)
        if kind in _ORIGINALS and "forward" in vars(module):  # it may call that of convx
            skipped[name] = f"{kind.__name__}: its forward was replaced"
            continue
        if kind in _ORIGINALS:
            module.__class__ = _ORIGINALS[kind]
        elif kind.__base__ in _ORIGINALS and is_parametrized(module):
            module.__class__ = _models.class_of_its_own(module, _ORIGINALS[kind.__base__])
        else:
            continue
        swapped[kind.__name__] += 1
        vars(module).pop("algorithm", None)
    if isinstance(vars(model).get("conversion"), Conversion):
        del vars(model)["conversion"]
    if verbose:
        names = ", ".join(f"{count} {kind}" for kind, count in swapped.items())
        lines = [*_where("reverted", inplace, copied, references), f"swapped back: {names or 'nothing'}"]
        print("\n".join([*lines, *(f"skipped: {name}: {text}" for name, text in skipped.items())]))
    return model


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


def _concerns(module: nn.Module) -> bool:
    """Tell whether a module is a layer of convx, or one that is exchanged for such unless there is a reason not to."""
    kind = type(module)
    return kind in SWAPS or kind in _ORIGINALS or (kind.__base__ in _ORIGINALS and is_parametrized(module))


def _give_algorithm(layer: modules.Conv2d | modules.ConvTranspose2d, algorithm: str) -> str:
    if reason := _layers.lacks_algorithm(layer, algorithm):
        return f"not {algorithm}: {reason}"
    layer.algorithm = algorithm
    return algorithm


def _may_keep_report(model: nn.Module) -> bool:
    """Tell whether the name of the report is free, without running code of the model."""
    registered = (model._modules, model._parameters, model._buffers)
    if any("conversion" in names for names in registered):
        return False
    return isinstance(inspect.getattr_static(model, "conversion", Conversion()), Conversion)


def _unregistered(model: nn.Module, done: str, kinds: Iterable[type[nn.Module]]) -> dict[str, str]:
    """Return the modules with layers of these kinds that are out of reach, and why."""
    wanted, found = set(kinds), {}
    for where, module in _models.unregistered_modules(model):
        counts = Counter(type(each).__name__ for each in module.modules() if type(each) in wanted)
        if counts:
            layers = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            found[where] = f"{layers} not {done}: not registered as a module of the model, so pass it by itself"
    return found


def _reasons_to_skip(model: nn.Module) -> dict[str, str]:
    found = ((name, module, _reason_to_skip(module)) for name, module in model.named_modules())
    return {name: f"{type(module).__name__}: {reason}" for name, module, reason in found if reason}


def _reason_to_skip(module: nn.Module) -> str | None:
    """Return why a layer of one of the kinds that convx has is left to PyTorch; None where it is not, or is no such."""
    kind = type(module)
    if kind in _ORIGINALS:
        return None
    if isinstance(module, ScriptModule):
        return "made by torch.jit"
    if kind not in SWAPS:
        if "quantized" in kind.__module__.split(".") and kind.__name__ in {each.__name__ for each in SWAPS}:
            return "quantized"
        return _kind_of_subclass(module) if isinstance(module, tuple(SWAPS)) else None
    if _layers.has_hooks(module):
        return "it has hooks"
    if modules.has_own_forward(module) or _patched(kind):
        return "its forward was replaced"
    for name, tensor in module.named_parameters(recurse=False):
        if type(tensor) is not nn.Parameter:
            return f"its {name} is a {type(tensor).__qualname__}"
        if reason := _layers.unsupported(tensor):
            return f"its {name} is {reason}"
    return None


def _patched(kind: type[nn.Module]) -> bool:
    """Tell whether the forward of a class of PyTorch's is a function from elsewhere."""
    names = vars(sys.modules[kind.__module__])
    methods = (getattr(kind, name, None) for name in ("forward", "_conv_forward"))
    return any(getattr(method, "__globals__", names) is not names for method in methods)


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


# An answer to `torch.ao.quantization.fuse_modules`, which looks layers up by their exact types


def _refuse_to_fuse(_: bool, *layers: nn.Module) -> NoReturn:
    """Fuse nothing: what PyTorch would make of these is quantized by its own types, of all layers or none."""
    names = ", ".join(type(layer).__name__ for layer in layers)
    raise NotImplementedError(
        f"torch.ao.quantization.fuse_modules: {names} has layers of convx, which are not quantized: call "
        "convx.torch.revert for the model first"
    )


for _kinds in list(_FUSER_METHODS):
    for _pattern in itertools.product(*((kind, SWAPS[kind]) if kind in SWAPS else (kind,) for kind in _kinds)):
        _FUSER_METHODS.setdefault(_pattern, _refuse_to_fuse)
