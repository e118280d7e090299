"""A forked child of a process that has used a zoo: a clear error at once, not a hang or a panic."""

import os

import pytest

import zoo
from zoo import deltalog
from zoo.errors import ConflictError, CorruptionError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_use_spawn(z, new_sub):
    key = z.add(new_sub())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for use in (lambda: z.get(key), lambda: z.add(new_sub(1)), lambda: len(z), lambda: zoo.open(z.path)):
            try:
                use()
                said.append("worked")
            except ConflictError as error:
                said.append("spawn" if "spawn" in str(error) else str(error))
            except BaseException as error:
                said.append(repr(error))
        os.write(write, "|".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "spawn|spawn|spawn|spawn"
    os.waitpid(child, 0)
    assert z.get(key).id == key, "the parent goes on"


def test_a_panic_becomes_a_clear_error():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(ConflictError, match="spawn"), deltalog.delta("tasks"):
        raise panic("called `Result::unwrap()` on an `Err` value")
    with pytest.raises(KeyboardInterrupt), deltalog.delta("tasks"):
        raise KeyboardInterrupt


def test_other_errors_of_delta_lake():
    from deltalake.exceptions import CommitFailedError, DeltaError

    from zoo.errors import ReadOnlyError, ZooError

    with pytest.raises(CorruptionError, match="tasks"), deltalog.delta("tasks"):
        raise DeltaError("Kernel error")
    with pytest.raises(ReadOnlyError), deltalog.delta("tasks", write=True):
        raise DeltaError("Permission denied (os error 13)")
    with pytest.raises(ZooError, match="could not be written"), deltalog.delta("tasks", write=True):
        raise DeltaError("No space left on device")
    with pytest.raises(CommitFailedError), deltalog.delta("tasks", write=True):
        raise CommitFailedError("conflict")
