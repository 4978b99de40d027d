"""Pictures as TensorBoard logs, by the package tensorboard (the extra of that name)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from rayds.errors import UsageError


def write_images(folder: str, pictures: Mapping[str, bytes]) -> None:
    """Write PNG files as images of one step; their names, without the extension, are the tags."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as e:
        raise UsageError(
            f"TensorBoard logs need the package tensorboard: pip install 'rayds[tensorboard]' ({e})"
        ) from e
    writer = EventFileWriter(folder)
    try:
        for name, data in pictures.items():
            width, height = struct.unpack(">II", data[16:24])
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            value = Summary.Value(tag=name.rpartition(".")[0], image=image)
            writer.add_event(Event(step=0, summary=Summary(value=[value])))
    finally:
        writer.close()
