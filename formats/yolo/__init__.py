"""The YOLO formats: darknet's, and that of Ultralytics."""

from rayds.formats.yolo.darknet import Yolo
from rayds.formats.yolo.ultralytics import YoloUltralytics

__all__ = ["Yolo", "YoloUltralytics"]
