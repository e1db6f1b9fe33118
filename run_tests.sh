#!/usr/bin/env bash
# Set up, then check everything: bash run_tests.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh
install_pins requirements-dev.txt "hypothesis, mypy, pytest, pytest_cov, xdist" || exit 2
exec scripts/check "$@"
