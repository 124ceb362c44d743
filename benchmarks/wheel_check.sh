#!/bin/sh
# Build the wheel, install it into an empty environment, and run commands away from the source.
# Fetches the dependencies, torch among them: minutes. PYTHON names the interpreter.
set -eu
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check build
"$work/env/bin/python" -m build --wheel --outdir "$work/dist" "$root"
"$python" -m venv --clear "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" \
    "$work"/dist/*.whl
cd "$work"
unset PYTHONPATH || true
"$work/env/bin/python" - "$root" <<'PY'
import pathlib, sys
import endprompt
assert pathlib.Path(sys.argv[1]) not in pathlib.Path(endprompt.__file__).parents, endprompt.__file__
PY
"$work/env/bin/endprompt" --version
"$work/env/bin/endprompt" --help >/dev/null
"$work/env/bin/endprompt" extend --help >/dev/null
"$work/env/bin/endprompt" methods --rows 20 --window 512 --to 4k
"$work/env/bin/endprompt" sft --help >/dev/null
if [ -n "${RUNS:-}" ]; then # the embedded model and text, and a training run: more minutes
    # LAB=90s begins no further arm of the laboratory after that time
    "$work/env/bin/endprompt" extend --to 10k --lengths 1k --needles 2 \
        --set rows.tokens=512 --set training.tokens=2048 --out "$work/run"
    "$work/env/bin/endprompt" lab --quick ${LAB:+--budget "$LAB"} --out "$work/lab"
fi
echo "wheel: ok"
