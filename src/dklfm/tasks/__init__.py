"""Tasks: their schema, tables of measurements read as tasks, embedded ones. No torch."""

from dklfm.tasks.embedded import load_embedded
from dklfm.tasks.schema import DIMENSIONS, SPLITS, Tasks, load_tasks
from dklfm.tasks.tables import Table, read_table, table_from_dataframe, tasks_from_table

__all__ = [
    "DIMENSIONS",
    "SPLITS",
    "Table",
    "Tasks",
    "load_embedded",
    "load_tasks",
    "read_table",
    "table_from_dataframe",
    "tasks_from_table",
]
