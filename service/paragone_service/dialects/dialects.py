"""All dialects, in the order in which they are asked whether a body is theirs."""

from paragone_service.dialects.dialect import Dialect
from paragone_service.dialects.openrlhf import OPENRLHF
from paragone_service.dialects.settings import DIALECT_NAMES

__all__ = ["DIALECTS"]

DIALECTS: tuple[Dialect, ...] = (OPENRLHF,)

assert sorted(dialect.name for dialect in DIALECTS) == sorted(DIALECT_NAMES)
