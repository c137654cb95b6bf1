from typing import Any

from retinaserve.scripts.lab.peers import boxes_ms, table


def row(model: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    curve = {"points": [{"minutes": minutes, "ap": ap, "ap50": ap} for minutes, ap in points]}
    return {"set": "cells", "model": model, "curve": curve, "export": {}, "time": {}, **more}


def test_a_peer_is_taken_by_the_faster_of_its_two_ways() -> None:
    timed = {"int8": {"network alone": [3.0], "its NMS in torch": [5.0, 9.0, 6.0], "its NMS in the graph": [7.0]}}
    assert boxes_ms(timed, "int8") == 6.0
    assert boxes_ms(timed, "fp32") is None


def test_minutes_to_the_peer_are_those_of_the_first_score_as_good() -> None:
    ours = row("fast-n", (1, 0.3), (2, 0.5), (3, 0.45), (8, 0.6), export={"int8": {"ap": 0.59}})
    ours["time"] = {"int8": {"boxes": [2.5], "network alone": [2.0]}}
    found = table([row("yolo11n", (1, 0.1), (8, 0.44)), ours]).splitlines()
    assert found[2] == "| cells, yolo11n | 8.0 | 0.440 | 0.440 | 8.0 |  |  |  |  |  |"
    assert found[3] == "| cells, fast-n | 8.0 | 0.600 | 0.600 | 2.0 | 0.590 |  |  | 2.50 | 2.00 |"
    worse = table([row("yolo11n", (8, 0.7)), ours]).splitlines()
    assert worse[3].startswith("| cells, fast-n | 8.0 | 0.600 | 0.600 |  |")
