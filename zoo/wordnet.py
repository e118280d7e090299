"""Wu-Palmer similarity (wup) of WordNet 3.0 nouns, equal to NLTK's, from a table that ships with the project.

Source: Wu & Palmer 1994, "Verbs semantics and lexical selection", sec. 4; Pedersen et al. 2004, "WordNet::Similarity".
Both leave open what to do with several ways to the root, so NLTK's `Synset.wup_similarity` is the definition here:

    wup(a, b) = 2 depth / (2 depth + |a, c| + |b, c|),   depth = 1 + longest way from c to the root,

where c is, among the common ancestors whose *shortest* way to the root is longest, a itself if it is one of them and
the first by name otherwise, and |x, c| is the length of the shortest path between x and c through any common ancestor.

Two things differ from NLTK, on purpose: wup(a, a) is 1 (NLTK: 0.857 for person.n.01), and wup(a, b) is the larger of
NLTK's two directions, which differ where the preference for a itself decides. `wup_directed` is NLTK's value as it is.
"""

import difflib
import functools
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.datafiles import data_path
from zoo.errors import CorruptionError, UnknownLabelsError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_WNID = re.compile(r"n\d{8}")
_SYNSET = re.compile(r"\S+\.n\.\d{2,}")


class Taxonomy:
    """The noun table in memory; nouns are numbered so that the preferred common ancestor is the smallest number."""

    def __init__(self) -> None:
        table = _read("names", "offset", "min_depth", "max_depth", "anc_start", "anc", "anc_dist")
        self.names = bytes(table["names"]).decode().split("\n")
        self.offsets: list[int] = table["offset"].tolist()
        self.min_depth = table["min_depth"].astype(np.int64)
        self.max_depth = table["max_depth"].astype(np.int64)
        self.start = table["anc_start"].astype(np.int64)
        self.anc = table["anc"].astype(np.int64)
        self.dist = table["anc_dist"].astype(np.int64)
        self.by_name = {name: i for i, name in enumerate(self.names)}
        self.by_offset = {offset: i for i, offset in enumerate(self.offsets)}

    def find(self, key: str) -> int | None:
        """Number of a noun given as "dog.n.01" or "n02084071"; None if there is none."""
        if _WNID.fullmatch(key):
            return self.by_offset.get(int(key[1:]))
        return self.by_name.get(key)

    def numbers(self, keys: Sequence[str]) -> IntArray:
        """Numbers of nouns, int64 (n,).

        Raises:
            UnknownLabelsError: Some are no nouns of WordNet 3.0; all of them are listed.
        """
        found = [self.find(key) if isinstance(key, str) else None for key in keys]
        unknown = [key for key, number in zip(keys, found) if number is None]
        if unknown:
            raise UnknownLabelsError(
                f"{len(unknown)} of {len(keys)} synsets are no nouns of WordNet 3.0",
                expected='names such as "dog.n.01" or wnids such as "n02084071"',
                problems=[_describe_unknown(key) for key in dict.fromkeys(unknown)],
                hint="Turn labels into synsets with zoo.labels.resolve.",
            )
        return np.array(found, np.int64)

    def wnid(self, number: int) -> str:
        """The wnid of a noun."""
        return f"n{self.offsets[number]:08d}"

    @functools.lru_cache(maxsize=8192)  # noqa: B019 - there is one taxonomy in a process, and it lives as long
    def up(self, number: int) -> dict[int, int]:
        """A noun's ancestors, itself included, preferred first, with NLTK's path distance to each."""
        part = slice(self.start[number], self.start[number + 1])
        return dict(zip(self.anc[part].tolist(), self.dist[part].tolist()))

    def takes_itself(self, number: int) -> bool:
        """Whether NLTK, comparing the noun with a descendant, takes the noun although another ancestor comes first."""
        first = self.anc[self.start[number]]
        return bool(first != number and self.min_depth[first] == self.min_depth[number])


