"""ChunkSizer: how many tasks of a function a chunk holds."""

from __future__ import annotations

from oncue.endpoint.pool.chunk_size import CHUNK_TASKS, FUNCTIONS, ChunkSizer


def test_an_unmeasured_function_gets_one_task_and_is_not_short() -> None:
    sizer = ChunkSizer()
    assert sizer.chunk_size("f") == 1
    assert not sizer.short("f")


def test_a_chunk_holds_about_as_many_tasks_as_run_in_its_time() -> None:
    sizer = ChunkSizer()
    sizer.measured("f", tasks=10, took_us=1_000)
    assert sizer.chunk_size("f") == 15
    assert sizer.short("f")


def test_the_size_is_bounded_for_tasks_that_take_no_time() -> None:
    sizer = ChunkSizer()
    sizer.measured("f", tasks=10, took_us=-1)
    assert sizer.chunk_size("f") == CHUNK_TASKS


def test_a_long_task_is_sent_alone_and_is_not_short() -> None:
    sizer = ChunkSizer()
    sizer.measured("f", tasks=1, took_us=6_000)
    assert sizer.chunk_size("f") == 1
    assert not sizer.short("f")


def test_the_oldest_function_is_forgotten() -> None:
    sizer = ChunkSizer()
    for n in range(FUNCTIONS + 1):
        sizer.measured(f"f{n}", tasks=10, took_us=1_000)
    assert sizer.chunk_size("f0") == 1
    assert sizer.chunk_size("f1") == 15
