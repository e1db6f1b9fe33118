# Sourced by quickstart.sh and run_tests.sh: makes .venv beside this file, once, and sets $python to its Python.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$project/.venv/bin/python"

refuse() { # one sentence, and the exit code for what the person at the shell can put right
    echo "error: $1" >&2
    return 2
}

alone() { # alone FOLDER: make it, and hold a lock in it until the end of this script, or of what it has started
    { mkdir -p "$1" && : >>"$1/.running" && exec 9>>"$1/.running"; } 2>/dev/null ||
        refuse "$1: cannot be written to; fix this and run this again" || return
    if command -v flock >/dev/null && ! flock -n 9; then # macOS has none
        refuse "$1: another process is at work there; wait for it, then run this again"
    fi
}

find_python() { # the first of the usual names that is a version the requirements are pinned for
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    refuse "no Python 3.11, 3.12 or 3.13 found; install one and run this again"
}

set_up() {
    local requirements=requirements-cpu.txt found installed
    if nvidia-smi >/dev/null 2>&1; then requirements=requirements.txt; fi
    installed="$project/.venv/installed-$requirements"
    # The pins are kept beside what they installed: an update of the project with other pins installs again.
    if cmp -s "$project/$requirements" "$installed" && [ -x "$python" ]; then return; fi
    found=$(find_python) || return
    alone "$project/.venv" || return
    echo "Installing $requirements into $project/.venv with $("$found" --version)"
    # pip, not python: a venv that failed half-way, as on Debian without python3-venv, has the one without the other.
    "$python" -m pip --version >/dev/null 2>&1 || "$found" -m venv "$project/.venv" ||
        refuse "no virtual environment could be made; on Debian and Ubuntu 'apt install python3-venv' helps" || return
    (cd "$project" && "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements") ||
        refuse "the installation failed, see above; run this again to go on" || return
    # A pip that was killed may have left half a package, which the next one takes for installed.
    "$python" -c 'import bm25s, faiss, ir_measures, torch, transformers' >/dev/null 2>&1 ||
        refuse "$project/.venv: what was installed cannot be imported; remove this folder and run this again" || return
    cp "$project/$requirements" "$installed"
    exec 9>&-
    if [ "$requirements" = requirements.txt ]; then check_gpu; fi
}

check_gpu() { # nvidia-smi answers: say so if torch cannot use what it found
    "$python" - 2>/dev/null <<'END' || echo "warning: nvidia-smi answers, but torch cannot use the GPU, so the CPU does" \
        "all the work; the CUDA build of torch 2.13 needs NVIDIA's driver 580 or later and a GPU of compute capability" \
        "7.5 or higher (Turing or later)" >&2
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
raise SystemExit(not any(torch.cuda.get_device_capability(gpu) >= (7, 5) for gpu in range(count)))
END
}

set_up || exit 2
