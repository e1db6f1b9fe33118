#!/usr/bin/env bash
# Set up, then run the tests: bash run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh
"$python" -m ruff check .
"$python" -m ruff format --check .
# Two test files at a time: most of a test is the start of Python with torch.
exec "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
