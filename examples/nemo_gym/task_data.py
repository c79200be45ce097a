"""Task data of the paragone server: nothing of its own; ``responses_create_params`` is the task."""

from pydantic import BaseModel, ConfigDict


class TaskData(BaseModel):
    """Any column passes through."""

    model_config = ConfigDict(extra="allow")
