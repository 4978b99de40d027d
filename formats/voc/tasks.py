"""The tasks of VOC, and the lists that they keep."""

from __future__ import annotations

from rayds.errors import UsageError

TASKS = {  # name: the folder of its lists
    "classification": "Main",
    "detection": "Main",
    "action_classification": "Action",
    "person_layout": "Layout",
    "segmentation": "Segmentation",
}


def chosen(own: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks to write: those asked for, all of the format's own when none are. Raises UsageError."""
    for task in asked:
        if task not in own:
            raise UsageError(
                f"--tasks: this format writes {', '.join(own)}, not {task}; the format voc writes every task"
            )
    return asked or own
