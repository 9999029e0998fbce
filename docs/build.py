"""
What the site's build needs beyond ``mkdocs.yml``.

Formulas become MathML, which browsers draw without scripts or fonts from elsewhere; sections of the
README are taken over, so that nothing is written twice; roles in docstrings become code.
"""

import re
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension
from griffe import Object as GriffeObject
from latex2mathml.converter import convert

README = Path(__file__).parents[1] / "README.md"

# ".. math::" with its indented continuation lines, and ":func:`name`".
MATH_DIRECTIVE = re.compile(r"^\.\. math:: (.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|mod|meth):(`[^`]+`)")
INCLUDE = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
LINK_TO_FILE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")


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
    return f"<div>{mathml}</div>"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``<!-- README: Heading -->`` by that section of the README."""
    return INCLUDE.sub(lambda match: readme_section(match[1]), markdown)


def readme_section(heading: str) -> str:
    """
    Read a section of the README, without its heading and its links to files.

    :param heading: of the second level
    :return: Markdown
    :raises ValueError: if there is no such section
    """
    sections = re.split(r"^## (.+)\n", README.read_text(), flags=re.MULTILINE)
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    if heading not in texts:
        raise ValueError(f"README.md has no section '{heading}': it has {', '.join(texts)}.")
    text = texts[heading].replace("](docs/pages/", "](")  # pictures, as the pages see them
    return LINK_TO_FILE.sub(r"\1", text).strip()


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