class Vocabulary:
    """A fixed list of nouns (the columns), laid out by ancestor so that one noun is compared with all of them at once.

    Args:
        numbers: Noun numbers, int64 (V,), without repetition.
    """

    def __init__(self, numbers: IntArray) -> None:
        t = taxonomy()
        self.numbers = numbers
        lengths = t.start[numbers + 1] - t.start[numbers]
        first = np.cumsum(lengths) - lengths
        entry = np.arange(lengths.sum()) - np.repeat(first - t.start[numbers], lengths)
        order = np.argsort(t.anc[entry], kind="stable")
        self._column = np.repeat(np.arange(len(numbers)), lengths)[order]
        self._dist = t.dist[entry][order]
        ancestors, begin = np.unique(t.anc[entry][order], return_index=True)
        bounds = [*begin.tolist(), len(entry)]
        self._below = {a: slice(bounds[i], bounds[i + 1]) for i, a in enumerate(ancestors.tolist())}
        self._place = {n: i for i, n in enumerate(numbers.tolist())}

    def row(self, number: int) -> FloatArray:
        """wup of one noun against every column, float64 (V,), in (0, 1]."""
        t = taxonomy()
        twice = np.empty(len(self.numbers), np.int64)
        apart = np.empty(len(self.numbers), np.int64)
        # Least preferred ancestor first: what is painted last, the preferred one, stays.
        for ancestor, dist in reversed(t.up(number).items()):
            below = self._below.get(ancestor)
            if below is not None:
                columns = self._column[below]
                twice[columns] = 2 * (t.max_depth[ancestor] + 1)
                apart[columns] = self._dist[below] + dist
        values: FloatArray = twice / (twice + apart)
        if t.takes_itself(number) and number in self._below:
            below = self._below[number]
            self._raise(values, self._column[below], t.max_depth[number], self._dist[below])
        for ancestor, dist in t.up(number).items():
            column = self._place.get(ancestor)
            if column is not None and t.takes_itself(ancestor):
                self._raise(values, np.array([column]), t.max_depth[ancestor], np.array([dist]))
        if number in self._place:
            values[self._place[number]] = 1.0
        return values

    @staticmethod
    def _raise(values: FloatArray, columns: IntArray, max_depth: np.int64, apart: IntArray) -> None:
        """Take the value through another subsumer where it is larger (the direction in which NLTK would use it)."""
        twice = 2 * (max_depth + 1)
        values[columns] = np.maximum(values[columns], twice / (twice + apart))


@functools.cache
def taxonomy() -> Taxonomy:
    """The noun table, read on first use (about 0.2 s) and kept."""
    return Taxonomy()


@functools.cache
def _lemmas() -> dict[str, list[int]]:
    """Lemma key -> numbers of its noun senses, most frequent first."""
    table = _read("lemmas", "lemma_start", "lemma_noun")
    keys = bytes(table["lemmas"]).decode().split("\n")
    start, nouns = table["lemma_start"].tolist(), table["lemma_noun"].tolist()
    return {key: nouns[start[i] : start[i + 1]] for i, key in enumerate(keys)}


