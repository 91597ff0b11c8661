"""Tasks: their schema, tables of measurements read as tasks, embedded ones. No torch."""

from dklfm.tasks.embedded import load_embedded
from dklfm.tasks.schema import DIMENSIONS, SPLITS, Tasks, load_tasks
from dklfm.tasks.tables import read_table, tasks_from_table

__all__ = [
    "DIMENSIONS",
    "SPLITS",
    "Tasks",
    "load_embedded",
    "load_tasks",
    "read_table",
    "tasks_from_table",
]
