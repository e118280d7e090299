"""Producers: methods that prune a base for a task. This file holds the protocol, the list and the resolver.

A producer is a frozen dataclass of its options with a `prune` method, registered under the entry-point group
`zoo.producers`; its own file is the only place that knows the method.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, overload, runtime_checkable

from mvp.data import Data
from zoo.errors import OptionError
from zoo.records import Base, SubNetwork

GROUP = "zoo.producers"


@runtime_checkable
class Producer(Protocol):
    """What every producer offers.

    Attributes:
        name: Its name in records and on the command line.
        paper: Where the method is described.
        kind: What it removes: "filter", "node", "head" or "element"; several joined by "+".
        needs: What it needs beside the base: "nothing", "task data" or "source tasks" (other tasks too; its `prune`
            then has a parameter `sources`), with "GPU" added where it is hardly usable without one.
        widths: What `keep` means. "equal": every prunable axis keeps max(1, round(keep n)) units. "budget": widths
            differ, and the sub-network costs at most as much as one of "equal" widths does. "learned": the method
            decides, `keep` is recorded only. "full": nothing but single weights goes, and `keep` is their share.
        claim: What its paper reports, in the paper's own setting; `mvp contest` prints it beside what it measures.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    kind: ClassVar[str]
    needs: ClassVar[str]
    widths: ClassVar[str]
    claim: ClassVar[str]

    def prune(
        self, base: Base, data: Data, *, keep: float, seed: int = 0, device: str | None = None, progress: bool = True
    ) -> SubNetwork:
        """Prunes `base` for `data.task`; see `widths` for what `keep` means.

        The record's options are `recorded(self)`; its metrics hold "accuracy" (test split), "seconds" and "steps"
        (optimiser steps on the base's own network), as far as the method has them.
        """
        ...


def producers() -> dict[str, Any]:
    """Every installed producer by name.

    Raises:
        OptionError: Two distributions offer the same name.
    """
    return {name: entry.load() for name, entry in _installed().items()}


def _installed() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        if entry.name in found:
            raise OptionError(f"two producers are called {entry.name!r}", hint="Uninstall or rename one of them.")
        found[entry.name] = entry
    return found


def resolve(producer: "str | type | Producer", **options: Any) -> Producer:
    """A producer by name, class or instance.

    Raises:
        OptionError: No such name, or an option it does not have; lists what there is.
    """
    chosen: Any = producer
    if isinstance(producer, str):
        # Only the one asked for is loaded: another package's broken producer must not stop it.
        known = _installed()
        if producer not in known:
            raise OptionError(f"no producer {producer!r}", expected=", ".join(sorted(known)) or "an installed producer")
        chosen = known[producer].load()
    if isinstance(chosen, type):
        names = {f.name for f in dataclasses.fields(chosen)}
        if unknown := sorted(set(options) - names):
            raise OptionError(
                f"producer {getattr(chosen, 'name', chosen)} has no option {', '.join(unknown)}",
                expected=", ".join(sorted(names)),
            )
        return chosen(**options)
    if options:
        raise OptionError("options are given beside a producer instance", hint="Put them into the instance.")
    return chosen


def recorded(producer: Producer, sources: Sequence[Data] = ()) -> dict[str, Any]:
    """What a record keeps of a producer's options, as JSON values.

    A file is recorded by the SHA-256 of its bytes, not by where it lay; source tasks by their ids, under "sources".
    """
    options = dataclasses.asdict(producer)  # type: ignore[call-overload]
    for name, value in options.items():
        if isinstance(value, Path):
            options[name] = hashlib.sha256(value.read_bytes()).hexdigest()
    if sources:
        options["sources"] = [d.task.id for d in sources]
    return json.loads(json.dumps(options))


def needs_sources(producer: Producer) -> bool:
    """Whether its `prune` takes other tasks too."""
    return "source tasks" in producer.needs


@overload
def prune(
    base: Base, data: Data, *, producer: "str | type | Producer" = ..., keep: float = ..., seed: int = ...,
    device: str | None = ..., progress: bool = ..., sources: Sequence[Data] = ..., **options: Any,
) -> SubNetwork: ...  # fmt: skip
@overload
def prune(
    base: Base, data: Sequence[Data], *, producer: "str | type | Producer" = ..., keep: float = ..., seed: int = ...,
    device: str | None = ..., progress: bool = ..., sources: Sequence[Data] = ..., **options: Any,
) -> list[SubNetwork]: ...  # fmt: skip
def prune(
    base: Base,
    data: Data | Sequence[Data],
    *,
    producer: "str | type | Producer" = "ifp",
    keep: float = 0.1,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    sources: Sequence[Data] = (),
    **options: Any,
) -> SubNetwork | list[SubNetwork]:
    """Prunes a base for one task or for many.

    Args:
        base: From `mvp.load_base`.
        data: Images of the task, or a list of them.
        producer: A name (`mvp producers` lists them), class or instance.
        keep: Keep ratio (1 - pruning ratio), in (0, 1]; what it means for a producer is its `widths`: the share of
            every prunable axis, or the cost of the sub-network that keeps this share.
        seed: Seed of everything random in the run.
        device: CUDA when there is one, when None.
        progress: Show a progress bar when the output is a terminal.
        sources: Other tasks, for the producers that need them ("source tasks").
        **options: The producer's options.

    Returns:
        A sub-network, or a list in the order of `data`.

    Raises:
        OptionError: keep outside (0, 1], an unknown producer or option, sources for a producer that takes none or none
            for one that needs them.
    """
    check_keep(keep)
    member = resolve(producer, **options)
    more = check_sources(member, sources)
    if isinstance(data, Data):
        return member.prune(base, data, keep=keep, seed=seed, device=device, progress=progress, **more)
    return [member.prune(base, d, keep=keep, seed=seed, device=device, progress=progress, **more) for d in data]


def check_sources(producer: Producer, sources: Sequence[Any]) -> dict[str, Any]:
    """The keyword argument for the producer's `prune`: its sources, or nothing where it takes none.

    Raises:
        OptionError: Sources for a producer that takes none, or none for one that needs them.
    """
    if needs_sources(producer) != bool(sources):
        raise OptionError(
            f"{producer.name}: source tasks", got=f"{len(sources)}",
            expected="at least 1" if needs_sources(producer) else "none; it learns from the task alone",
            hint="Give sources=[...] (`--sources N` on the command line)." if not sources else None,
        )  # fmt: skip
    return {"sources": sources} if sources else {}


def check_keep(keep: float) -> None:
    """keep must lie in (0, 1].

    Raises:
        OptionError: It does not.
    """
    if not 0 < keep <= 1:
        raise OptionError("keep ratio out of range", got=keep, expected="a number in (0, 1]; 0.1 keeps a tenth")
