#!/usr/bin/env bash
# Ray writes messages of its own to the driver's standard output, also where it is told to log nothing there.
#
# Expected: with `log_to_driver=False` and `logging_level="ERROR"` the driver's stdout is the driver's; what Ray has to
#           tell goes to stderr or to its logs.
# Seen:     when an actor's process dies, lines that begin with "(raylet)" come out on stdout, coloured, although the
#           task is retried and succeeds; stderr has none of them.
# Why:      a thread of the driver listens to the cluster's error messages whatever `log_to_driver` says, and prints
#           them as a worker's output, to sys.stdout.
# Matters:  a program whose stdout is its result, such as JSON lines or CSV, writes a broken file on the day that a
#           worker runs out of memory or a spot machine goes. contextlib.redirect_stdout around the run helps.
# Source:   ray/_private/worker.py, listen_error_messages; ray.init's log_to_driver.
. "$(dirname "$0")/_venv.sh"
pip 'ray==2.60.0'
cat > "$folder/driver.py" <<'PYTHON'
import os
import signal

import ray

ray.init("local", num_cpus=1, log_to_driver=False, logging_level="ERROR", include_dashboard=False, _temp_dir="/tmp/ray")


@ray.remote(max_restarts=1, max_task_retries=1)
class Worker:
    def work(self, mark):
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"


worker = Worker.remote()
print(ray.get(worker.work.remote(os.path.abspath("mark"))), flush=True)
import time

time.sleep(5)
PYTHON
cat > "$folder/look.py" <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

print("ray", version("ray"))
result = subprocess.run([sys.executable, "driver.py"], capture_output=True, text=True, timeout=300)
print(f"exit code {result.returncode}; stdout:\n{result.stdout}")
assert result.returncode == 0 and "done" in result.stdout, result.stderr
assert "(raylet)" in result.stdout and "(raylet)" not in result.stderr, "this has changed"
PYTHON
python look.py
