"""The small task, as a fixture."""

from small_task import task as task
