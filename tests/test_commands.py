"""Bad input becomes one sentence and exit code 2 in one place; other errors stay what they are."""

from drhard.commands import command
from drhard.errors import InputError

import pytest
from helpers import the_error
from tqdm import tqdm


def test_bad_input_is_a_sentence_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise InputError("file.tsv, line 3: it is wrong")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert the_error(captured.err) == "error: file.tsv, line 3: it is wrong"
    assert captured.out == ""


def test_whatever_a_file_says_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise InputError("stamp.json: says float32\n of \x1b[31m16\r, not float32\n")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: stamp.json: says float32  of ?[31m16 , not float32\n"


def test_a_bar_left_open_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        main.bar = tqdm(total=3)
        raise InputError("file.tsv: it is wrong")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[-1] == "error: file.tsv: it is wrong"


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    @command
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_success_does_not_exit() -> None:
    ran = []
    command(lambda: ran.append(1))()
    assert ran == [1]
