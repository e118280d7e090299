"""mvp: everything that runs a network. Prune a base for a task, score, vote, fine-tune, build.

Heavy imports happen when a name is first used; `import mvp` itself loads neither torch nor timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvp import data as data
    from mvp.bases import load_base as load_base
    from mvp.bases import register as register_base
    from mvp.finetune import finetune as finetune
    from mvp.importer import import_subnetwork as import_subnetwork
    from mvp.populate import populate as populate
    from mvp.pretrain import pretrain as pretrain
    from mvp.producers import producers as producers
    from mvp.producers import prune as prune
    from mvp.score import score as score
    from mvp.subnetwork import build as build
    from mvp.vote import vote as vote
    from mvp.vote import vote_from as vote_from

_HOME = {
    "load_base": "mvp.bases:load_base",
    "register_base": "mvp.bases:register",
    "prune": "mvp.producers:prune",
    "vote": "mvp.vote:vote",
    "vote_from": "mvp.vote:vote_from",
    "finetune": "mvp.finetune:finetune",
    "build": "mvp.subnetwork:build",
    "score": "mvp.score:score",
    "populate": "mvp.populate:populate",
    "pretrain": "mvp.pretrain:pretrain",
    "import_subnetwork": "mvp.importer:import_subnetwork",
    "data": "mvp.data",
}
__all__ = ["build", "data", "finetune", "import_subnetwork", "load_base", "populate", "pretrain", "prune",
           "register_base", "score", "vote", "vote_from"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mvp' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    found = import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
