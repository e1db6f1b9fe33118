# Sourced by quickstart.sh and run_tests.sh. Makes .venv beside this file once, and sets $python to its Python.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$project/.venv/bin/python"

refuse() { # print an error that the user can fix, and return its exit code
    echo "error: $1" >&2
    return 2
}

alone() { # alone FOLDER: make it, and lock it until this script and every process it started have ended
    { mkdir -p "$1" && : >>"$1/.running" && exec 9>>"$1/.running"; } 2>/dev/null ||
        refuse "$1: cannot be written to; fix this and run the same command again" || return
    if command -v flock >/dev/null && ! flock -n 9; then # macOS has none
        refuse "$1: another process is working there; wait for it, then run the same command again"
    fi
}

find_python() { # print the first of the usual names whose version suits the pinned requirements
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    refuse "no Python 3.11, 3.12 or 3.13 found; install one and run the same command again"
}

set_up() {
    local requirements=requirements-cpu.txt
    if nvidia-smi >/dev/null 2>&1; then requirements=requirements.txt; fi
    install_pins $requirements "bm25s, faiss, ir_measures, torch, transformers"
}

install_pins() { # install_pins FILE MODULES: install the packages that FILE pins unless that is done; import MODULES
    local requirements=$1 found installed="$project/.venv/installed-$1"
    # A copy of the pins lies beside what they installed. If an update changes the pins, we install again.
    if cmp -s "$project/$requirements" "$installed" && [ -x "$python" ]; then return; fi
    found=$(find_python) || return
    alone "$project/.venv" || return
    echo "Installing $requirements into $project/.venv with $("$found" --version)"
    # We test pip, not python: a venv that failed half-way, as on Debian without python3-venv, has python without pip.
    "$python" -m pip --version >/dev/null 2>&1 || "$found" -m venv "$project/.venv" ||
        refuse "cannot make a virtual environment; on Debian and Ubuntu, 'apt install python3-venv' helps" || return
    (cd "$project" && "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements") ||
        refuse "the installation failed, see above; run the same command again to resume" || return
    # A killed pip may leave half a package, which the next pip takes for installed.
    "$python" -c "import $2" >/dev/null 2>&1 ||
        refuse "$project/.venv: cannot import the installed packages; remove this folder and run the same command again" || return
    cp "$project/$requirements" "$installed"
    exec 9>&-
    if [ "$requirements" = requirements.txt ]; then check_gpu; fi
}

check_gpu() { # nvidia-smi answers: warn if torch cannot use its GPU
    "$python" - 2>/dev/null <<'END' || echo "warning: nvidia-smi answers, but torch cannot use the GPU and runs on the" \
        "CPU; the CUDA build of torch 2.13 needs NVIDIA's driver 580 or later and a GPU of compute capability" \
        "7.5 or higher (Turing or later)" >&2
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
raise SystemExit(not any(torch.cuda.get_device_capability(gpu) >= (7, 5) for gpu in range(count)))
END
}

set_up || exit 2
