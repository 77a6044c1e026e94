"""Settings of the Sphinx site. `sphinx-build -W -b html docs docs/_build`."""

import re
import textwrap
from importlib.metadata import version as _version

from ironstep import data, functional, nn, optim, optimize, schedules, torch, train

project = "ironstep"
author = "The ironstep developers"
copyright = f"2026, {author}"
release = _version("ironstep")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ironstep {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_use_param = False
napoleon_use_rtype = False
# `Optimizer` lists there what the classes share.
napoleon_custom_sections = [("Arguments that all optimisers share", "params_style")]


def links():
    """What a name in backticks stands for: the class or function of that name, in the first module that has one."""
    found = {}
    for module in (optim, nn, functional, schedules, data, train, optimize, torch):
        for name in module.__all__:
            if not callable(getattr(module, name)):
                continue  # a module
            role = "class" if name[0].isupper() else "func"
            found.setdefault(name, f":{role}:`~{module.__name__}.{name}`")
    # Words that are more often an argument or a plain word.
    for name in ("step", "linear", "constant", "scale", "shift", "join", "chain", "split", "fit", "method"):
        found.pop(name, None)
    return found


LINKS = links()


def markdown_to_rst(text):
    """Display math, inline math and code as the docstrings have them, in reStructuredText.

    The docstrings are written for a terminal and an editor: `$$...$$`, `$...$`, and single backticks around code.
    """

    def display(match):
        indent, body = match[1], textwrap.dedent(match[2]).strip()
        lines = [f"{indent}   {line.strip()}" for line in body.splitlines()]
        return f"\n{indent}.. math::\n\n" + "\n".join(lines) + f"\n\n{indent}"

    def inline(match):
        return f":math:`{' '.join(match[1].split())}`"

    pieces = re.split(r"(?<![`:\w])`([^`]+)`(?!`)", text)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            piece = re.sub(r"^([ ]*)\$\$(.+?)\$\$[ ]*\n?[ ]*", display, piece, flags=re.DOTALL | re.MULTILINE)
            piece = re.sub(r"(?<=[ (])\*(?=\w)", r"\\*", piece)  # (outputs, *kernel)
            pieces[i] = re.sub(r"\$([^$]+)\$", inline, piece)
        else:
            pieces[i] = LINKS.get(piece, f"``{piece}``")
    return "".join(pieces)


# Napoleon takes what is before a colon in an attribute's docstring for its type, so the colons are hidden from it.
HIDDEN_COLON = "\0"


def before_napoleon(app, what, name, obj, options, lines):
    """Makes reStructuredText of a docstring."""
    text = markdown_to_rst("\n".join(lines))
    if what in ("attribute", "property"):
        text = text.replace(":", HIDDEN_COLON)
    lines[:] = text.split("\n")


def after_napoleon(app, what, name, obj, options, lines):
    """Brings the colons back."""
    lines[:] = [line.replace(HIDDEN_COLON, ":") for line in lines]


def setup(app):
    """Napoleon's own handler has the priority 500."""
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
