"""Write golden/wup_pairs.csv.gz: wup of noun pairs, in both directions, as NLTK computes it.

    python tests/zoo/make_golden_wup.py PATH_OF_NLTK_DATA

Uses NLTK and nothing of this project, whose table it checks. Columns: kind, a, b, NLTK's a.wup_similarity(b), and
b.wup_similarity(a), both with every digit.
"""

import argparse
import gzip
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

EACH = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden file of wup pairs with NLTK.")
    parser.add_argument("nltk_data", type=Path, help="folder that holds corpora/wordnet or corpora/wordnet.zip")
    import nltk

    nltk.data.path.insert(0, str(parser.parse_args().nltk_data))
    from nltk.corpus import wordnet as wn

    # NLTK opens a file on every call to learn the version; asking once changes no value.
    version = wn.get_version()
    wn.get_version = lambda: version
    rng = random.Random(20240607)
    nouns = sorted(wn.all_synsets("n"), key=lambda s: s.name())
    parents = {s: s.hypernyms() + s.instance_hypernyms() for s in nouns}
    several = [s for s in nouns if len(parents[s]) > 1]

    def ancestors(synset: object) -> list:
        found: set = set()
        queue = list(parents[synset])
        while queue:
            node = queue.pop()
            if node not in found:
                found.add(node)
                queue.extend(parents[node])
        return sorted(found)

    def random_pairs() -> Iterator[tuple]:
        while True:
            yield tuple(rng.sample(nouns, 2))

    def multi_parent_pairs() -> Iterator[tuple]:
        while True:
            yield tuple(rng.sample(several, 2))

    def ancestor_pairs() -> Iterator[tuple]:
        while True:
            synset = rng.choice(nouns)
            if above := ancestors(synset):
                yield synset, rng.choice(above)

    def asymmetric_pairs() -> Iterator[tuple]:
        for a, b in ancestor_pairs():
            if a.wup_similarity(b) != b.wup_similarity(a):
                yield a, b

    def self_pairs() -> Iterator[tuple]:
        for synset in rng.sample(nouns, len(nouns)):
            yield synset, synset

    kinds = {
        "random": random_pairs(),
        "multi_parent": multi_parent_pairs(),
        "ancestor": ancestor_pairs(),
        "self": self_pairs(),
        "asymmetric": asymmetric_pairs(),
    }
    lines = [
        f"{kind},{a.name()},{b.name()},{a.wup_similarity(b)!r},{b.wup_similarity(a)!r}\n"
        for kind, pairs in kinds.items()
        for a, b in itertools.islice(pairs, EACH)
    ]
    path = Path(__file__).parent / "golden" / "wup_pairs.csv.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress("".join(["kind,a,b,wup_ab,wup_ba\n", *lines]).encode(), mtime=0))
    print(f"{path.name}: {len(lines)} pairs, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
