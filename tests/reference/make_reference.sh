#!/usr/bin/env bash
# Makes the reference data again from nothing: an environment for the original code, the gin files of the t5 wheel, and
# recreate.py --check, which fails if the result differs from the stored data.
#
#   make_reference.sh BUILD_DIR [NAME ...]     NAME: as recreate.py --list shows them; everything if none is given
#
# BUILD_DIR keeps the environment (about 2 GB) and the downloads, so that a second call starts at once.
set -euo pipefail

t5_version=0.9.4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ $# -lt 1 ]]; then
    echo "usage: make_reference.sh BUILD_DIR [NAME ...]" >&2
    exit 2
fi
mkdir -p "$1"
build=$(cd "$1" && pwd)
shift

find_python() {
    local candidate is_python_3_11='import sys; sys.exit(sys.version_info[:2] != (3, 11))'
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        if [[ -n $candidate ]] && "$candidate" -c "$is_python_3_11" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "The original code needs Python 3.11: install it, or name it with PYTHON=/path/to/python3.11." >&2
    return 1
}

python=$build/venv/bin/python
if ! cmp --silent "$here/requirements.txt" "$build/venv/installed.txt"; then
    interpreter=$(find_python)
    "$interpreter" -m venv --clear "$build/venv"
    "$python" -m pip install --quiet --requirement "$here/requirements.txt"
    # Copied last: a half-installed environment is made again.
    cp "$here/requirements.txt" "$build/venv/installed.txt"
fi

gin_root=$build/t5-$t5_version/t5/models/gin
if [[ ! -d $gin_root ]]; then
    "$python" -m pip download --quiet --no-deps --dest "$build" "t5==$t5_version"
    # Only the gin files: the wheel's code is not run, and its dependencies are not wanted.
    "$python" - "$build/t5-$t5_version-py2.py3-none-any.whl" "$build/t5-$t5_version" <<'END'
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.endswith(".gin")])
END
fi

"$python" "$here/recreate.py" --check --gin-root "$gin_root" --out "$build/recreated" "$@"
