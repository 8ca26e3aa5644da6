"""What the pages tell people to type: fenced blocks of commands, each with a tag.

The tag follows the language of the fence: `run`, and a test runs it; `compose-only`, and a test
composes its configuration; `manual: REASON` where neither can be, say without a cluster.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from .repository import PROJECTS, ROOT, package, texts

PAGES = texts("*.md")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[ ]*(?P<tag>.*?)\n(?P<text>.*?)^(?P=indent)```$",
    re.S | re.M,
)
TAGS = re.compile(r"run|compose-only|manual: \w.{5,}")
PROGRAMS = (
    *("nox", "python", "python3", "pip", "sudo", "sh", "cd", "export", "curl", "git", "docker"),
    *("kind", "kubectl", "helm", "ray", "serve", "rehearse", "ray-doctor", *PROJECTS),
)
"""First words of a command."""
MODULES = {package(ROOT / folder): name for name, folder in PROJECTS.items()} | {
    "ray_doctor": "doctor"
}
"""Import packages whose `__main__` takes overrides, and their sessions."""


@dataclass(frozen=True)
class Block:
    """A fenced block that holds commands."""

    path: Path
    language: str
    tag: str
    text: str

    def title(self) -> str:
        """Its page and first line."""
        return f"{self.path.relative_to(ROOT)}: {self.text.splitlines()[0][:40].strip()}"

    def commands(self) -> list[list[str]]:
        """Its commands, each as words, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        split = [shlex.split(line, comments=True) for line in lines]
        return [words for words in split if words]


def blocks(path: Path, page: str) -> list[Block]:
    """The blocks of a page that are written in a shell's language, or begin with a command."""
    matches = FENCE.finditer(page)
    found = [Block(path, m["language"], m["tag"], dedent(m["text"])) for m in matches]
    return [b for b in found if b.language in ("bash", "sh") or begins_with_a_command(b)]


def begins_with_a_command(block: Block) -> bool:
    """Whether one of its lines begins like a command; only asked of blocks without a language."""
    lines = [line.split(" ") for line in block.text.splitlines()]
    # A program's name alone on its line is the title of a table.
    return not block.language and any(len(x) > 1 and x[0] in PROGRAMS for x in lines)


BLOCKS = [block for path, page in PAGES.items() for block in blocks(path, page)]


def quoted(page: str) -> list[list[str]]:
    """Commands that stand between backticks in the text."""
    found = [text.split() for text in re.findall(r"`([^`\n]+)`", page)]
    return [words for words in found if len(words) > 1 and words[0] in ("nox", "python", *PROJECTS)]


def job(command: list[str]) -> tuple[str, list[str]] | None:
    """The project and the overrides of a command that runs a job."""
    match command:
        case ["nox", "-s", name, "--", *args] if name in MODULES.values():
            return name, args
        case ["python", "-m", module, *args] if module in MODULES:
            return MODULES[module], args
        case [name, *args] if name in PROJECTS:
            return name, args
        case ["ray-doctor", *args]:
            return "doctor", args
    return None
