"""Read the functions of wheels, by their syntax trees: nothing of a wheel is imported or run."""

from __future__ import annotations

import ast
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LARGEST_FILE = 1_000_000  # bytes; what is larger is data
LONGEST_CODE = 1000  # characters of a function's source that are kept
MIN_LINES = 2  # of a function, beside its docstring
MIN_CODE_WORDS = 8

_SKIPPED_FOLDERS = re.compile(
    r"(?:^|/)(?:tests?|testing|_tests?|testutils|examples?|tutorials?|demos?|benchmarks?|asv_bench|docs?"
    r"|_?vendor(?:ed)?|_?extern(?:al|als)?|_?third_?party|_?bundled|_?packages|migrations|versions)/"
)
_SKIPPED_FILES = re.compile(
    r"(?:^|/)(?:test_[^/]*|[^/]*_tests?|conftest|[^/]*_pb2(?:_grpc)?|parsetab|lextab|_version|version|setup)\.py$"
)
_HEAD = 3000  # characters of a file in which it says that it was generated, or names its own licence
_GENERATED = re.compile(
    r"do not (?:edit|modify)|(?:auto(?:matically)?[- ]?|file (?:is|was) )generated|generated (?:by|from|code|file)",
    re.I,
)
_OTHER_LICENCE = re.compile(
    r"\b[AL]?GPL|\bGNU\b|Mozilla Public|Creative Commons|\bCC[- ]BY|proprietary|non-?commercial|Eclipse Public",
    re.IGNORECASE,
)
_STUBS = ("overload", "abstractmethod", "abstractproperty")


@dataclass(frozen=True)
class Function:
    """A function or method.

    Attributes:
        file: wheel and path of its file.
        place: its module and its class, with dots between.
        name: its own name.
        code: its source on one line, without decorators and docstring, cut to LONGEST_CODE characters.
        docstring: "" if it has none.
    """

    file: str
    place: str
    name: str
    code: str
    docstring: str


def read_functions(wheel: Path) -> Iterator[Function]:
    """Yield the functions of a wheel's modules, in the order of the files' names."""
    with zipfile.ZipFile(wheel) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            path = info.filename
            if not path.endswith(".py") or _SKIPPED_FOLDERS.search(path) or _SKIPPED_FILES.search(path):
                continue
            if info.file_size <= LARGEST_FILE:
                yield from functions_of(archive.read(info), f"{wheel.name}/{path}", _module(path))


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def functions_of(data: bytes, file: str, module: str) -> Iterator[Function]:
    """Yield the functions of a file. A file that is no Python in UTF-8, was generated or has its own licence has none.

    Args:
        data: the file's bytes.
        file: what the functions give as their file.
        module: the module's name, with dots.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in its strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return
    head = text[:_HEAD]
    if _GENERATED.search(head) or _OTHER_LICENCE.search(head):
        return
    source = _Source(text)
    for place, node in _definitions(tree, module):
        if not _is_stub(node) and (code := source.code_of(node)):
            yield Function(file, place, node.name, code, ast.get_docstring(node) or "")


_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST, place: str) -> Iterator[tuple[str, _Definition]]:
    """Yield the functions of modules and classes, not those inside functions, each with its place."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield place, child
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{place}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _definitions(child, place)


def _is_stub(node: _Definition) -> bool:
    """Return whether a function is special, a test, or has no body to find: an overload, or one that does nothing."""
    if node.name.startswith(("__", "test")):
        return True
    names = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return bool(names.intersection(_STUBS)) or all(
        isinstance(one, ast.Pass | ast.Raise) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in body
    )


class _Source:
    """The text of a file, by the places of its syntax tree: lines from 1, and bytes of a line."""

    def __init__(self, text: str):
        self.lines = [line.encode() for line in text.split("\n")]

    def code_of(self, node: _Definition) -> str:
        """Return the source of a function on one line; "" if it is too short."""
        pieces = [self.between((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))]
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            pieces = [
                self.between((node.lineno, node.col_offset), (docstring.lineno, docstring.col_offset)),
                self.between(
                    (docstring.end_lineno or 0, docstring.end_col_offset or 0),
                    (node.end_lineno or 0, node.end_col_offset or 0),
                ),
            ]
        code = "\n".join(piece.strip() for piece in pieces)
        words = code.split()
        if code.count("\n") + 1 < MIN_LINES or len(words) < MIN_CODE_WORDS:
            return ""
        return cut(" ".join(words), LONGEST_CODE)

    def between(self, start: tuple[int, int], end: tuple[int, int]) -> str:
        lines = self.lines[start[0] - 1 : end[0]]
        lines[-1] = lines[-1][: end[1]]
        lines[0] = lines[0][start[1] :]
        return b"\n".join(lines).decode()


def cut(text: str, limit: int) -> str:
    """Return the words of a text that fit into ``limit`` characters."""
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0]
