#!/usr/bin/env bash
# Set up, then check everything: bash run_tests.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh
exec scripts/check "$@"
