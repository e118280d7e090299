"""The handle: its small methods, and that queries and studies get what was said."""

import threading

import pytest

import zoo
from zoo.errors import EmptyZooError, NotFoundError, OptionError, ReadOnlyError


@pytest.fixture
def full(z, new_sub):
    z.add_many([new_sub(i, producer="ifp" if i % 2 else "random") for i in range(8)])
    return z


def test_what_it_says_about_itself(full):
    assert repr(full) == f"<Zoo {full.path}: 8 sub-networks, 8 tasks, 1 bases, version b1-c1-s0-t1>"
    assert full.version == "b1-c1-s0-t1" and not full.read_only and len(full) == 8
    assert full.ids()[0] in full and "nope" not in full


def test_tasks_come_back_as_records(full):
    assert set(full.tasks()) == {sub.task for sub in full} and len(full.tasks()) == 8


def test_an_empty_zoo_has_no_base(z):
    with pytest.raises(EmptyZooError):
        z.base()
    with pytest.raises(NotFoundError):
        zoo.open(z.path).get("a" * 64)


def test_nearest_passes_everything_on(full):
    task = zoo.Task(labels=["dog", "cat"], synsets=["dog.n.01", "cat.n.01"])
    found = full.nearest(task, k=3, producer="ifp", where="accuracy > 0.502")
    rows = full.sql("select id from subnetworks where producer = 'ifp' and accuracy > 0.502").fetchall()
    allowed = {key for (key,) in rows}
    assert len(found) == 3 and set(found.id) <= allowed and list(found.score) == sorted(found.score, reverse=True)
    with pytest.raises(OptionError, match="where"):
        full.nearest(task, where="drop table subnetworks")
    with pytest.raises(EmptyZooError):
        full.nearest(task, where="false")


def test_arguments_reach_the_functions_they_are_for(full, monkeypatch):
    from zoo import depth, plots, query

    seen = {}
    monkeypatch.setattr(query, "nearest", lambda snapshot, task, **k: seen.update(nearest=(snapshot, task, k)))
    monkeypatch.setattr(depth, "iou_by_depth", lambda snapshot, **k: seen.update(iou=(snapshot, k)))
    monkeypatch.setattr(plots, "plot_channels", lambda *a, **k: seen.update(channels=(a, k)))
    monkeypatch.setattr(plots, "plot_widths", lambda *a, **k: seen.update(widths=(a, k)))
    full.nearest("t", k=2, by="leep", base="b", producer="p", exclude=None, per_task=None, group=3, groups=4,
                 binning="quantile", sample=1, embedding=[1.0], how="mean")  # fmt: skip
    assert seen["nearest"][1:] == (
        "t", {"k": 2, "by": "leep", "base": "b", "producer": "p", "allowed": None, "exclude": None, "per_task": None,
              "group": 3, "groups": 4, "binning": "quantile", "sample": 1, "embedding": [1.0], "how": "mean",
              "given": None},
    )  # fmt: skip
    said = {"by": "leep", "groups": 3, "binning": "quantile", "per": "layer", "base": "b", "mode": "coupled",
            "producer": "p", "keep": 0.5, "generation": None, "ids": ["x"], "exclude": None, "how": "mean",
            "bootstrap": 7, "seed": 9}  # fmt: skip
    full.iou_by_depth(**said)
    assert seen["iou"][1] == said and seen["iou"][0].token == full.version
    full.plot_channels("abc", "p.png", names=["n"])
    full.plot_widths(["a", "b"])
    assert seen["channels"][0][1:] == (["abc"], "p.png") and seen["channels"][1] == {"names": ["n"]}
    assert seen["widths"][0][1:] == (["a", "b"], None)


def test_the_handle_has_every_option_of_the_query_and_the_study():
    import inspect

    from zoo import depth, query

    for mine, theirs in ((zoo.Zoo.nearest, query.nearest), (zoo.Zoo.iou_by_depth, depth.iou_by_depth)):
        own, other = ({n: p.default for n, p in inspect.signature(f).parameters.items()} for f in (mine, theirs))
        for name in ("self", "where", "snapshot", "allowed", "given"):
            own.pop(name, None)
            other.pop(name, None)
        assert own == other


def test_a_study_and_plots_run(full, tmp_path):
    study = full.iou_by_depth(groups=2, producer="ifp", bootstrap=20)
    assert len(study.to_pandas()) == len(study) * 2
    full.plot_channels(full.ids()[:2], tmp_path / "c.png")
    full.plot_widths(full.ids()[0][:8], tmp_path / "w.png")
    assert (tmp_path / "c.png").stat().st_size > 1000 and (tmp_path / "w.png").stat().st_size > 1000


def test_read_only_handles_read(full, new_sub):
    reader = zoo.open(full.path, read_only=True)
    assert reader.read_only and len(reader) == 8 and reader.verify().ok
    for write in (lambda: reader.add(new_sub(99)), lambda: reader.remove(full.ids()[0]), reader.gc, reader.repair):
        with pytest.raises(ReadOnlyError):
            write()


def test_threads_may_share_a_handle(z, new_sub):
    errors = []

    def work(start):
        try:
            for i in range(start, start + 4):
                z.add(new_sub(i))
                assert len(z.sql("select id from subnetworks").fetchall()) >= 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * t,)) for t in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(z) == 12 and z.verify().ok
