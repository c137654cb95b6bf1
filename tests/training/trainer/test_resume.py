"""Killed at any moment, a run goes on to the weights it would have had."""

import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import torch

from retinaserve.training.checkpoint import load
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.trainer.config import TrainConfig
from retinaserve.training.trainer.trainer import Trainer
from tests.training.squares import QUICK, SPEC, draw

# Every kind of state: an average, momenta, a schedule, the order and the views of pictures.
CONFIG = replace(QUICK, iterations=30, ema=0.9, augment="photometric", save_every=2, report_every=1, val_every=7)


def work(path: Path, folder: Path, config: TrainConfig) -> None:
    torch.set_num_threads(1)
    data = CocoDataset(folder, folder / "annotations.json")
    Trainer(SPEC, config).fit(path, data, validation=data)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    data = draw(tmp_path / "set", 5)
    whole, killed = tmp_path / "whole.pth", tmp_path / "killed.pth"
    started = time.monotonic()
    Trainer(SPEC, CONFIG).fit(whole, data, validation=data)
    seconds = time.monotonic() - started

    # A server that has imported torch, and computed nothing yet, forks the victims in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retinaserve.training.trainer.trainer", "tests.training.trainer.test_resume"])
    rng, kills = random.Random(0), 0
    for _ in range(40):
        process = context.Process(target=work, args=(killed, tmp_path / "set", CONFIG))
        process.start()
        process.join(rng.uniform(0.1, 0.9) * seconds if kills < 5 else None)
        if process.exitcode == 0:
            break
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
    assert process.exitcode == 0 and kills > 0
    assert not list(tmp_path.glob(".killed*")), "what was half written is gone"
    first, second = load(whole), load(killed)
    assert second.iteration == 30
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, second.weights[name]), name
    for name, tensor in first.training["model"].items():
        assert torch.equal(tensor, second.training["model"][name]), name
    assert first.training["ema_updates"] == second.training["ema_updates"] == 30
    assert torch.equal(first.training["random"], second.training["random"])
    momenta = first.training["optimizer"]["state"], second.training["optimizer"]["state"]
    for index, moments in momenta[0].items():
        assert all(torch.equal(value, momenta[1][index][key]) for key, value in moments.items())
