#!/usr/bin/env bash
# fsspec's `cat` of a file whose name has brackets returns another file's content, without an error.
#
# Expected: `cat("photo [1].txt")` is the content of the file of that name; fsspec has `glob` for patterns.
# Seen:     every path of `cat` that has *, ? or [ in it is a pattern. A name with [1] does not match itself: the
#           answer is a dict with "photo 1.txt", also for one path, which otherwise gives the content alone, and the
#           file that was asked for is not in it. Where nothing matches, a file that is there is not found. `open` and
#           `cat_file` of the same path, and `cat_ranges`, take it for a name. The same on disk, in memory and in S3.
# Why:      `cat` goes through `expand_path`, which globs before it looks whether the path exists.
# Matters:  browsers name a second download "photo [1].jpg" or "photo[1].jpg"; who fetches a bucket by `cat` of what
#           `find` listed gets boxes, or rows, of another image. `cat_ranges(paths, None, None)` is the way around.
# Source:   fsspec's AsyncFileSystem._cat and AbstractFileSystem.cat, expand_path.
. "$(dirname "$0")/_venv.sh"
pip 'fsspec==2026.9.0'
cat > "$folder/look.py" <<'PYTHON'
import tempfile

import fsspec

print("fsspec", fsspec.__version__)
for kind, folder in (("file", tempfile.mkdtemp(dir=".")), ("memory", "/folder")):
    files = fsspec.filesystem(kind)
    for name in ("photo 1", "photo [1]", "scan [2]"):
        files.pipe_file(f"{folder}/{name}.txt", name.encode())
    asked = [path for path in files.find(folder) if "[1]" in path]
    (several,) = files.cat(asked).items()
    try:
        files.cat(f"{folder}/scan [2].txt")
        alone = "found"
    except FileNotFoundError:
        alone = "FileNotFoundError"
    seen = {
        "asked for": asked[0].rsplit("/", 1)[-1],
        "cat of a list": (several[0].rsplit("/", 1)[-1], several[1]),
        "cat of the path": [path.rsplit("/", 1)[-1] for path in files.cat(asked[0])],
        "cat of 'scan [2].txt'": alone,
        "cat_file": files.cat_file(asked[0]),
        "cat_ranges": files.cat_ranges(asked, None, None)[0],
    }
    print(kind, seen)
    assert list(seen.values()) == [
        "photo [1].txt",
        ("photo 1.txt", b"photo 1"),
        ["photo 1.txt"],
        "FileNotFoundError",
        b"photo [1]",
        b"photo [1]",
    ], "this has changed"
PYTHON
python look.py
