"""The measurement of scoring on a set of a few images: it runs, and its numbers are not trivial."""

import json
import subprocess
import sys
from pathlib import Path

from retinaserve.scripts.lab import scoring


def test_the_stages_run_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, scoring.__file__, tmp_path, "--images", "20", "--classes", "3", "--per-image", "10"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    scores, report = map(json.loads, done.stdout.splitlines())
    assert (scores["stage"], report["stage"]) == ("scores", "report")
    assert 0 < scores["found"][0] < 1 and len(scores["found"]) == 12
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["scores"]["detections"] == 200 and written["scores"]["ap"] == scores["found"][0]
    assert scores["megabytes"] > 20 and report["seconds"] > 0
