"""From class labels to WordNet nouns: what was meant by "seal" in CIFAR-100 is the animal, not the stamp.

A label is looked up in this order, and the first hit counts:

1. it is a wnid ("n02084071") or a noun synset's name ("dog.n.01") itself;
2. the curated table of its data set (`data/labels/*.json`, every entry checked by eye against its gloss);
3. the curated tables of all data sets, in the order of `TABLES`;
4. a lemma of WordNet's nouns, first sense; of comma-separated synonyms, the sense that most of them share;
5. the head noun of a label of several words, a fallback: "brewer blackbird" counts as blackbird.

Labels are compared without case; underscores and hyphens count as spaces; numbers that order
folders ("001.ak47") are dropped.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from zoo import wordnet
from zoo.datafiles import data_path
from zoo.errors import UnknownLabelsError

How = Literal["given", "table", "other_table", "lemma", "head", "unmapped"]

#: The curated tables, in the order in which a label is looked for when its data set has none or lacks it.
TABLES = (
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "digits",
    "caltech101",
    "caltech256",
    "oxford_pets",
    "flowers102",
    "cub200",
    "imagenet",
)

_NUMBER_PREFIX = re.compile(r"^\d+[._\s]+(?=\D)")
_SEPARATORS = re.compile(r"[\s_\-]+")
_BRACKETS = re.compile(r"\([^)]*\)")
# Words after which a noun phrase goes on about its head: in "bird of paradise" the head is "bird".
_AFTER_HEAD = re.compile(r" (?:of|in|with|on|for|without|from|at|by) ")
# WordNet's own rules of detachment for nouns (morphy(7WN)).
_PLURALS = (("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"))


@dataclass(frozen=True)
class Resolution:
    """What a label was taken to mean.

    Attributes:
        label: As given.
        wnid: WordNet 3.0 noun, "n" and eight digits; None where unmapped.
        how: The step that found it: "given", "table" (its data set's), "other_table", "lemma", "head", or "unmapped".
        nearest: The noun is only near what the label says: a head noun, or marked as nearest in its table.
    """

    label: str
    wnid: str | None
    how: How
    nearest: bool = False

    @property
    def synset(self) -> str | None:
        """The noun's name, such as "dog.n.01"; None where unmapped."""
        return None if self.wnid is None else wordnet.synset_name(self.wnid)


class LabelledTask(Protocol):
    """What `require` needs of a task."""

    @property
    def labels(self) -> Sequence[str]:
        """Class names in label order."""

    @property
    def synsets(self) -> Sequence[str | None] | None:
        """A wnid or synset name a label, None where unmapped."""


def normalise(label: str) -> str:
    """The form in which labels are compared: lower case, words separated by one space, ordering numbers dropped."""
    text = _NUMBER_PREFIX.sub("", label.strip().lower())
    return _SEPARATORS.sub(" ", _BRACKETS.sub(" ", text)).strip(" .,;:?!'\"") or label.strip().lower()


def resolve(labels: Sequence[str], dataset: str | None = None) -> list[Resolution]:
    """What each label means; never fails.

    Args:
        labels: Class names, wnids or synset names.
        dataset: The data set they come from, spelt in any usual way ("cifar100", "CIFAR-100", "uoft-cs/cifar100"); a
            data set without a table is fine.

    Returns:
        One `Resolution` a label, in order; `wnid` is None where nothing was found.
    """
    own = table_of(dataset)
    return [_resolve(label, own) for label in labels]


def to_wnids(synsets: Sequence[str | None]) -> list[str | None]:
    """Synset names and wnids as wnids; None stays None.

    Args:
        synsets: Such as ["dog.n.01", "n02121620", None].

    Raises:
        UnknownLabelsError: Some are no nouns of WordNet 3.0; all of them are listed, with suggestions.
    """
    known = iter(wordnet.wnids([synset for synset in synsets if synset is not None]))
    return [None if synset is None else next(known) for synset in synsets]


def require(task: LabelledTask) -> list[str]:
    """The synsets of a task, for a measure that needs all of them.

    Args:
        task: A `zoo.Task`, or anything with `labels` and `synsets`; where `synsets` is None, labels are looked up.

    Returns:
        One wnid or synset name a label.

    Raises:
        UnknownLabelsError: Some labels have none; all of them are listed, with suggestions.
    """
    labels = list(task.labels)
    given = task.synsets
    dataset = getattr(task, "dataset", None)
    synsets = [r.wnid for r in resolve(labels, dataset)] if given is None else list(given)
    missing = [label for label, synset in zip(labels, synsets) if synset is None]
    if missing:
        raise UnknownLabelsError(
            f"{len(missing)} of {len(labels)} labels have no WordNet noun",
            problems=[_describe(label) for label in missing],
            hint='Spell them as WordNet does, say what they mean with zoo.Task(labels, synsets=["dog.n.01", ...]), or '
            'use a measure that looks at images (by="leep").',
        )
    return [synset for synset in synsets if synset is not None]


def suggest(label: str, n: int = 3) -> list[str]:
    """Up to `n` labels that WordNet has as nouns and that are spelt most like this one, the likeliest first."""
    key = normalise(label)
    found = wordnet.close_lemmas(key, n)
    if " " in key:
        # One place is kept for the last word, the likely head: "purple elefant" is no "purple heart".
        head = wordnet.close_lemmas(key.rsplit(" ", 1)[1], n)
        found = list(dict.fromkeys([*found[: max(1, n - 1)], *head, *found]))
    return found[:n]


def table_of(dataset: str | None) -> str | None:
    """Name of the curated table of a data set; None if it has none.

    Args:
        dataset: In any usual spelling; of "owner/name" the name counts.
    """
    if dataset is None:
        return None
    return _aliases().get(_bare(dataset.rsplit("/", 1)[-1]))


def table(name: str) -> dict[str, Resolution]:
    """A curated table: normalised label -> what it means (`how` is "table", or "unmapped" for a background class).

    Args:
        name: One of `TABLES`.
    """
    return _read(name)[1]


@functools.cache
def _read(name: str) -> tuple[list[str], dict[str, Resolution]]:
    content = json.loads(data_path(f"labels/{name}.json").read_text(encoding="utf-8"))
    entries = {
        normalise(label): Resolution(
            label, entry["wnid"], "table" if entry["wnid"] else "unmapped", entry["how"] == "nearest"
        )
        for label, entry in content["labels"].items()
    }
    return content["aliases"], entries


@functools.cache
def _aliases() -> dict[str, str]:
    return {_bare(alias): name for name in TABLES for alias in [name, *_read(name)[0]]}


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _resolve(label: str, own: str | None) -> Resolution:
    text = label.strip()
    if wordnet.is_synset(text):
        number = wordnet.taxonomy().find(text)
        if number is None:
            return Resolution(label, None, "unmapped")
        return Resolution(label, wordnet.taxonomy().wnid(number), "given")
    key = normalise(label)
    if own is not None and (entry := table(own).get(key)):
        return replace(entry, label=label)
    for name in TABLES:
        # A background class means nothing outside its data set.
        if (entry := table(name).get(key)) and entry.wnid is not None:
            return replace(entry, label=label, how="other_table")
    if synset := _by_lemma(key):
        return Resolution(label, wordnet.wnid(synset), "lemma")
    for phrase in _heads(key):
        if synset := _by_lemma(phrase):
            return Resolution(label, wordnet.wnid(synset), "head", nearest=True)
    return Resolution(label, None, "unmapped")


def _by_lemma(key: str) -> str | None:
    """Synset of a lemma, or the one that most of comma-separated lemmas share; None if there is none."""
    parts = [_senses(part) for part in (piece.strip() for piece in key.split(",")) if part]
    votes = Counter(synset for part in parts for synset in part)
    # most_common keeps the order of first occurrence among equals: the first part's first sense.
    return votes.most_common(1)[0][0] if votes else None


def _senses(lemma: str) -> list[str]:
    """Senses of a lemma, or of its singular, or of its other common spellings."""
    return next((found for form in _forms(lemma) if (found := wordnet.senses(form))), [])


def _forms(lemma: str) -> Iterator[str]:
    yield lemma
    for ending, singular in _PLURALS:
        if lemma.endswith(ending):
            yield lemma.removesuffix(ending) + singular
    if lemma.endswith("s") and not lemma.endswith("ss"):
        yield lemma[:-1]
    yield lemma.replace("'", "")
    yield lemma.replace(" ", "")


def _heads(key: str) -> Iterator[str]:
    """The noun phrases within a label that may be its head, longest first."""
    words = _AFTER_HEAD.split(key.split(",")[0])[0].split(" ")
    # A label without further words after its head was looked up whole already.
    for i in range(len(words)):
        if phrase := " ".join(words[i:]).strip():
            yield phrase


def _describe(label: str) -> str:
    near = suggest(label)
    return f"{label!r}: " + (f"did you mean {', '.join(map(repr, near))}?" if near else "nothing is spelt like it")
