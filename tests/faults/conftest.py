"""The fixtures of the store's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from store_fixtures import base, new_sub, z  # noqa: E402, F401
