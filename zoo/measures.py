"""The measures of task similarity: pure functions of a snapshot's rows, in one list.

To add one: write a function `Query -> float64 (m,)` with its definition, range and source in the docstring, put a line
into `MEASURES`, and its name into the tests' list. Larger always means more similar. The functions are in
`similarity.py` (labels, stored scores, channel sets) and `embedded.py` (task embeddings).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zoo import embedded, similarity
from zoo.errors import MissingScoresError, OptionError
from zoo.rows import Rows
from zoo.similarity import Bools, Floats, Ints, Query
from zoo.taskwup import How

__all__ = ["MEASURES", "Measure", "Query", "find_measure", "similarity_rows"]


@dataclass(frozen=True)
class Measure:
    """A named similarity.

    Attributes:
        name: What users write in `by=`.
        range: Smallest and largest value.
        source: Paper and place.
        score: Query -> float64 (m,), finite; raises MissingScoresError for what the zoo lacks.
        usable: Query -> bool (m,), rows on which the measure is defined; None = all.
        unusable: What the other rows lack, for messages.
        propose: (Query, k) -> positions in `which` that contain the k best for certain; None = the measure scores all.
    """

    name: str
    range: tuple[float, float]
    source: str
    score: Callable[[Query], Floats]
    usable: Callable[[Query], Bools] | None = None
    unusable: str = ""
    propose: Callable[[Query, int], Ints] | None = None


MEASURES = (
    Measure(
        "wup", (0.0, 1.0), "MVP sec. 3.2; Wu & Palmer 1994", similarity.wup, similarity.mapped,
        "no label with a WordNet noun",
    ),
    Measure("leep", (-np.inf, 0.0), "MVP sec. 3.2; Nguyen et al. 2020", similarity.leep),
    Measure("leep_probe", (-np.inf, 0.0), "Nguyen et al. 2020; this project", similarity.leep_probe),
    Measure("nce", (-np.inf, 0.0), "Tran et al. 2019, sec. 3", similarity.nce),
    Measure("logme", (-1.1, 6.0), "You et al. 2021, sec. 4", similarity.logme),
    Measure("hscore", (0.0, np.inf), "Bao et al. 2019", similarity.hscore),
    Measure(
        "prototype", (-1.0, 1.0), "this project", embedded.prototype, propose=embedded.nearest_by_cosine("prototype")
    ),
    Measure(
        "stamp", (-1.0, 1.0), "STAMP, Eq. 9; this project", embedded.stamp, propose=embedded.nearest_by_cosine("stamp")
    ),
    Measure("task2vec", (0.0, 1.0), "Achille et al. 2019, sec. 3", embedded.task2vec),
    Measure(
        "mask_iou", (0.0, 1.0), "MVP sec. 3.2; Jaccard 1901", similarity.mask_iou, similarity.alike,
        "another base or mode, or no sets",
    ),
)  # fmt: skip


def find_measure(by: str) -> Measure:
    """The measure of a name. Raises OptionError, listing the names."""
    for measure in MEASURES:
        if measure.name == by:
            return measure
    raise OptionError("no such measure of similarity", got=repr(by), expected=" | ".join(m.name for m in MEASURES))


def similarity_rows(rows: Rows, which: Ints, by: str, pairs: Bools, *, how: How = "best_match") -> Floats:
    """Similarities of stored sub-networks with each other's tasks.

    Args:
        rows: The zoo's sub-networks.
        which: Rows to compare, int64 (m,).
        by: Name of the measure.
        pairs: bool (m, m); entry (t, j) asks how similar sub-network which[j] is to the task of which[t].
        how: For `wup`.

    Returns:
        float64 (m, m), NaN where not asked for or where the measure is not defined (no label with a noun).

    Raises:
        MissingScoresError: Says how many targets lack scores, with the message of the first one.
    """
    measure = find_measure(by)
    result = np.full(pairs.shape, np.nan)
    lacking: list[MissingScoresError] = []
    asked = np.flatnonzero(pairs.any(axis=1))
    for t in asked:
        columns = np.flatnonzero(pairs[t])
        query = Query(rows, rows.target(int(which[t])), which[columns], how)
        if by == "wup" and not rows.mapped_labels[which[t]]:
            continue
        if measure.usable is not None:
            usable = np.flatnonzero(measure.usable(query))
            query, columns = query.only(usable), columns[usable]
        try:
            result[t, columns] = measure.score(query)
        except MissingScoresError as error:
            lacking.append(error)
    if lacking:
        raise MissingScoresError(
            f"{len(lacking)} of {len(asked)} target tasks lack scores for by={by!r}",
            problems=[lacking[0].what],
            hint=lacking[0].hint,
        )
    return result
