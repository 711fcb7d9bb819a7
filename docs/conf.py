"""The documentation site: ``sphinx-build -W --keep-going -n -b html docs build/site``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pullback
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))
from pages import PIECES

project = "pullback"
author = "The pullback developers"
project_copyright = "The pullback developers"
version = release = pullback.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
smartquotes = False  # of code that stands in prose
maximum_signature_line_length = 90
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
add_module_names = False
exclude_patterns = ["figures"]

WIDE = ("catalogue", "accuracy", "calls")  # pages of wide tables
SINGLE = ("index", "start", "cookbook", "calculus", "faq")  # with no others beside them
html_theme = "pydata_sphinx_theme"
html_title = f"pullback {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_sidebars = {page: [] for page in SINGLE}
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_nav_level": 1,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": {"**": ["page-toc"], **{page: [] for page in WIDE}},
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _with_pieces(app: Any, docname: str, source: list[str]) -> None:
    """Put the generated pieces in, and lead links to what is a page of the site to that page."""
    text = source[0].replace("](../CONTRIBUTING.md)", "](inside/contributing.md)")
    source[0] = re.sub(
        r"^<!-- generated: ([\w ]+) -->$",
        lambda match: "\n".join(PIECES[match[1]]()),
        text,
        flags=re.MULTILINE,
    )


# --- formulas as MathML, which browsers show without a script -------------------------------------


def _inline(self: Any, node: Any) -> None:
    from docutils.nodes import SkipNode  # noqa: PLC0415

    self.body.append(convert(node.astext()))
    raise SkipNode


def _display(self: Any, node: Any) -> None:
    from docutils.nodes import SkipNode  # noqa: PLC0415

    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register what is above."""
    app.connect("source-read", _with_pieces)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
