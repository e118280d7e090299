"""zoo: registry and retrieval of pruned sub-networks.

The public names; each is loaded when first used, so that `import zoo` stays quick.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo import errors

if TYPE_CHECKING:
    from zoo.channels import iou
    from zoo.handle import Zoo
    from zoo.leep import leep
    from zoo.neighbours import Neighbours
    from zoo.opening import open, sample
    from zoo.records import Base, Score, SubNetwork, Task
    from zoo.taskwup import task_wup
    from zoo.wordnet import wup

__version__ = "0.1.0"

_HOME = {
    "Base": "zoo.records", "Neighbours": "zoo.neighbours", "Score": "zoo.records", "SubNetwork": "zoo.records",
    "Task": "zoo.records", "Zoo": "zoo.handle", "iou": "zoo.channels", "leep": "zoo.leep", "open": "zoo.opening",
    "sample": "zoo.opening", "task_wup": "zoo.taskwup", "wup": "zoo.wordnet",
}  # fmt: skip

__all__ = [
    "Base", "Neighbours", "Score", "SubNetwork", "Task", "Zoo", "__version__", "errors", "iou", "leep", "open",
    "sample", "task_wup", "wup",
]  # fmt: skip


class _Package(ModuleType):
    """This package, with `zoo.leep` the function although a submodule has the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule sets it as an attribute of its package; a public name of ours goes first.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
