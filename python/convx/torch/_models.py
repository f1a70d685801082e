"""Models as graphs of modules: copies of some of the modules, and the modules that PyTorch does not look for."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from torch.fx import GraphModule
from torch.nn.utils.parametrize import is_parametrized

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_modules(model: ModuleT, holders: list[nn.Module]) -> tuple[ModuleT, list[str], list[str]]:
    """Copy `model`, `holders` and the modules that they are registered in; share everything else that these hold.

    Return the copy, the names of the modules that are copies, and where the copy refers to what they were made from.
    """
    needed = {id(model), *map(id, holders)}
    named, before = list(model.named_modules()), 0
    while before < len(needed):  # modules may be registered in a circle
        before = len(needed)
        needed |= {id(module) for _, module in named if not needed.isdisjoint(map(id, module.children()))}
    for _, module in named:
        if id(module) in needed and is_parametrized(module):  # what is removed from one of the two stays in the other
            needed |= {id(module.parametrizations), *map(id, module.parametrizations.children())}
    originals = [module for _, module in named if id(module) in needed]
    copies = {id(module): _shallow(module) for module in originals}
    for module in copies.values():
        for name, child in module._modules.items():
            module._modules[name] = copies.get(id(child), child)
    for module in copies.values():
        if isinstance(module, GraphModule):
            module.graph = copy.deepcopy(module.graph)  # compiles the code of the copy
    result: ModuleT = copies[id(model)]  # type: ignore[assignment]
    return result, [name for name, module in named if id(module) in needed], list(_references_to(result, needed))


def _shallow(module: nn.Module) -> nn.Module:
    """Copy a module, but nothing that it holds; what is registered or hooked later is so in one of the two alone."""
    duplicate: nn.Module = object.__new__(type(module))
    vars(duplicate).update(vars(module))
    for name, value in vars(module).items():
        if name in ("_modules", "_parameters", "_buffers") or name.endswith("_hooks"):
            vars(duplicate)[name] = copy.copy(value)
    if isinstance(module, GraphModule):
        duplicate.__class__ = type(type(module).__name__, type(module).__bases__, {})
    elif is_parametrized(module):
        duplicate.__class__ = class_of_its_own(module, *type(module).__bases__)
    return duplicate


def class_of_its_own(module: nn.Module, *bases: type) -> type:
    """Return a class like the one that PyTorch makes for each module that is given a parametrization."""
    names = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
    return type(type(module).__name__, bases, names)


# What a module holds beside its registered modules: in containers, in functions, and in hooks

_REGISTERED = ("_modules", "_parameters", "_buffers")
_SEQUENCES = (list, tuple, set, frozenset, deque)
_HOLDERS = (nn.Module, dict, *_SEQUENCES, functools.partial, types.MethodType, types.FunctionType)


def unregistered_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that `model` holds where PyTorch does not look for them, with where that is: ``teacher[0]``.

    A plain list, a dict, a closure: `state_dict`, `parameters`, ``to`` and `convert` do not reach these.
    """
    known = {id(module) for module in model.modules()}
    for where, module in _references(model):
        if id(module) not in known:
            known.update(map(id, module.modules()))
            yield where, module


def _references_to(model: nn.Module, modules: set[int]) -> Iterator[str]:
    """Yield where `model` refers to one of `modules`, given by their ids, other than by registering it."""
    found = (where for where, module in _references(model) if id(module) in modules)
    yield from dict.fromkeys(found)


def _references(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        seen: set[int] = set()
        for attribute, value in list(vars(module).items()):
            if attribute not in _REGISTERED and isinstance(value, _HOLDERS):
                where = f"{name}.{attribute}".lstrip(".")
                if attribute.endswith("_hooks"):
                    where = f"a hook of {name or 'the model'}"
                    yield from ((where, module) for _, module in _reached("", value, seen))
                else:
                    yield from _reached(where, value, seen)


def _reached(where: str, value: Any, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that `value` is or leads to, however deep."""
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, nn.Module):
            yield where, value
        elif id(value) not in seen:
            seen.add(id(value))
            parts = [(where + suffix, part) for suffix, part in _parts(value) if isinstance(part, _HOLDERS)]
            waiting += reversed(parts)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{_text(key)}]", part) for key, part in list(value.items()))
    elif isinstance(value, _SEQUENCES):
        yield from ((f"[{index}]", part) for index, part in enumerate(list(value)))
    elif isinstance(value, functools.partial):
        yield from (("", part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, types.MethodType):
        yield "", value.__self__
    else:
        yield from (("", _content(cell)) for cell in value.__closure__ or ())
        yield from (("", part) for part in value.__defaults__ or ())


def _text(key: object) -> str:
    return repr(key) if isinstance(key, (str, int)) else type(key).__qualname__


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
