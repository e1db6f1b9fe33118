#!/usr/bin/env bash
# Set up, then run the tests: bash run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh
"$python" -m ruff check .
exec "$python" -m pytest "$@"
