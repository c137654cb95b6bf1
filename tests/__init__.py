"""The tests. Threads of a library would fight over the cores with the other process, and starve."""

import os

for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # of torch and OpenVINO, of hotcoco
    os.environ.setdefault(name, "1")
