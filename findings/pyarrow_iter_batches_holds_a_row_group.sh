#!/usr/bin/env bash
# pyarrow's `iter_batches(16)` reads all of a row group before the first batch comes, unless a buffer size is given.
#
# Expected: a reader of batches of 16 rows holds about 16 rows, or a page, whatever the size of the row group.
# Seen:     of a file of 200 MB in one row group, 10,000 values of 20 kB, the first 16 rows cost 250 MB. With
#           `ParquetFile(file, buffer_size=1 << 20)` they cost 50 MB, and all of it never more than 100 MB.
# Why:      without a buffer a column chunk is read whole, compressed as it is, before its pages are decoded.
# Matters:  files of images have row groups of gigabytes; workers that read them in small batches run out of memory,
#           and smaller batches do not help.
# Source:   pyarrow.parquet.ParquetFile's buffer_size; parquet::ReaderProperties::enable_buffered_stream.
. "$(dirname "$0")/_venv.sh"
pip 'pyarrow==22.0.0'
cat > "$folder/look.py" <<'PYTHON'
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

LOOK = """
import sys
import pyarrow.parquet as pq
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
start = resident()
file = pq.ParquetFile(open("x.parquet", "rb"), **eval(sys.argv[1]))
batches = file.iter_batches(16, use_threads=False)
next(batches)
first = most = resident() - start
for batch in batches:
    most = max(most, resident() - start)
print(round(first), round(most))
"""
print("pyarrow", pa.__version__)
pq.write_table(pa.table({"image": [os.urandom(20_000) for _ in range(10_000)]}), "x.parquet", row_group_size=10_000)
print(f"one row group of {os.path.getsize('x.parquet') / 1e6:.0f} MB")
seen = {}
for options in ("{}", "{'buffer_size': 1 << 20}"):
    output = subprocess.run([sys.executable, "-c", LOOK, options], capture_output=True, text=True, check=True).stdout
    seen[options] = [int(word) for word in output.split()]
    print(f"ParquetFile(file, **{options}): {seen[options][0]} MB at the first batch, {seen[options][1]} MB at most")
plain, buffered = seen.values()
assert plain[0] > 180 and buffered[1] < 150, "this has changed"
PYTHON
python look.py
