"""What a module holds beside its registered modules: in containers, in functions, and in hooks."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import nn

_REGISTERED = ("_modules", "_parameters", "_buffers")
_SEQUENCES = (list, tuple, set, frozenset, deque)
_HOLDERS = (nn.Module, dict, *_SEQUENCES, functools.partial, types.MethodType, types.FunctionType)


def unregistered(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that `model` holds where PyTorch does not look for them, with where that is: ``teacher[0]``.

    A plain list, a dict, a closure: `state_dict`, `parameters`, ``to`` and `convert` do not reach these.
    """
    known = {id(module) for module in model.modules()}
    for where, module in _references(model):
        if id(module) not in known:
            known.update(map(id, module.modules()))
            yield where, module


def references(model: nn.Module, modules: set[int]) -> Iterator[str]:
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
