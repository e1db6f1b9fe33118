"""Begin and end a script: logs to standard error, a one-line error and exit code 2 for bad input."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from drhard import processes
from drhard.errors import InputError, printable


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's ``main``: log to standard error, exit with 2 on ``InputError`` and with 130 on Ctrl-C.

    Under torchrun, the script is refused: its processes would do the same work and overwrite each other's files.
    """

    @functools.wraps(main)
    def run() -> None:
        if processes.count() > 1:
            _end(
                f"{os.path.basename(sys.argv[0])} works in one process, and this run has {processes.count()}; start "
                "it with python, without torchrun or accelerate launch"
            )
        _run(lambda: _prepared(main))

    return run


def shared_command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the ``main`` of a script whose processes share the work under torchrun, as :func:`command` does.

    Only the first process prints and logs. Whichever process fails first reports it, and all end with its exit code.
    """

    @functools.wraps(main)
    def run() -> None:
        _run(lambda: _share(main))

    return run


def _share(main: Callable[[], None]) -> None:
    processes.start()
    with processes.one_log():
        _prepared(main)
        processes.leave()


def _prepared(main: Callable[[], None]) -> None:
    _prepare_output()
    main()


def _run(main: Callable[[], None]) -> None:
    try:
        _refuse_copies()
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
        if processes.may_speak():
            print("stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if not processes.is_lost_contact(error):
            raise
        _end(processes.LEFT_ALONE)


def _refuse_copies() -> None:
    """Raise InputError if this is one of several processes that do not know of each other."""
    copies = processes.find_copies()
    if copies is not None:
        launcher, count = copies
        raise InputError(
            f"{launcher} started {count} copies of this command, which would overwrite each other's files; let it "
            "start one torchrun on each machine, as docs/scale-out.md says, or a single process"
        )


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


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
    if processes.may_speak():
        print(f"error: {printable(sentence)}", file=sys.stderr, flush=True)
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
