"""The fixtures of the store's tests."""

import sys
from pathlib import Path

# Helper modules of the tests are imported by name whatever pytest's import mode is.
sys.path.insert(0, str(Path(__file__).parent))

from store_fixtures import base, empty, new_sub, z  # noqa: F401
