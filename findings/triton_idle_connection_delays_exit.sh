#!/usr/bin/env bash
# An idle keep-alive connection holds up tritonserver's exit for the whole of --exit-timeout-secs, and makes it fail.
#
# Expected: after SIGTERM a server without a request in flight ends at once with status 0.
# Seen:     with one HTTP connection open that asked for readiness long ago, it waits the whole timeout (default 30 s)
#           and exits with status 1: "Exit timeout expired".
# Matters:  a gateway or browser with kept connections turns every rolling update into a killed pod: the grace period
#           has to be longer than the timeout, or clients have to close.
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import http.client
import sys
import time

from _triton import triton

CONFIG = """
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
"""
EXECUTE = "        return []\n"
TIMEOUT = 6


def seconds_to_exit(*, connected: bool) -> tuple[float, int]:
    with triton({"model": (CONFIG, EXECUTE)}, f"--exit-timeout-secs={TIMEOUT}") as server:
        connection = http.client.HTTPConnection(server.http)
        connection.request("GET", "/v2/health/ready")
        connection.getresponse().read()
        if not connected:
            connection.close()
        time.sleep(2)
        start = time.monotonic()
        server.process.terminate()
        status = server.process.wait()
        connection.close()
        return time.monotonic() - start, status


closed, idle = seconds_to_exit(connected=False), seconds_to_exit(connected=True)
print(f"tritonserver 2.51.0 of nvidia-pytriton 0.7.0, --exit-timeout-secs={TIMEOUT}: closed: {closed[0]:.1f} s, status")
print(f"{closed[1]}; one idle connection: {idle[0]:.1f} s, status {idle[1]}")
sys.exit(not (closed[0] < TIMEOUT / 2 and closed[1] == 0 and idle[0] >= TIMEOUT and idle[1] != 0))
PYTHON
python ask.py
