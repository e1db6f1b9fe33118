# Sourced by quickstart.sh and run_tests.sh: makes .venv beside this file, once, and sets $python to its Python.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$project/.venv/bin/python"

find_python() { # the first of the usual names that is a version the requirements are pinned for
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 found; install one and run this again" >&2
    return 2
}

set_up() {
    local requirements=requirements-cpu.txt found installed
    if nvidia-smi >/dev/null 2>&1; then requirements=requirements.txt; fi
    installed="$project/.venv/installed-$requirements"
    # The pins are kept beside what they installed: an update of the project with other pins installs again.
    if cmp -s "$project/$requirements" "$installed" && [ -x "$python" ]; then return; fi
    found=$(find_python) || return
    echo "Installing $requirements into $project/.venv with $("$found" --version)"
    # pip, not python: a venv that failed half-way, as on Debian without python3-venv, has the one without the other.
    "$python" -m pip --version >/dev/null 2>&1 || "$found" -m venv "$project/.venv" || {
        echo "error: no virtual environment could be made; on Debian and Ubuntu 'apt install python3-venv' helps" >&2
        return 2
    }
    (cd "$project" && "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements") || {
        echo "error: the installation failed, see above; run this again to go on" >&2
        return 2
    }
    cp "$project/$requirements" "$installed"
}

set_up || exit 2
