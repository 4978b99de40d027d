"""datumaro: Datumaro's native JSON datasets.

    annotations/<subset>.json     {"dm_format_version", "media_type", "infos", "categories", "items": [...]}
    images/<subset>/<id><ext>     point_clouds/<subset>/<id><ext>

Specification: the "Datumaro format" page of Datumaro's manual, versions 0.1 (without a version, "info") to 1.x.
"""

from __future__ import annotations

from rayds.formats.datumaro.layout import Datumaro

__all__ = ["Datumaro"]