def _read(*names: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the noun table; the archive's own check sums are verified on the way."""
    path = data_path("wordnet_nouns.npz")
    try:
        with np.load(path, allow_pickle=False) as table:
            return {name: table[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptionError(
            f"the noun table {path.name} cannot be read", got=repr(error), hint="Restore it from the repository."
        ) from error


def wup(a: str, b: str) -> float:
    """Wu-Palmer similarity of two nouns.

    Args:
        a: A synset name ("dog.n.01") or a wnid ("n02084071").
        b: The same.

    Returns:
        A number in (0, 1]; 1 only for a noun and itself; symmetric. Definition and source: see the module.

    Raises:
        UnknownLabelsError: `a` or `b` is no noun of WordNet 3.0.
    """
    i, j = taxonomy().numbers([a, b]).tolist()
    return 1.0 if i == j else max(_directed(i, j), _directed(j, i))


def wup_directed(a: str, b: str) -> float:
    """NLTK's `wup_similarity` of `a` with `b` as it is: not symmetric, and below 1 for some nouns with themselves.

    Args:
        a: A synset name or a wnid.
        b: The same.

    Returns:
        A number in (0, 1].

    Raises:
        UnknownLabelsError: `a` or `b` is no noun of WordNet 3.0.
    """
    i, j = taxonomy().numbers([a, b]).tolist()
    return _directed(i, j)


def _directed(i: int, j: int) -> float:
    t = taxonomy()
    up_i, up_j = t.up(i), t.up(j)
    subsumer = next(ancestor for ancestor in up_i if ancestor in up_j)
    if i in up_j and t.min_depth[i] == t.min_depth[subsumer]:
        subsumer = i
    twice = 2 * (int(t.max_depth[subsumer]) + 1)
    return twice / (twice + up_i[subsumer] + up_j[subsumer])


def wup_matrix(a: Sequence[str], b: Sequence[str]) -> FloatArray:
    """Wu-Palmer similarities of all pairs.

    Args:
        a: n synset names or wnids; repetition is allowed.
        b: m of them.

    Returns:
        float64 (n, m), entry (i, j) equal to `wup(a[i], b[j])` bit by bit.

    Raises:
        UnknownLabelsError: Some are no nouns of WordNet 3.0; all are listed.
    """
    if not len(a) or not len(b):
        return np.empty((len(a), len(b)))
    rows, row_of = np.unique(taxonomy().numbers(a), return_inverse=True)
    columns, column_of = np.unique(taxonomy().numbers(b), return_inverse=True)
    vocabulary = Vocabulary(columns)
    table = np.stack([vocabulary.row(number) for number in rows.tolist()])
    result: FloatArray = table[row_of[:, None], column_of[None, :]]
    return result


def is_synset(text: str) -> bool:
    """Whether a text has the form of a wnid or of a noun synset's name; it need not exist."""
    return bool(_WNID.fullmatch(text) or _SYNSET.fullmatch(text))


def wnids(synsets: Sequence[str]) -> list[str]:
    """The wnids ("n02084071") of synset names or wnids.

    Raises:
        UnknownLabelsError: Some are no nouns of WordNet 3.0; all of them are listed.
    """
    return [taxonomy().wnid(number) for number in taxonomy().numbers(synsets).tolist()]


def wnid(synset: str) -> str:
    """The wnid ("n02084071") of a synset name or wnid. Raises UnknownLabelsError if there is no such noun."""
    return wnids([synset])[0]


def synset_name(synset: str) -> str:
    """The name ("dog.n.01") of a synset name or wnid. Raises UnknownLabelsError if there is no such noun."""
    return taxonomy().names[taxonomy().numbers([synset])[0]]


def senses(lemma: str) -> list[str]:
    """Names of the noun synsets of a lemma, most frequent first; empty if WordNet has no such noun.

    Args:
        lemma: Lower case, words separated by one space, hyphens written as spaces ("german shepherd").
    """
    return [taxonomy().names[i] for i in _lemmas().get(lemma, ())]


def close_lemmas(word: str, n: int = 3) -> list[str]:
    """Up to `n` lemmas of WordNet's nouns that are spelt most like a word, the likeliest first."""
    # Spelling mistakes seldom hit the first letter; comparing with all 117,000 lemmas would take seconds.
    reach = 1 + len(word) // 4
    alike = [key for key in _lemmas() if key[0] == word[:1] and abs(len(key) - len(word)) <= reach]
    return difflib.get_close_matches(word, alike, n=n, cutoff=0.7)


def _describe_unknown(key: object) -> str:
    if not isinstance(key, str):
        return f"{key!r} is no text"
    lemma = key.rsplit(".", 2)[0].replace("_", " ").replace("-", " ").lower()
    near = senses(lemma)[:7] or [name for other in close_lemmas(lemma) for name in senses(other)[:1]]
    return f"{key!r}: " + (f"did you mean {', '.join(near)}?" if near else "nothing is spelt like it")
