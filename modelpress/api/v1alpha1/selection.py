"""Which modules of a model an entry of a configList is about."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel, ModuleName


class ModuleEntry(ApiModel):
    """Selects modules, and says nothing else of them; each kind of entry says what is selected by default."""

    op_types: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Class names of modules. 'default' stands for those that are taken without it."
    )
    op_names: Annotated[list[ModuleName], Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Exact names, as in model.named_modules()."
    )
    op_names_re: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Regular expressions that match a whole name."
    )
    exclude: bool = Field(default=False, description="Leave the selected modules as they are.")
