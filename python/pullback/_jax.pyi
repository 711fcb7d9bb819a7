from collections.abc import Callable, Mapping
from typing import Any

elementwise: Any
python: Any

def calls(given: Mapping[str, Callable[[Any, Any], None]], /) -> None: ...
