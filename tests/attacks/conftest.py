"""The fixtures of the store's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from store_fixtures import base, empty, new_sub, z  # noqa: F401
