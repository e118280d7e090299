"""Build `wordnet_nouns.npz`, the noun taxonomy that `zoo.wordnet` reads, from NLTK's WordNet 3.0.

    python data/build_wordnet.py PATH_OF_NLTK_DATA

The file holds plain arrays (no pickle). Nouns are numbered by (minimal depth descending, name ascending), the order in
which NLTK prefers one common ancestor to another, so the subsumer of two nouns is the smallest number that their
ancestor lists share.

    names          uint8 (bytes)   synset names joined by newlines, in noun order
    offset         int32  (n,)     WordNet 3.0 offsets; "n%08d" is the wnid
    min_depth      uint8  (n,)     edges on the shortest way to the root
    max_depth      uint8  (n,)     edges on the longest way to the root
    anc_start      int32  (n + 1,) CSR: where a noun's ancestors begin
    anc            int32  (m,)     its ancestors, itself included, ascending
    anc_dist       uint8  (m,)     NLTK's shortest_path_distance to each of them
    lemmas         uint8 (bytes)   lemma keys joined by newlines, sorted
    lemma_start    int32  (l + 1,) CSR: where a lemma's senses begin
    lemma_noun     int32  (s,)     its senses, most frequent first
"""

import argparse
import hashlib
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

SEPARATORS = re.compile(r"[\s_\-]+")


def ancestors(noun: int, parents: list[list[int]]) -> dict[int, int]:
    """Every ancestor of a noun, itself included, with the number of edges on the shortest way up to it."""
    distance = {noun: 0}
    queue = deque([noun])
    while queue:
        node = queue.popleft()
        for parent in parents[node]:
            if parent not in distance:
                distance[parent] = distance[node] + 1
                queue.append(parent)
    return distance


def read_taxonomy(wn: Any) -> dict[str, np.ndarray]:
    """The arrays about synsets."""
    nouns = sorted(wn.all_synsets("n"), key=lambda s: (-s.min_depth(), s.name()))
    number = {s.name(): i for i, s in enumerate(nouns)}
    if len(number) != len(nouns):
        raise SystemExit("Two nouns share a name: this is not WordNet 3.0.")
    parents = [[number[h.name()] for h in s.hypernyms() + s.instance_hypernyms()] for s in nouns]
    up = [ancestors(i, parents) for i in range(len(nouns))]
    start, anc, dist = [0], [], []
    for i in range(len(nouns)):
        for a in sorted(up[i]):
            anc.append(a)
            # NLTK takes the shortest path between the two, which may pass above the ancestor.
            dist.append(min(up[i][x] + d for x, d in up[a].items()))
        start.append(len(anc))
    return {
        "names": text([s.name() for s in nouns]),
        "offset": np.array([s.offset() for s in nouns], np.int32),
        "min_depth": np.array([s.min_depth() for s in nouns], np.uint8),
        "max_depth": np.array([s.max_depth() for s in nouns], np.uint8),
        "anc_start": np.array(start, np.int32),
        "anc": np.array(anc, np.int32),
        "anc_dist": np.array(dist, np.uint8),
    }


def read_lemmas(wn: Any, number: dict[str, int]) -> dict[str, np.ndarray]:
    """The arrays about lemmas: keys are lower case, words separated by one space, hyphens read as spaces."""
    senses: dict[str, list[int]] = {}
    # Irregular plurals ("mice") become further lemmas, after the lemmas themselves, which they must not change.
    irregular = [(form, base) for form, bases in wn._exception_map["n"].items() for base in bases]
    known = sorted(wn.all_lemma_names("n"))
    pairs = [(lemma, lemma) for lemma in known] + sorted(irregular)
    for form, lemma in pairs:
        key = SEPARATORS.sub(" ", form.lower()).strip()
        if form != lemma and key in senses:
            continue
        found = [number[s.name()] for s in wn.synsets(lemma, "n") if lemma in (n.lower() for n in s.lemma_names())]
        senses.setdefault(key, []).extend(i for i in found if i not in senses.get(key, ()))
    senses = {key: nouns for key, nouns in sorted(senses.items()) if key and nouns}
    return {
        "lemmas": text(list(senses)),
        "lemma_start": np.cumsum([0] + [len(v) for v in senses.values()]).astype(np.int32),
        "lemma_noun": np.array([i for v in senses.values() for i in v], np.int32),
    }


def text(lines: list[str]) -> np.ndarray:
    """Lines as one array of bytes."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def main() -> None:
    """Read the corpus, write the table beside this script, print its size and hash."""
    parser = argparse.ArgumentParser(description="Build wordnet_nouns.npz from NLTK's WordNet 3.0.")
    parser.add_argument("nltk_data", type=Path, help="folder that holds corpora/wordnet or corpora/wordnet.zip")
    arguments = parser.parse_args()
    import nltk

    nltk.data.path.insert(0, str(arguments.nltk_data))
    from nltk.corpus import wordnet as wn

    if wn.get_version() != "3.0":
        raise SystemExit(f"WordNet {wn.get_version()} found; 3.0 is needed: wnids are its offsets.")
    arrays = read_taxonomy(wn)
    number = {name: i for i, name in enumerate(bytes(arrays["names"]).decode().split("\n"))}
    arrays |= read_lemmas(wn, number)
    path = Path(__file__).with_name("wordnet_nouns.npz")
    np.savez_compressed(path, **arrays)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {len(number)} nouns, {len(arrays['anc'])} ancestor entries, {path.stat().st_size} bytes")
    print(f"sha256 {digest}")


if __name__ == "__main__":
    main()
