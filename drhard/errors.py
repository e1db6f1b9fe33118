"""Report bad input: one exception type, which :func:`command` turns into a one-line error and exit code 2."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """An error that the user can fix. Its message says what is wrong, where (file and line), and what to do."""


def shorten(text: object) -> str:
    """Return text from elsewhere on one line, cut after 200 characters, without control characters."""
    line = _printable(" ".join(str(text).split()))
    return line if len(line) <= 200 else f"{line[:200]}..."


def _printable(text: str) -> str:
    """Return ``text`` on one line, without control characters: names and values may come from anywhere."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.splitlines()))


def reason_of(error: BaseException) -> str:
    """Return the first line of a library's error, shortened; the error's type if its message is empty."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0])


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's ``main``: log to standard error, exit with 2 on ``InputError`` and with 130 on Ctrl-C."""

    @functools.wraps(main)
    def run() -> None:
        try:
            _prepare_output()
            main()
            sys.stdout.flush()  # now, while a full disk can still be reported
        except InputError as error:
            _end(str(error))
        except BrokenPipeError:  # as in "… | head"
            _forget_output()
            sys.exit(1)
        except OSError as error:  # a full disk, a read-only folder
            if error.filename is None and error.errno is None:
                raise
            _forget_output()
            place = f"{error.filename}: " if error.filename else ""
            _end(f"{place}{error.strerror}; fix this and run the same command again")
        except MemoryError as error:
            _end(f"out of memory{f' ({error})' if str(error) else ''}; free some or use a larger machine")
        except KeyboardInterrupt:
            _close_bars()
            print("stopped; run the same command again to resume", file=sys.stderr)
            sys.exit(130)

    return run


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _printable(super().format(record))


def _prepare_output() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("drhard").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an ASCII-only terminal shows other characters as \\uXXXX
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str) -> NoReturn:
    _close_bars()
    print(f"error: {_printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def _close_bars() -> None:
    """Close the progress bars that an error left open, such as Trainer's, so that their line ends."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        bar.close()


def _forget_output() -> None:
    """Discard pending output. Python would try to write it again as it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
