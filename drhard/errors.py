"""Report bad input: one exception type. :mod:`drhard.commands` turns it into a one-line error and exit code 2."""

from __future__ import annotations


class InputError(Exception):
    """An error that the user can fix. Its message says what is wrong, where (file and line), and what to do."""


def shorten(text: object) -> str:
    """Return text from elsewhere on one line, cut after 200 characters, without control characters."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= 200 else f"{line[:200]}..."


def printable(text: str) -> str:
    """Return ``text`` on one line, without control characters: names and values may come from anywhere."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.splitlines()))


def reason_of(error: BaseException) -> str:
    """Return the first line of a library's error, shortened; the error's type if its message is empty."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0])
