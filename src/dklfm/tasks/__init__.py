"""Tasks: their schema, and tables of measurements read as tasks. No torch."""

from dklfm.tasks.schema import DIMENSIONS, SPLITS, Tasks, load_tasks
from dklfm.tasks.tables import load_embedded, read_table, tasks_from_table

__all__ = [
    "DIMENSIONS",
    "SPLITS",
    "Tasks",
    "load_embedded",
    "load_tasks",
    "read_table",
    "tasks_from_table",
]
