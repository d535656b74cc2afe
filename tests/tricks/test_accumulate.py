"""Micro-batches against the whole batch."""

from hypothesis import given
from hypothesis import strategies as st

from runner.machine.processes import Processes
from runner.tricks.accumulate import micro_batches


@given(images=st.integers(1, 300), count=st.integers(1, 5), data=st.data())
def test_micro_batches_hold_each_image_once_however_many_processes(
    images: int, count: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, images))
    alone = micro_batches(images, steps)
    sizes = [rows.stop - rows.start for rows in alone]
    assert len(sizes) == steps
    assert max(sizes) - min(sizes) <= 1
    shared: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(count):
        mine = Processes(rank, count).share(images).tolist()
        for found, rows in zip(
            shared, micro_batches(images, steps, Processes(rank, count)), strict=True
        ):
            found += mine[rows]
            assert mine[rows] or images // steps < count
    everything = list(range(images))
    assert [sorted(found) for found in shared] == [everything[rows] for rows in alone]
