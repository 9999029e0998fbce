"""
What the site's build needs beyond ``mkdocs.yml``.

Formulas become MathML, which browsers draw without scripts or fonts from elsewhere; files of the
repository can be pages, so that nothing is written twice; links to files lead to the repository;
roles in docstrings become code.
"""

import re
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension
from griffe import Object as GriffeObject
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]

# ".. math::" with its indented continuation lines, and ":func:`name`".
MATH_DIRECTIVE = re.compile(r"^\.\. math:: (.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|mod|meth):(`[^`]+`)")
# A link out of the folder of the pages leads to the repository, and after "<!-- FILE -->" it stands
# for the file itself. So both also work where the pages are read as files.
REPOSITORY = "../../"
INCLUDE = re.compile(rf"^<!-- FILE --> \[.+\]\({re.escape(REPOSITORY)}(.+)\)$", re.MULTILINE)
RELATIVE = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
REPOSITORY_LINK = re.compile(rf"\]\({re.escape(REPOSITORY)}([^)]+)\)")


def on_config(config: Any) -> Any:
    """Let fenced blocks called ``math`` be formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def formula(source: str, *_: Any, **__: Any) -> str:
    """
    Convert LaTeX to MathML.

    :param source: the formula
    :return: HTML
    :raises ValueError: if it has a command that the converter does not know
    """
    mathml = convert(source, display="block")
    unknown = re.findall(r"\\\w+", mathml)
    if unknown:
        raise ValueError(f"No MathML for {', '.join(unknown)} in the formula {source}")
    return f'<div class="math">{mathml}</div>'


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """
    Put in the files that a page includes, and link to the repository.

    :param markdown: of the page
    :param config: of the site
    :return: Markdown
    """
    text = INCLUDE.sub(lambda match: read_file(match[1]), markdown)
    return REPOSITORY_LINK.sub(lambda match: f"]({address(match[1], config.repo_url)})", text)


def read_file(name: str) -> str:
    """
    Read a file of the repository, whose links are relative to its folder.

    :param name: path in the repository
    :return: Markdown whose links lead to the repository
    """
    folder = (ROOT / name).parent

    def link(match: re.Match[str]) -> str:
        path, mark, anchor = match[1].partition("#")
        return f"]({REPOSITORY}{(folder / path).resolve().relative_to(ROOT)}{mark}{anchor})"

    return RELATIVE.sub(link, (ROOT / name).read_text())


def address(target: str, repository: str) -> str:
    """
    Find the address of a file.

    :param target: path in the repository, perhaps with an anchor
    :param repository: address of the repository
    :return: address of the file
    :raises ValueError: if there is no such file
    """
    path = ROOT / target.partition("#")[0]
    if not path.exists():
        raise ValueError(f"A page links to {target}, which is not in the repository.")
    return f"{repository}/{'tree' if path.is_dir() else 'blob'}/main/{target}"


class FieldListMarkdown(Extension):
    """Make Markdown of what SB3's docstrings have in reStructuredText."""

    def on_object(self, *, obj: GriffeObject, **_: Any) -> None:
        """Rewrite the docstring of a module, class or function."""
        if obj.docstring is not None:
            rewrite(obj.docstring)


def rewrite(docstring: Docstring) -> None:
    """Turn formulas into fenced blocks, and roles into code."""
    text = MATH_DIRECTIVE.sub(fenced, docstring.value)
    docstring.value = ROLE.sub(r"\1", text)


def fenced(match: re.Match[str]) -> str:
    """Write a formula, which may continue over several lines, as a fenced block."""
    return "```math\n" + " ".join(match[1].split()) + "\n```"
