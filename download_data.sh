#!/usr/bin/env bash
# Download MS MARCO's and TREC's files to where preprocess.py reads them. With --models, download the published
# checkpoints too, which needs gdown. Everything else needs only bash and Python 3.9 or later:
#
#     bash download_data.sh                    # everything
#     bash download_data.sh passage --models   # one of the two, with its checkpoints
#     bash download_data.sh --help
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -IS -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || {
    echo "error: $python: Python 3.9 or later is needed; install it and run the same command again" >&2
    exit 2
}
exec "$python" "$here/download_data.py" "$@"
