#!/usr/bin/env bash
# kubernetes-validate, also with --strict, says yes to a Deployment that no cluster accepts.
#
# Expected: quantities, ports and labels are part of the API's rules: "4 Gi", port 99999 or labels that the selector does
#           not match are refused.
# Seen:     "passed": the schemas know types and field names; an unknown field is refused, a wrong value is not.
# Matters:  manifests of servers are checked in CI by such a tool; the first apply fails. Check quantities, selectors and
#           references between objects by a test of your own, or by kubectl apply --dry-run=server on a cluster.
. "$(dirname "$0")/_venv.sh"
pip 'kubernetes-validate==1.37.0'
cat > "$folder/look.py" <<'PYTHON'
import subprocess
import sys
from pathlib import Path

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: detector}
spec:
  selector: {matchLabels: {app: detector}}
  template:
    metadata: {labels: {app: another}}
    spec:
      containers:
      - name: server
        image: tritonserver
        ports: [{containerPort: 99999}]
        resources: {limits: {memory: 4 Gi, cpu: two}, requests: {memory: 8Gi}}
        volumeMounts: [{name: nowhere, mountPath: /models}]
"""


def check(text: str) -> int:
    Path("deployment.yaml").write_text(text)
    tool = Path(sys.executable).with_name("kubernetes-validate")
    return subprocess.run([tool, "--strict", "deployment.yaml"], capture_output=True).returncode


seen = check(MANIFEST), check(MANIFEST.replace("containerPort", "containerPorts"))
print(f"kubernetes-validate 1.37.0 --strict: five wrong values: status {seen[0]}; a wrong field: status {seen[1]}")
sys.exit(seen != (0, 1))
PYTHON
python look.py
