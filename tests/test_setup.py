"""setup.sh with a Python, a pip and an nvidia-smi that only say what they are asked for."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import ROOT

PYTHON = """#!/bin/bash
case "$*" in
    "-c import sys"*) exit 0 ;;
    "-c import "*) exit "${DAMAGED:-0}" ;;
    --version) echo Python 3.11.2 ;;
    "-m venv "*) eval "$VENV" && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip --version") ;;
    "-m pip install "*) echo "pip in $PWD: ${!#}" >>"$CALLS"; eval "$PIP" ;;
    -) exit "$NO_GPU" ;;
    *) exit 9 ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of setup.sh alone, in a folder with blanks in its name; beside it the programs that it finds."""
    folder = tmp_path / "a b $c"
    folder.mkdir()
    for name in ("setup.sh", "requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "run.sh").write_text('set -euo pipefail\nsource "$(dirname "$0")/setup.sh"\necho "has $python"\n')
    programs = tmp_path / "programs"
    program(programs / "python3", PYTHON)
    program(programs / "nvidia-smi", "#!/bin/bash\nexit 9\n")
    return folder


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def start(project: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{project.parent / 'programs'}:/usr/bin:/bin",
        "CALLS": str(project.parent / "calls"),
        "VENV": ":",
        "PIP": ":",
        "NO_GPU": "0",
        **settings,
    }
    return subprocess.Popen(
        ["bash", str(project / "run.sh"), "-q"],
        env=environment,
        cwd=project.parent,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(project: Path, **settings: str) -> tuple[int, str, str]:
    process = start(project, **settings)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def calls(project: Path) -> list[str]:
    path = project.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_it_installs_once_and_again_when_the_pins_change(project: Path) -> None:
    for _ in range(2):
        code, out, err = run(project)
        assert (code, err) == (0, "")
        assert out.endswith(f"has {project}/.venv/bin/python\n")
    assert calls(project) == [f"pip in {project}: requirements-cpu.txt"]
    (project / "requirements-cpu.txt").write_text("other==1\n")
    assert run(project)[0] == 0
    assert len(calls(project)) == 2


def test_run_tests_installs_its_own_tools_in_addition(project: Path) -> None:
    program(project / "scripts" / "check", '#!/bin/bash\necho "checks $1"\n')
    (project / "run.sh").write_bytes((ROOT / "run_tests.sh").read_bytes())
    for _ in range(2):
        code, out, err = run(project)
        assert (code, err, out.splitlines()[-1]) == (0, "", "checks -q")
    assert calls(project) == [f"pip in {project}: requirements-{kind}.txt" for kind in ("cpu", "dev")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"PIP": "echo ERROR: no network >&2; exit 1"},
            "error: the installation failed, see above; run the same",
        ),
        ({"DAMAGED": "1"}, ".venv: cannot import the installed packages; remove this folder and run the same command"),
        ({"VENV": "echo No module named venv >&2; exit 1"}, "error: cannot make a virtual environment; on Debian"),
    ],
)
def test_what_fails_is_told_and_made_up_for(project: Path, settings: dict[str, str], sentence: str) -> None:
    code, out, err = run(project, **settings)
    assert code == 2 and "has " not in out
    assert sentence in err.splitlines()[-1]
    assert run(project)[0] == 0
    assert run(project)[0] == 0


def test_without_a_python_of_these_versions(project: Path) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python"):
        program(project.parent / "programs" / name, "#!/bin/bash\nexit 1\n")
    code, _, err = run(project)
    assert (code, err) == (2, "error: no Python 3.11, 3.12 or 3.13 found; install one and run the same command again\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to(project: Path) -> None:
    project.chmod(0o500)
    code, _, err = run(project)
    project.chmod(0o700)
    assert (
        code == 2 and err == f"error: {project}/.venv: cannot be written to; fix this and run the same command again\n"
    )


def test_a_file_in_the_place_of_the_environment(project: Path) -> None:
    (project / ".venv").write_text("")
    code, _, err = run(project)
    assert (
        code == 2 and err == f"error: {project}/.venv: cannot be written to; fix this and run the same command again\n"
    )


def test_one_installation_at_a_time_and_a_killed_one_is_run_again(project: Path) -> None:
    first = start(project, PIP='touch "$CALLS.running"; sleep 60')
    deadline = time.monotonic() + 30
    while not (project.parent / "calls.running").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    code, _, err = run(project)
    assert code == 2 and err.startswith(f"error: {project}/.venv: another process is working there; wait for it")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert run(project)[0] == 0
    assert len(calls(project)) == 2


def test_a_gpu_that_torch_cannot_use_is_told(project: Path) -> None:
    program(project.parent / "programs" / "nvidia-smi", "#!/bin/bash\n")
    code, out, err = run(project, NO_GPU="1")
    assert code == 0 and "Installing requirements.txt" in out
    assert len(err.splitlines()) == 1
    assert "warning: nvidia-smi answers, but torch cannot use the GPU" in err
    assert "driver 580" in err and "capability 7.5" in err
    (project / ".venv/installed-requirements.txt").unlink()
    assert run(project)[2] == ""


def test_one_quickstart_at_a_time(project: Path) -> None:
    (project / "run.sh").write_bytes((ROOT / "quickstart.sh").read_bytes())
    running = project / "runs/sample/.running"
    running.parent.mkdir(parents=True)
    with open(running, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = run(project)
    assert code == 2 and err.startswith("error: runs/sample: another process is working there; wait for it, then run")
