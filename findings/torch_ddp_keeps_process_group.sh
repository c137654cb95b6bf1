#!/usr/bin/env bash
# After DistributedDataParallel was used once, destroy_process_group() leaves gloo's threads running.
#
# Expected: without the model, destroy_process_group() ends the group and its threads.
# Seen:     it does if no DistributedDataParallel was built; otherwise the group object lives on, held by default
#           arguments of functions that torch imports then, and its threads with it.
# Matters:  a thread of gloo that still works while Python shuts down takes the whole process with it after training
#           has succeeded: "the job failed" with every file written.
. "$(dirname "$0")/_venv.sh"
pip 'torch==2.13.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import gc
import os
import sys
import tempfile
import weakref

import torch
import torch.distributed as dist


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def left_over(*, parallel: bool) -> tuple[bool, bool]:
    """Whether the group and threads of it outlive destroy_process_group()."""
    before = threads()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        group = weakref.ref(dist.group.WORLD)
        if parallel:
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            model(torch.zeros(1, 2)).sum().backward()
            del model
        dist.destroy_process_group()
        gc.collect()
    return group() is not None, threads() > before


torch.set_num_threads(1)
(torch.nn.Linear(2, 2)(torch.zeros(1, 2))).sum().backward()  # autograd's own thread, before counting
seen = {"group": left_over(parallel=False), "DistributedDataParallel": left_over(parallel=True)}
print(f"torch {torch.__version__}: (group lives, threads live) after destroy_process_group(): {seen}")
sys.exit(list(seen.values()) != [(False, False), (True, True)])
PYTHON
python look.py
