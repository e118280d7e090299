"""Text that would be a command, a path or markup somewhere: it is stored, found and shown as text."""

from pathlib import Path

import numpy as np
import pytest
from factory import make_tensors

import zoo
from zoo.errors import NotFoundError, RecordError

NASTY = [
    "../../x", "/etc/passwd", "'; drop table subnetworks; --", '" or 1=1 --', "a\0b", "\n\r\t", "\\", "${HOME} $(id)",
    "%2e%2e%2f", "<script>alert(1)</script>", "\u202egnp.exe", "\U0001f9a6", "NULL", "{}", "x" * 100_000, "e\u0301",
]  # fmt: skip


def files(path):
    return {str(p.relative_to(path)) for p in Path(path).parent.rglob("*") if p.is_relative_to(path)}


def outside(path):
    return {p for p in Path(path).parent.iterdir() if p != Path(path)}


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_text_is_only_text(z, new_sub, text):
    if not text.strip():
        text += "."
    task = zoo.Task(labels=[text, "dog"], synsets=[None, "dog.n.01"], dataset=text, split=text)
    before = outside(z.path)
    sub = new_sub(
        task=task, producer=text, options={text: [text]}, metrics={text: 1.0}, parents=(text,), generation=1,
        embeddings={text: np.ones(2)}, kept_tokens={text: 1}, weights=make_tensors(1, a0=4, a1=3, classes=2),
    )  # fmt: skip
    key = z.add(sub)
    again = zoo.open(z.path)
    back = again.get(key)
    assert back == sub and back.task.labels[0] == text and back.producer == text and back.options == {text: [text]}
    assert list(back.metrics) == [text] and back.parents == (text,) and list(back.embeddings) == [text]
    assert again.sql("select id from subnetworks where producer = ?", [text]).fetchall() == [(key,)]
    assert again.sql("select labels[1] from tasks").fetchall() == [(text,)]
    assert again.verify().ok and len(again) == 1 and outside(z.path) == before
    again.add_scores([zoo.Score(key, text, text, -1.0, device=text)])
    assert again.snapshot().scores["target"].to_pylist() == [text]
    assert again.remove(key) == key and len(again) == 0


def test_nasty_ids_find_nothing(z, new_sub):
    key = z.add(new_sub())
    for text in (
        "' or '1'='1",
        "%%%%%%",
        "______",
        "......",
        "*" * 6,
        "../../../x",
        "[a-f0-9]{6}",
        "\0" * 8,
        "x" * 10**6,
    ):
        for use in (z.get, z.remove, z.base):
            with pytest.raises(NotFoundError) as caught:
                use(text)
            assert len(str(caught.value)) < 1000
        assert z.ids() == [key] and text not in z


def test_tensor_names_are_no_paths(z, new_sub):
    sub = new_sub(weights={**make_tensors(0, a0=4, a1=3, classes=5), "../../../tmp/x": np.ones(1)})
    before = files(z.path)
    with pytest.raises(RecordError, match="no such tensor"):
        z.add(sub)
    assert files(z.path) == before


def test_a_base_of_a_nasty_name(z, new_sub):
    from factory import make_base

    base = make_base(name="../../'; drop table bases; --")
    z.add(new_sub(base=base))
    assert zoo.open(z.path).base("../../'; drop table bases; --").id == base.id and z.verify().ok
