#!/usr/bin/env bash
# The first day with a GPU in one command: bash experiments/gpu_day.sh [OUT_DIR] [--dry-run] [--only bench,attention]
# Installs nothing. PYTHON chooses the interpreter, else that of .venv, else python3. More: docs/gpu_day.md
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(if test -x "$root/.venv/bin/python"; then echo "$root/.venv/bin/python"; else echo python3; fi)}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m experiments.gpu_day "$@"
