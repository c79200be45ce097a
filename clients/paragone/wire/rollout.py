"""What an admin asks of a running server: another revision of a model, another model, or one less."""

from pydantic import ConfigDict, Field

from paragone.wire.conversations import RequestModel, Text

__all__ = ["LoadRequest"]


class LoadRequest(RequestModel):
    """Load a model beside those that are hosted; it takes over once it was checked."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source": "judge-2026-11-30"}]})
    source: Text | None = Field(
        default=None,
        description="A folder below the server's models_dir; omitted: where the model was loaded from, for a revision.",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a Hugging Face id.")
