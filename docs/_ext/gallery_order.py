"""The reading order of the examples; examples without a place come last."""

from __future__ import annotations

from pathlib import Path

ORDER = (
    "plot_photo",
    "plot_digits",
    "plot_faces",
    "plot_faces_torch",
    "plot_resnet18",
    "plot_jax_training",
    "plot_gradient_clipping",
    "plot_accuracy",
)


class GalleryOrder:
    """A sort key for Sphinx-Gallery."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> tuple[int, str]:
        """Return the place of an example."""
        name = Path(filename).stem
        return ORDER.index(name) if name in ORDER else len(ORDER), name

    def __repr__(self) -> str:
        return type(self).__name__
