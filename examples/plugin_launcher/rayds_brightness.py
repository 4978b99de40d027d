"""brightness: calls images dark or bright. An example of a launcher plug-in for rayds, complete.

The "model" is a mean and a threshold; a real one is loaded in `load` and asked in `infer`, at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2

import rayds
from rayds.launcher import Pixels


class Brightness(rayds.Launcher):
    """Labels every image dark or bright by the mean of its grey values, which becomes the attribute `mean`."""

    name = "brightness"
    title = "dark or bright, by the mean grey value (an example plug-in)"

    @dataclass(frozen=True)
    class Options(rayds.Options):
        """Options of the launcher."""

        threshold: float = rayds.option(
            100.0, help="mean grey value, 0 to 255, from which an image is bright"
        )

    def categories(self) -> rayds.Categories:
        return rayds.Categories.of(["dark", "bright"])

    def load(self) -> None:
        """Called once on every worker: here is the place to read weights and compile the model."""
        self.model = lambda gray: float(gray.mean())

    def infer(self, images: list[Pixels]) -> list[list[rayds.Annotation]]:
        """One label an image; a detector returns Bbox objects, a segmenter Mask or Polygon objects."""
        means = [self.model(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)) for image in images]
        return [
            [rayds.Label(int(mean >= self.options.threshold), attributes={"mean": round(mean, 2)})]
            for mean in means
        ]
