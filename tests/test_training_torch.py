"""Batches of torch tensors, and the example that trains on them; without torch: what is said then."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_data import numbered

import rayds

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_torch.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: make test-torch")


class TestTorch:
    @needs_torch
    def test_tensors_with_channels_first(self):
        import torch

        batches = list(
            numbered(5).iter_torch_batches(
                2, resize=(8, 9), targets="detection", device="cpu", drop_last=True
            )
        )
        assert len(batches) == 2
        image = batches[0]["image"]
        assert image.dtype == torch.uint8
        assert tuple(image.shape) == (2, 3, 8, 9)
        assert batches[1]["image"][:, 0, 0, 0].tolist() == [2, 3]
        assert [tuple(b.shape) for b in batches[0]["boxes"]] == [(0, 4), (1, 4)]
        assert batches[0]["labels"][1].dtype == torch.int64
        assert batches[0]["id"] == ["000", "001"]
        [ragged] = numbered(2).iter_torch_batches(2)
        assert [tuple(im.shape) for im in ragged["image"]] == [(3, 20, 30), (3, 21, 30)]

    @needs_torch
    def test_a_collate_function_decides(self):
        import torch

        def collate(batch: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
            assert batch["image"].shape == (3, 4, 4, 3)
            images = torch.from_numpy(batch["image"]).float()
            return images, [{"boxes": torch.from_numpy(b)} for b in batch["boxes"]]

        made = numbered(3).iter_torch_batches(
            3, resize=4, targets="detection", collate=collate, device="meta"
        )
        [(images, targets)] = made
        assert {images.device.type, targets[0]["boxes"].device.type} == {"meta"}

    def test_without_torch_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(rayds.UsageError, match=r"needs torch.*rayds\[torch\]"):
            numbered(1).iter_torch_batches(1)
        code = "import rayds, sys; d = rayds.Dataset.from_iterable([rayds.DatasetItem('a')]); "
        code += "next(d.iter_batches(1, decode=False)); d.worker_shard(); print({'ray', 'torch'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("feed", ["shards", "ray"])
def test_the_example_learns(tmp_path, feed):
    words = [sys.executable, str(EXAMPLE), str(tmp_path), "--feed", feed, "--epochs", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
