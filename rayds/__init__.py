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
        "StorageError", "UnknownNameError", "UsageError",
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

__all__ = sorted([*_WHERE, "__version__", "engine"])  # noqa: PLE0605

if TYPE_CHECKING:
    from rayds import engine as engine
    from rayds.annotations import (
        Annotation as Annotation,
    )
    from rayds.annotations import (
        Bbox as Bbox,
    )
    from rayds.annotations import (
        Caption as Caption,
    )
    from rayds.annotations import (
        Cuboid3d as Cuboid3d,
    )
    from rayds.annotations import (
        Ellipse as Ellipse,
    )
    from rayds.annotations import (
        Label as Label,
    )
    from rayds.annotations import (
        Mask as Mask,
    )
    from rayds.annotations import (
        Points as Points,
    )
    from rayds.annotations import (
        Polygon as Polygon,
    )
    from rayds.annotations import (
        PolyLine as PolyLine,
    )
    from rayds.annotations import (
        RotatedBbox as RotatedBbox,
    )
    from rayds.categories import LabelCategories as LabelCategories
    from rayds.dataset import Dataset as Dataset
    from rayds.item import DatasetItem as DatasetItem
    from rayds.launcher import Launcher as Launcher
    from rayds.op import Op as Op


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
