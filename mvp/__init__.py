"""mvp: everything that runs a network. Prune a base for a task, score, vote, fine-tune, build."""

from mvp import data
from mvp.bases import load_base
from mvp.bases import register as register_base
from mvp.finetune import finetune
from mvp.importer import import_subnetwork
from mvp.populate import populate
from mvp.pretrain import pretrain
from mvp.producers import producers, prune
from mvp.responses import cache_responses
from mvp.score import score
from mvp.search import search
from mvp.subnetwork import build
from mvp.vote import vote, vote_from, vote_nested

__all__ = [
    "build", "cache_responses", "data", "finetune", "import_subnetwork", "load_base", "populate", "pretrain",
    "producers", "prune", "register_base", "score", "search", "vote", "vote_from", "vote_nested",
]  # fmt: skip
