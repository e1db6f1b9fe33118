"""Bad input: one exception type, turned into one sentence and exit code 2 in one place."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """Something the person at the shell can put right: what is wrong, where (file and line), what to do."""


def shorten(text: object) -> str:
    """What came from elsewhere, fit for a sentence: one line, not too long, nothing that a terminal obeys."""
    line = _printable(" ".join(str(text).split()))
    return line if len(line) <= 200 else f"{line[:200]}..."


def _printable(text: str) -> str:
    """``text`` on one line, without what a terminal obeys: names and values in a sentence may come from anywhere."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.splitlines()))


def reason_of(error: BaseException) -> str:
    """The first line of what a library's error says, or the error's type if it says nothing, fit for a sentence."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0])


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's ``main``: logging to standard error, ``InputError`` to exit code 2, Ctrl-C to 130."""

    @functools.wraps(main)
    def run() -> None:
        try:
            _prepare_output()
            main()
            sys.stdout.flush()  # while a full disk can still be told of
        except InputError as error:
            _end(str(error))
        except BrokenPipeError:  # as in "… | head"
            _forget_output()
            sys.exit(1)
        except OSError as error:  # a full disk, a folder that may not be written to
            if error.filename is None and error.errno is None:
                raise
            _forget_output()
            place = f"{error.filename}: " if error.filename else ""
            _end(f"{place}{error.strerror}; put that right and run the same command again")
        except MemoryError as error:
            _end(f"the memory is not enough{f' ({error})' if str(error) else ''}; free some or take a larger machine")
        except KeyboardInterrupt:
            _close_bars()
            print("stopped; run the same command again to go on", file=sys.stderr)
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
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII alone shows the rest as \\uXXXX
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str) -> NoReturn:
    _close_bars()
    print(f"error: {_printable(sentence)}", file=sys.stderr)
    sys.exit(2)


def _close_bars() -> None:
    """Have the progress bars that an error left open, as Trainer's, end their line."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        bar.close()


def _forget_output() -> None:
    """Have what is waiting for standard output go nowhere: the end of Python would try to write it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
