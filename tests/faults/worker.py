"""A process of its own that writes to a zoo; started by the fault tests, spawned, never forked.

Arguments: what to do, the zoo's path, a first seed, how many. Prints "ready", then one acknowledged id a line.
"""

import resource
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "zoo"), str(Path(__file__).parents[2])]

from factory import make_base, make_sub  # noqa: E402

import zoo  # noqa: E402
from zoo.errors import ZooError  # noqa: E402


def main(what: str, path: str, first: int, count: int) -> None:
    z, base = zoo.open(path), make_base()
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "small-files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (first, first))
        first = 0
    for seed in range(first, first + count):
        try:
            print(z.add(make_sub(seed, base=base)), flush=True)
            if what == "busy" and seed % 3 == 0:
                z.add_scores([zoo.Score(z.ids()[0], "t" * 64, "leep", -1.0 - seed)])
            if what == "busy" and seed % 4 == 3:
                z.compact()
        except ZooError as error:
            print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
