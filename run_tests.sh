#!/usr/bin/env bash
# Set up, then check everything: bash run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh
exec scripts/check "$@"
