"""The commands that the documentation prints: in Markdown, in blocks fenced as bash, and in docstrings of scripts."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

SCRIPTS = (  # of the walk-through
    "preprocess.py",
    "star/inference.py",
    "star/prepare_hardneg.py",
    "star/train.py",
    "adore/inference.py",
    "adore/train.py",
    "msmarco_eval.py",
    "trec_eval.py",
    "cvt_back.py",
)
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
OWN_COLLECTION, YOUR_RETRIEVER = ROOT / "docs" / "own-collection.md", ROOT / "docs" / "your-retriever.md"
REPRODUCE = ROOT / "docs" / "reproduce.md"
WALKTHROUGH, RESULTS = ROOT / "docs" / "walkthrough.md", ROOT / "docs" / "results.md"
DOCUMENTS = (  # all Markdown that is written by hand
    README,
    ROOT / "CONTRIBUTING.md",
    CHANGELOG,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "data" / "code" / "README.md",
    ROOT / "data" / "gcide" / "README.md",
    ROOT / "data" / "sample" / "README.md",
    ROOT / "tests" / "data" / "README.md",
)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (python .*?[^\\])$", re.MULTILINE | re.DOTALL)  # in the docstring of a script


@dataclass(frozen=True)
class Printed:
    """A command as it is printed.

    Attributes:
        where: file and line.
        words: as the shell takes them apart, comments left out.
    """

    where: str
    words: tuple[str, ...]

    @property
    def script(self) -> str | None:
        """The script that it runs, relative to the project; None if it runs no Python script."""
        return self.words[1].removeprefix("./") if self.words[0] == "python" and len(self.words) > 1 else None


def in_one_process(command: Printed) -> Printed:
    """The command without torchrun in front of its script."""
    if "torchrun" not in command.words:
        return command
    script = next(number for number, word in enumerate(command.words) if word.endswith(".py"))
    return Printed(command.where, ("python", *command.words[script:]))


def in_text(text: str, name: str) -> list[Printed]:
    """The commands of the bash blocks in Markdown, in their order."""
    found = []
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n") + 1
        for command in re.split(r"(?<!\\)\n", block[1]):
            if words := shlex.split(command.replace("\\\n", " "), comments=True):
                found.append(Printed(f"{name}, line {line}", tuple(words)))
            line += command.count("\n") + 1
    return found


def in_document(path: Path) -> list[Printed]:
    """The commands of a document, in their order."""
    return in_text(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


def in_documents() -> list[Printed]:
    """The commands of README.md, then of docs/*.md, without those of two pages that have tests of their own."""
    theirs = {command.words for page in (YOUR_RETRIEVER, OWN_COLLECTION) for command in in_document(page)}
    pages = (README, *sorted((ROOT / "docs").glob("*.md")))
    return [command for path in pages for command in in_document(path) if command.words not in theirs]


def in_scripts() -> list[Printed]:
    """The commands in the docstrings of the walk-through's scripts, but for patterns such as RUN and [CUT]."""
    found = []
    for script in SCRIPTS:
        docstring = (ROOT / script).read_text(encoding="utf-8").split('"""')[1].replace("\\\\\n", "\\\n")
        for match in INDENTED.finditer(docstring):
            command = match[1].replace("\\\n", " ")
            if not re.search(r"\b[A-Z]{3,}\b|\[", command):
                found.append(Printed(script, tuple(shlex.split(command, comments=True))))
    return found
