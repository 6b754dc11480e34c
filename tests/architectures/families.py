"""All families, in the order of docs/architectures.md."""

from .timm_families import TIMM_FAMILIES
from .transformers_families import TRANSFORMERS_FAMILIES


FAMILIES = [*TIMM_FAMILIES, *TRANSFORMERS_FAMILIES]
