import json
from pathlib import Path

from click.testing import CliRunner

from retinaserve.scripts.cli.learn.train import profile
from retinaserve.scripts.shapes.draw import draw_dataset


def test_every_loader_and_precision_gets_a_row(tmp_path: Path) -> None:
    shapes = draw_dataset(tmp_path / "shapes", images=4, seed=0)
    flags = ["--images", str(shapes.images), "--annotations", str(shapes.annotations), "--seconds", "0.1"]
    flags += ["--width", "8", "--fpn-channels", "8", "--size", "64", "64", "--batch", "1", "--batch", "2"]
    result = CliRunner().invoke(profile, [*flags, "--train-batch", "2", "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    loading = [(row["loader"], row["batch"]) for row in rows if row["what"] == "loading"]
    training = [(row["loader"], row["precision"]) for row in rows if row["what"] == "training"]
    assert loading == [("torch", 1), ("dali", 1), ("torch", 2), ("dali", 2)]
    assert training == [("torch", "fp32"), ("dali", "fp32"), ("torch", "bf16"), ("dali", "bf16")]
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)
    assert len(result.stdout.splitlines()) == 9
