"""How the documentation is built: python -m sphinx -W docs build/docs, with convx[docs] installed."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import convx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "convx"
author = "The convx developers"
project_copyright = author
version = release = convx.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "benchmark_tables",
    "mathml",
    "repository_links",
]
# The build fetches nothing unless CONVX_DOCS_INTERSPHINX asks for the inventories of other projects.
if os.environ.get("CONVX_DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
exclude_patterns = ["_build", "_ext", "_templates"]
templates_path = ["_templates"]
default_role = "py:obj"
highlight_language = "default"
smartquotes_action = "D"  # dashes alone, since quotes are mostly code

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_typehints_format = "fully-qualified"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shapes", ("Attributes", "params_style")]

# Without a screen matplotlib warns that it cannot show figures; the pages have them.
warnings.filterwarnings("ignore", message=".*is non-interactive.*", category=UserWarning)
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "backreferences_dir": "gallery/uses",
    "doc_module": ("convx",),
    "reference_url": {"convx": None},
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "min_reported_time": 1,
    "abort_on_example_error": True,
    "capture_repr": (),
    "within_subsection_order": "gallery_order.GalleryOrder",
}

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"convx {version}"
html_static_path = ["_static"]
html_css_files = ["convx.css"]
html_copy_source = False
html_show_sourcelink = False
