"""``python -m convx info``: what convx runs on this machine, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import numpy as np

from .. import cuda, runtime
from .._cpu import config

OPTIONAL = (
    "cupy-cuda12x", "cupy-cuda13x", "jax", "matplotlib", "mpi4py", "pillow", "rich", "scikit-image", "scikit-learn",
    "torch",
)  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Print the configuration, as text or as JSON."""
    if options.json:
        print(json.dumps(collect(), indent=2, default=list))
        return
    runtime.show_config()
    facts = collect()
    installed = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    print(f"{'platform':<15}  {facts['platform']}")
    print(f"{'optional':<15}  {installed or 'nothing is installed'}")


def collect() -> dict[str, Any]:
    """Collect everything that the command prints."""
    return {
        **config(),
        "cuda": {
            "available": cuda.is_available(),
            "reason": cuda.unavailable_reason(),
            "devices": [cuda.device_name(device) for device in range(cuda.device_count())],
        },
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in OPTIONAL},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
