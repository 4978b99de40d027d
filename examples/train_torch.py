"""Trains a small network with Ray Train on two workers that read a rayds dataset; the loss must go down.

usage: python examples/train_torch.py [FOLDER] [--feed shards|ray] [--epochs 3] [--workers 2] [--address ADDRESS]

It makes its own dataset (300 images of shapes; FOLDER, default: a temporary one) and needs no GPU and no network. It
needs `pip install 'rayds[train]'`. Two ways to feed the workers:

- shards: each worker reads and decodes its own shard on its threads (`Dataset.worker_shard`). The simplest; best where
  the machines that train have cores to spare.
- ray: Ray Data decodes on any core of the cluster and streams to the workers (`Dataset.to_ray`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import rayds as dm

LABELS = ("circle", "square", "triangle")
SIDE, BATCH = 48, 20


def make_dataset(folder: Path, images: int = 300) -> None:
    """Shapes on noise, one an image, each with its label, in rayds' own format."""
    rng = np.random.default_rng(0)

    def draw(label: int) -> dm.Image:
        image = rng.integers(0, 90, (96, 128, 3), np.uint8)
        (x, y), r = rng.integers([32, 32], [96, 64]), int(rng.integers(16, 30))
        colour = rng.integers(120, 255, 3).tolist()
        if label == 0:
            cv2.circle(image, (int(x), int(y)), r, colour, -1)
        else:
            turn = rng.uniform(0, 2 * np.pi) + np.arange(5 - label) * 2 * np.pi / (5 - label)
            points = np.stack([x + r * np.cos(turn), y + r * np.sin(turn)], 1)
            cv2.fillPoly(image, [np.int32(points)], colour)
        return dm.Image.from_bytes(cv2.imencode(".jpg", image)[1].tobytes())

    items = (
        dm.DatasetItem(f"{i:04d}", subset="train", media=draw(i % 3), annotations=[dm.Label(i % 3)])
        for i in range(images)
    )
    dm.Dataset.from_iterable(items, LABELS, engine="local").export(str(folder), "rayds", embed=True)


def batches(config: dict[str, Any], epoch: int) -> Iterator[tuple[Any, Any]]:
    """(images [B, 3, H, W] uint8, labels [B]) of this worker for an epoch: as many batches on every worker."""
    import ray.train

    world = ray.train.get_context().get_world_size()
    dataset = dm.Dataset.import_from(config["data"]).get_subset("train")
    if config["feed"] == "shards":
        steps = min(dataset.shard_sizes(world)) // BATCH
        made = dataset.worker_shard().iter_torch_batches(
            BATCH,
            resize=(SIDE, SIDE),
            targets="classification",
            shuffle="global",
            epoch=epoch,
            drop_last=True,
        )
        for _, batch in zip(range(steps), made, strict=False):
            yield batch["image"], batch["label"]
    else:  # the same number of rows on every worker is Ray's own doing
        stream = ray.train.get_dataset_shard("train")  # without text columns, which torch can't hold
        for batch in stream.iter_torch_batches(
            batch_size=BATCH, drop_last=True, local_shuffle_buffer_size=100
        ):
            yield batch["image"].permute(0, 3, 1, 2), batch["label"]


def train(config: dict[str, Any]) -> list[float]:
    """What each worker runs: the mean loss of each epoch."""
    import ray.train
    import ray.train.torch
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.LazyLinear(len(LABELS)))
    model(torch.zeros(1, 3, SIDE, SIDE))  # tells the last layer its size
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for epoch in range(config["epochs"]):
        total, steps = 0.0, 0
        for images, labels in batches(config, epoch):
            loss = nn.functional.cross_entropy(model(images.float() / 255), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
        losses.append(total / max(1, steps))
        ray.train.report({"epoch": epoch, "steps": steps, "loss": losses[-1]})
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--feed", choices=("shards", "ray"), default="shards")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--address", default="local", help="of a Ray cluster; FOLDER must be on its shared storage"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rt-") as temporary:
        folder = Path(args.folder or temporary) / "shapes"
        if not folder.exists():
            make_dataset(folder)
        connect(args.address, args.workers)
        losses = fit(
            str(folder.absolute()), args.feed, args.epochs, args.workers, str(folder.parent.absolute())
        )
    for epoch, loss in enumerate(losses):
        print(f"epoch {epoch}: loss {loss:.3f}")
    return 0 if losses[-1] < losses[0] else 1


def connect(address: str, workers: int) -> None:
    """Connect to a cluster, or start a private one with a few more logical CPUs than workers, whatever the machine has."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if address != "local":
        ray.init(address)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing listens beyond this machine
        ray.init(address, num_cpus=workers + 2, include_dashboard=False, log_to_driver=False)


def fit(data: str, feed: str, epochs: int, workers: int, storage: str) -> list[float]:
    """Train; returns the mean loss of each epoch on the first worker."""
    import ray.train.torch

    datasets = {}
    if feed == "ray":
        dataset = dm.Dataset.import_from(data, engine="ray").get_subset("train")
        made = dataset.to_ray(columns=(), decode=True, resize=(SIDE, SIDE), targets="classification")
        datasets = {"train": made}
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"data": data, "feed": feed, "epochs": epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(name="shapes", storage_path=storage),
        datasets=datasets,
    )
    losses: list[float] = trainer.fit().return_value  # what the first worker returned
    return losses


if __name__ == "__main__":
    sys.exit(main())
