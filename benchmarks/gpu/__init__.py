"""Measurements on a GPU: each file says what it needs, and its goals."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def spare_pydantic() -> None:
    """Let options be made where pydantic is not installed; they are not checked then."""
    if "pydantic" in sys.modules or find_spec("pydantic") is not None:
        return
    module: Any = ModuleType("pydantic")
    module.BaseModel = object
    module.ConfigDict = dict
    module.Field = lambda **bounds: None
    module.StrictBool, module.StrictFloat, module.StrictInt = bool, float, int
    module.StrictStr = str
    module.TypeAdapter = module.ValidationError = None
    sys.modules["pydantic"] = module


spare_pydantic()
