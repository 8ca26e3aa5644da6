"""docs/debugging.md says nothing that no test has seen.

Run by `nox -s faults -- docs`.
"""

import ast
from pathlib import Path

import pytest

from . import page

pytestmark = pytest.mark.fault

SECTIONS = page.sections()
ERRORS = [section for section in SECTIONS if section.tests]
# The words that people would look for.
WORDS = """actor, object store, gpu, checkpoint, memory, small tasks, pending, serialized, port,
version, module, collective"""


def comparing_tests() -> set[str]:
    """The tests of this folder that use the fixture `shown`."""
    found = set()
    for file in set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and "shown" in ast.unparse(node):
                found.add(node.name)
    return found


def test_every_error_names_its_test_and_every_test_its_error():
    named = [test for section in ERRORS for test in section.tests]
    assert len(named) == len(set(named))
    assert set(named) == comparing_tests()
    headings = " ".join(section.heading.lower() for section in SECTIONS)
    assert [word for word in WORDS.replace("\n", " ").split(", ") if word not in headings] == []


def test_every_message_belongs_to_a_test():
    # One that nothing compares could say anything.
    assert [section.heading for section in SECTIONS if section.messages and not section.tests] == []
    vague = [
        message
        for section in ERRORS
        for message in section.messages
        if page.num_literal(message) < page.MIN_LITERAL
    ]
    assert vague == []


@pytest.mark.parametrize("section", ERRORS, ids=[section.heading for section in ERRORS])
def test_code_on_the_page_is_that_of_its_script(section: page.Section):
    scripts = [[line.strip() for line in s.read_text().splitlines()] for s in section.scripts]
    assert scripts
    for block in section.blocks("python"):
        lines = [line.strip() for line in block.strip().splitlines()]
        assert any(
            script[i : i + len(lines)] == lines for script in scripts for i in range(len(script))
        ), block


@pytest.mark.parametrize(
    ("message", "text", "is_shown"),
    [
        ("a b", "x\na  b \ny", True),
        ("a b", "xa b", False),
        ("a b", "a bx", False),
        ("a ... d", "a b c d", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\nd", "a\nb\nd", False),
        ("(x) a...", "\x1b[33m(x)\x1b[0m a.b", True),
        ("a*", "aaa", False),
    ],
)
def test_message_is_compared_by_whole_lines(message: str, text: str, is_shown: bool):
    assert page.is_shown_by(message, text) == is_shown
