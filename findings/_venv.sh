# Sourced by each finding: a temporary folder with an empty virtual environment of its own, removed at the end.
#   pip 'openvino==2026.4.1'; python script.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for interpreter in python3.11 python3.12 python3; do "$interpreter" -c '' 2>/dev/null && break; done
"$interpreter" -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }
python() { (cd "$folder" && "$folder/venv/bin/python" "$@"); }
