"""What a finished run is good for: sampling, validation, calibration, distillation, export."""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from decentral.bench import diffusion as bench
from decentral.dataflow.alone import run_alone
from decentral.dataflow.program import Arrays
from decentral.diffusion.calibration import calibrate
from decentral.diffusion.ensemble import Ensemble, noise
from decentral.diffusion.evaluation import validation_losses
from decentral.diffusion.exported import export, load
from decentral.diffusion.program import DiffusionProgram
from decentral.diffusion.recipe import tiny
from decentral.diffusion.sampling import How, sample
from decentral.errors import CorruptCheckpointError


@pytest.fixture(scope="module")
def program() -> DiffusionProgram:
    """The tiny run, longer, and with a student."""
    plain = tiny(0)
    config = dataclasses.replace(plain.config, rounds=8, steps=50, student_rounds=8)
    return DiffusionProgram(plain.images, config, 0)


@pytest.fixture(scope="module")
def states(program: DiffusionProgram) -> Mapping[str, Arrays]:
    return run_alone(program)


@pytest.fixture(scope="module")
def ensemble(program: DiffusionProgram, states: Mapping[str, Arrays]) -> Ensemble:
    return Ensemble(program, states)


def test_samples_look_more_like_images_than_noise_does(ensemble: Ensemble) -> None:
    classes = np.arange(400) % 4
    begin = noise(400, 16, 0)
    real = ensemble.space.decode(ensemble.space.encode(ensemble.program.images.test[:400]))

    def distance(x: np.ndarray) -> float:
        made = ensemble.space.decode(x)
        return float(np.abs(made.mean(axis=0) - real.mean(axis=0)).mean())

    x = sample(ensemble.experts(), begin, classes, How(steps=20))
    assert x.shape == begin.shape and x.dtype == np.float32
    assert distance(x) < 20, "of 255, mean image against mean image"
    np.testing.assert_array_equal(x, sample(ensemble.experts(), begin, classes, How(steps=20)))


def test_every_way_gives_a_validation_loss_and_oracle_is_best(ensemble: Ensemble) -> None:
    images = ensemble.program.images
    losses = validation_losses(ensemble, images.test, images.test_labels)
    assert losses["oracle"] < losses["full"] < losses["top-1"]
    assert losses["full"] < 1.5, "untrained, it is 2"


def test_calibration_does_not_worsen_what_it_minimizes(ensemble: Ensemble) -> None:
    images = ensemble.program.images
    found = calibrate(ensemble, images.test, images.test_labels)
    assert found.nats[1] <= found.nats[0] + 1e-6
    assert found.accuracy > 0.4, "a quarter is chance"
    sharp = Ensemble.__new__(Ensemble)
    sharp.__dict__.update(ensemble.__dict__)
    sharp.logits = lambda x, t, c: 3 * ensemble.logits(x, t, c)  # type: ignore[method-assign]
    overconfident = calibrate(sharp, images.test, images.test_labels)
    assert overconfident.temperature == pytest.approx(3 * found.temperature, rel=0.02)
    assert overconfident.error[1] < overconfident.error[0]


def test_a_temperature_flattens_the_router(
    program: DiffusionProgram, states: Mapping[str, Arrays], ensemble: Ensemble
) -> None:
    x, t, c = noise(50, 16, 0), np.full(50, 0.5, np.float32), np.zeros(50, np.int64)
    flat = Ensemble(program, states, temperature=4.0).route(x, t, c)
    assert (flat.max(axis=1) < ensemble.route(x, t, c).max(axis=1)).all()
    np.testing.assert_allclose(flat.sum(axis=1), 1, rtol=1e-5)


def test_a_peer_serves_what_it_holds(
    program: DiffusionProgram, states: Mapping[str, Arrays], ensemble: Ensemble
) -> None:
    part = Ensemble(program, {name: states[name] for name in ("clusters", "expert/2")})
    assert list(part.held) == [2]
    x, t, c = noise(5, 16, 0), np.full(5, 0.5, np.float32), np.zeros(5, np.int64)
    np.testing.assert_array_equal(part.velocity(2, x, t, c), ensemble.velocity(2, x, t, c))
    with pytest.raises(KeyError):
        part.velocity(1, x, t, c)
    with pytest.raises(KeyError):
        part.route(x, t, c)


def test_the_student_learns_the_ensembles_flow(
    program: DiffusionProgram, states: Mapping[str, Arrays], ensemble: Ensemble, tmp_path: Path
) -> None:
    """Exported and loaded again, it has a validation loss not far from its teachers'."""
    path = export(program, states["clusters"], states["student"], tmp_path / "student")
    assert path.name == "student.safetensors"
    network, space = load(path)
    images = program.images
    np.testing.assert_array_equal(space.encode(images.test), ensemble.space.encode(images.test))
    x0 = torch.from_numpy(space.encode(images.test))
    t = torch.linspace(0, 1, len(x0))
    eps = torch.from_numpy(noise(len(x0), 16, 1))
    x = (1 - t[:, None]) * x0 + t[:, None] * eps
    labels = torch.tensor(images.test_labels).long()
    with torch.no_grad():
        student = float((network(x, t, labels) - (eps - x0)).square().mean())
    full = validation_losses(ensemble, images.test, images.test_labels, ("full",))["full"]
    assert student < 1.15 * full


def test_a_foreign_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(CorruptCheckpointError):
        load(path)


def test_the_bench_compares_rows_and_remembers_them(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = (
        "--images shapes --steps 100 --samples 100 --seeds 1 --rows monolith k4 k4-rate3 two-peers"
    )
    args = parser.parse_args([*words.split(), "distilled", "dead", "--work", str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = bench.measure(args)
    by_row = {(one["row"], one["way"]): one for one in report["results"]}
    assert by_row["monolith", "sticky"]["fid_ratio"] == 1
    assert by_row["k4", "full"]["loss_ratio"] > 0
    assert by_row["two-peers", "sticky"]["against"] == "k4-rate3"
    assert by_row["dead", "full, without 3"]["fid"] > 0
    assert report["floor"]["fid"] < by_row["monolith", "sticky"]["fid"]
    runs = {run["row"]: run for run in report["runs"]}
    del runs["dead"]
    flops = {name: sum(run["training_flops"].values()) for name, run in runs.items()}
    assert 0.9 < flops["k4"] / flops["monolith"] <= 1
    assert flops["two-peers"] == pytest.approx(flops["k4"], rel=0.1)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.dumps(bench.measure(args)["runs"]) == json.dumps(report["runs"])
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines
    assert json.loads(lines[0])["row"] == "monolith"
