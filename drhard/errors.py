"""Bad input: one exception type, turned into one sentence and exit code 2 in one place."""

import functools
import logging
import os
import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the person at the shell can put right: what is wrong, where (file and line), what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a script's ``main``: logging to standard error, ``InputError`` to exit code 2, Ctrl-C to 130."""

    @functools.wraps(main)
    def run() -> None:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger("drhard").setLevel(logging.INFO)
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # as in "… | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:  # a full disk, a folder that may not be written to
            if error.filename is None and error.errno is None:
                raise
            place = f"{error.filename}: " if error.filename else ""
            print(f"error: {place}{error.strerror}; put that right and run the same command again", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    return run
