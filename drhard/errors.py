"""Bad input: one exception type, turned into one sentence and exit code 2 in one place."""

import functools
import logging
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
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    return run
