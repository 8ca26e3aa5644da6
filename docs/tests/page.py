"""docs/debugging.md, taken apart: its sections, their messages, their code and their commands."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PAGE = DOCS / "debugging.md"
# A message that says less than this much could be found anywhere.
MIN_LITERAL = 25
COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Section:
    """What stands below one heading, up to the next."""

    heading: str
    text: str

    def blocks(self, info: str) -> list[str]:
        """The content of the fenced blocks whose info string begins with `info`."""
        pattern = rf"^```{re.escape(info)}[^\n]*\n(.*?)^```$"
        return re.findall(pattern, self.text, flags=re.DOTALL | re.MULTILINE)

    @property
    def messages(self) -> list[str]:
        """What a person sees; `...` stands for anything within a line, alone for any lines."""
        return self.blocks("text")

    @property
    def tests(self) -> list[str]:
        """The tests that the section names."""
        found = re.findall(r"^Test: (.*)$", self.text, flags=re.MULTILINE)
        return re.findall(r"`(test_\w+)`", " ".join(found))

    @property
    def scripts(self) -> list[Path]:
        """The scripts that the section links to."""
        return [DOCS / name for name in re.findall(r"\]\((tests/errors/\w+\.py)\)", self.text)]


def sections() -> list[Section]:
    """All sections of the page, in its order."""
    parts = re.split(r"^(#{2,3} .*)$", PAGE.read_text(), flags=re.MULTILINE)
    return [Section(h.lstrip("# "), t) for h, t in zip(parts[1::2], parts[2::2], strict=True)]


def section_of(test: str) -> Section:
    """The section that names this test."""
    (found,) = [section for section in sections() if test in section.tests]
    return found


def is_shown_by(message: str, text: str) -> bool:
    """Whether `text` has whole lines that read as the message, apart from spaces and colours."""
    pattern = ""
    for line in _lines(message):
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("...")) + r"\n"
    lines = "\n".join(_lines(text)) + "\n"
    return re.search(rf"^{pattern}", lines, flags=re.MULTILINE) is not None


def num_literal(message: str) -> int:
    """How many characters of a message are not left open."""
    return len(re.sub(r"\.\.\.|\s", "", message))


def _lines(text: str) -> list[str]:
    text = COLOR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return [" ".join(line.split()) for line in text.strip("\n").split("\n")]
