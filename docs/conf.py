"""How the documentation is built: ``./do docs``."""

from importlib.metadata import version as installed_version

project = "sandboxlib"
author = "the sandboxlib authors"
copyright = author
version = release = installed_version("sandboxlib")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"

nitpicky = False
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
