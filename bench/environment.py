"""`pullback.bench.environment`, without the package, which would import NumPy first."""

from __future__ import annotations

import runpy
from pathlib import Path

_HERE = Path(__file__).parents[1] / "python" / "pullback" / "bench" / "environment.py"
globals().update({k: v for k, v in runpy.run_path(str(_HERE)).items() if k[:2] != "__"})
