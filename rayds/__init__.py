"""rayds: distributed batch processing of computer-vision datasets.

The public API; everything is imported when first used, so that ``import rayds`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "rayds.annotations": (
        "Annotation", "Bbox", "Caption", "Cuboid3d", "Ellipse", "Label", "Mask", "Points", "Polygon", "PolyLine",
        "RleMask", "RotatedBbox",
    ),
    "rayds.categories": (
        "Categories", "Category", "LabelCategories", "MaskCategories", "PointsCategories", "PointsCategory",
    ),
    "rayds.dataset": ("Dataset",),
    "rayds.errors": (
        "DataError", "EngineError", "FormatError", "LossError", "OnError", "OutputExistsError", "RaydsError",
        "ResumeError", "StorageError", "UnknownNameError", "UsageError",
    ),
    "rayds.format": ("Capabilities", "Confidence", "Format", "ItemFormat", "Plan", "Shard"),
    "rayds.item": ("DatasetItem",),
    "rayds.launcher": ("Launcher",),
    "rayds.media": ("Image", "PointCloud"),
    "rayds.op": ("Op",),
    "rayds.options": ("Options", "option"),
    "rayds.registry": ("detect",),
    "rayds.report": ("Report",),
    "rayds.schema": ("ANNOTATION_TYPE", "ITEM_SCHEMA", "AnnotationType"),
}  # fmt: skip
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ANNOTATION_TYPE",
    "ITEM_SCHEMA",
    "Annotation",
    "AnnotationType",
    "Bbox",
    "Capabilities",
    "Caption",
    "Categories",
    "Category",
    "Confidence",
    "Cuboid3d",
    "DataError",
    "Dataset",
    "DatasetItem",
    "Ellipse",
    "EngineError",
    "Format",
    "FormatError",
    "Image",
    "ItemFormat",
    "Label",
    "LabelCategories",
    "Launcher",
    "LossError",
    "Mask",
    "MaskCategories",
    "OnError",
    "Op",
    "Options",
    "OutputExistsError",
    "Plan",
    "PointCloud",
    "Points",
    "PointsCategories",
    "PointsCategory",
    "PolyLine",
    "Polygon",
    "RaydsError",
    "Report",
    "ResumeError",
    "RleMask",
    "RotatedBbox",
    "Shard",
    "StorageError",
    "UnknownNameError",
    "UsageError",
    "__version__",
    "detect",
    "engine",
    "option",
]

if TYPE_CHECKING:
    from rayds import engine
    from rayds.annotations import (
        Annotation,
        Bbox,
        Caption,
        Cuboid3d,
        Ellipse,
        Label,
        Mask,
        Points,
        Polygon,
        PolyLine,
        RleMask,
        RotatedBbox,
    )
    from rayds.categories import (
        Categories,
        Category,
        LabelCategories,
        MaskCategories,
        PointsCategories,
        PointsCategory,
    )
    from rayds.dataset import Dataset
    from rayds.errors import (
        DataError,
        EngineError,
        FormatError,
        LossError,
        OnError,
        OutputExistsError,
        RaydsError,
        StorageError,
        UnknownNameError,
        UsageError,
    )
    from rayds.format import Capabilities, Confidence, Format, ItemFormat, Plan, Shard
    from rayds.item import DatasetItem
    from rayds.launcher import Launcher
    from rayds.media import Image, PointCloud
    from rayds.op import Op
    from rayds.options import Options, option
    from rayds.registry import detect
    from rayds.report import Report
    from rayds.schema import ANNOTATION_TYPE, ITEM_SCHEMA, AnnotationType


def __getattr__(name: str) -> Any:
    if name == "engine":
        return import_module("rayds.engine")
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rayds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
