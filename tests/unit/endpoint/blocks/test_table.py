"""Blocks on virtual time: the real table and journal, a scheduler and nodes that are simulated."""

from __future__ import annotations

import msgspec
import pytest

from oncue.endpoint.blocks.records import BlockPhase
from oncue.endpoint.blocks.scaling import ScalingLimits
from oncue.endpoint.blocks.status import block_rows, breaker_words, node_hours, waiting_words
from oncue.endpoint.blocks.table import JOIN_US, BlockTable
from oncue.endpoint.providers.jobs import JobEnding, JobState, JobStatus
from tests.simulation.block_world import BlockWorld, SimNode
from tests.simulation.scheduler import SECOND

HOUR, MANY = 3_600, ScalingLimits(
    max=50, nodes=2, workers=2, walltime_s=600.0, idle_s=60.0, pending=50, submits=100
)  # fmt: skip


def table_of(world: BlockWorld) -> BlockTable:
    assert world.table is not None
    return world.table


def all_done(world: BlockWorld) -> bool:
    return all(t.done for t in world.tasks)


def test_blocks_are_asked_for_by_demand_and_given_back() -> None:
    world = BlockWorld()
    world.boot()
    world.run_for(60)
    assert not world.scheduler.all, "no demand, no block"

    world.add(10, duration_s=30)
    world.run_for(HOUR, until=lambda: all_done(world))
    world.run_for(200)

    world.check()
    assert node_hours(table_of(world), world.clock.now_us) > 0


@pytest.mark.parametrize("limits", [MANY, msgspec.structs.replace(MANY, pending=2), None])
def test_jobs_that_die_at_once_are_submitted_at_most_3_times_in_10_minutes(limits: ScalingLimits | None) -> None:
    world = BlockWorld(limits=limits)
    world.scheduler.dying = 1.0
    world.boot()
    world.add(100, duration_s=30)

    world.run_for(12 * HOUR)

    world.check_jobs()
    assert len(world.scheduler.all) < 12, "pauses grow"
    words = breaker_words(table_of(world))
    assert "exit 127" in words
    assert "oncue: command not found" in words
    assert "endpoint reset" in words


def test_an_agent_that_is_restarted_again_and_again_submits_them_no_more_often() -> None:
    world = BlockWorld(limits=MANY)
    world.scheduler.dying = 1.0
    world.boot()
    world.add(100, duration_s=30)

    for _ in range(120):
        world.run_for(60)
        world.crash()
        world.boot()

    world.check_jobs()


def test_reset_closes_the_breaker() -> None:
    world = BlockWorld()
    world.scheduler.dying = 1.0
    world.boot()
    world.add(4, duration_s=5)
    world.run_for(HOUR)
    world.scheduler.dying = 0.0

    table_of(world).reset()
    world.run_for(120)

    assert all_done(world)
    assert not breaker_words(table_of(world))


def test_the_first_block_that_works_after_the_breaker_lets_the_rest_be_asked_for() -> None:
    world = BlockWorld()
    world.scheduler.dying = 1.0
    world.boot()
    world.add(40, duration_s=100)
    world.run_for(300)
    world.scheduler.dying = 0.0

    world.run_for(4 * HOUR, until=lambda: all_done(world))

    assert all_done(world)


def test_a_block_that_was_idle_and_given_back_soon_does_not_count_as_dead() -> None:
    world = BlockWorld(limits=msgspec.structs.replace(MANY, idle_s=1.0))
    world.boot()

    for _ in range(5):
        world.add(1, duration_s=0.1)
        world.run_for(100, until=lambda: all_done(world))
        world.run_for(100, until=lambda: not world.scheduler.live())

    assert all_done(world)
    assert len(world.scheduler.all) == 5
    assert not table_of(world).history.deaths
    world.check()


def test_a_submission_that_timed_out_but_went_through_is_adopted_not_doubled() -> None:
    world = BlockWorld()
    world.scheduler.lost_answers = 1.0
    world.boot()
    world.add(1, duration_s=30)

    world.run_for(HOUR, until=lambda: all_done(world))

    assert len(world.scheduler.all) == 1
    world.run_for(300)
    world.check()


def test_a_submission_that_never_arrived_is_made_again() -> None:
    world = BlockWorld()
    world.scheduler.lost_answers = world.scheduler.swallowed = 1.0
    world.boot()
    world.add(1, duration_s=30)
    world.run_for(60)
    assert not world.scheduler.all
    assert "searched for it" in waiting_words(table_of(world))
    world.scheduler.lost_answers = 0.0

    world.run_for(HOUR, until=lambda: all_done(world))

    assert len(world.scheduler.all) == 1


def test_a_job_that_appears_after_it_was_given_up_is_cancelled() -> None:
    world = BlockWorld()
    world.scheduler.lost_answers = world.scheduler.swallowed = 1.0
    world.boot()
    world.add(1, duration_s=30)
    world.run_for(100)
    (mark,) = [table_of(world).mark(b) for b in table_of(world).blocks.values()]
    world.run_for(100)  # given up
    world.scheduler.lost_answers, world.scheduler.queue_s = 0.0, (1e6, 1e6)
    late = world.scheduler.all[world.scheduler.submit(mark, 1, 600.0)]

    world.run_for(120)

    assert late.ending is JobEnding.CANCELLED


def test_0_workers_a_node_asks_for_no_block_and_says_so() -> None:
    world = BlockWorld(limits=ScalingLimits(max=10, workers=0))
    world.boot()
    world.add(5, duration_s=1)

    world.run_for(HOUR)

    assert not world.scheduler.all
    assert "0 workers" in waiting_words(table_of(world))


@pytest.mark.parametrize("seed", range(10))
def test_scale_in_never_ends_a_running_task(seed: int) -> None:
    world = BlockWorld(seed, ScalingLimits(max=8, nodes=2, workers=2, walltime_s=3_000.0, idle_s=1.0, pending=8))
    world.boot()
    for at in range(0, 1_800, 60):
        world.clock.after(at * SECOND, lambda: world.add(world.rng.randrange(12), world.rng.choice((1.0, 20.0, 200.0))))

    world.run_for(1_800)
    world.run_for(HOUR, until=lambda: all_done(world) and not world.scheduler.live())

    world.check()
    assert not any(t.lost for t in world.tasks)
    assert len(world.scheduler.all) > 8, "it came and went"


def test_a_scheduler_that_is_away_loses_nothing() -> None:
    world = BlockWorld()
    world.boot()
    world.add(20, duration_s=100)
    world.run_for(60)

    world.scheduler.away = True
    world.add(20, duration_s=10)
    world.run_for(300)
    assert not any(b.phase is BlockPhase.ENDED and b.job for b in table_of(world).blocks.values())
    world.scheduler.away = False
    world.run_for(2 * HOUR, until=lambda: all_done(world))
    world.run_for(200)

    world.check()
    assert not any(t.lost for t in world.tasks)


def test_a_scheduler_that_refuses_is_asked_ever_less_often_and_its_words_are_told() -> None:
    world = BlockWorld(limits=ScalingLimits(max=1))
    world.scheduler.refuses = "sbatch: error: invalid partition specified: gpu"
    asked = 0
    submit = world.scheduler.submit

    def count(mark: str, nodes: int, walltime_s: float) -> str:
        nonlocal asked
        asked += 1
        return submit(mark, nodes, walltime_s)

    world.scheduler.submit = count  # type: ignore[method-assign]
    world.boot()
    world.add(5, duration_s=1)

    world.run_for(HOUR)

    assert 3 < asked < 10
    assert f"submitting failed {asked} times: sbatch: error: invalid partition" in waiting_words(table_of(world))
    assert "next try in" in waiting_words(table_of(world))


def test_a_hiccup_of_the_scheduler_does_not_multiply_blocks() -> None:
    """Parsl asked for 43 blocks when squeue answered nothing, and the account was banned."""
    world = BlockWorld(limits=ScalingLimits(max=4, workers=2, walltime_s=30_000.0, pending=4))
    world.boot()
    world.add(100, duration_s=1_000)
    world.run_for(300)
    listing = world.scheduler.jobs
    world.scheduler.jobs = lambda ids: {}  # type: ignore[method-assign]

    world.run_for(HOUR)

    assert len(world.scheduler.all) == 4
    world.scheduler.jobs = listing  # type: ignore[method-assign]
    world.run_for(20 * HOUR, until=lambda: all_done(world))
    assert all_done(world)


@pytest.mark.parametrize("down_s", [1, 300])
def test_a_new_agent_adopts_the_blocks_that_run(down_s: int) -> None:
    world = BlockWorld()
    world.boot()
    world.add(8, duration_s=200)
    world.run_for(60)
    jobs = len(world.scheduler.all)

    world.crash()
    world.run_for(down_s)
    world.boot()
    world.run_for(HOUR, until=lambda: all_done(world))
    world.run_for(200)

    assert len(world.scheduler.all) == jobs
    world.check()
    assert not any(t.lost for t in world.tasks)


@pytest.mark.parametrize("seed", range(20))
def test_an_agent_that_is_killed_while_it_submits_doubles_nothing(seed: int) -> None:
    world = BlockWorld(seed)
    world.boot()
    world.add(8, duration_s=20)
    world.run_for(1, until=lambda: bool(table_of(world).blocks))
    world.run_for(world.rng.random() * 4)

    world.crash()
    world.boot()
    world.run_for(HOUR, until=lambda: all_done(world))
    world.run_for(300)

    world.check()


def test_no_job_is_submitted_while_the_disk_refuses_its_record() -> None:
    world = BlockWorld()
    world.boot()
    world.file.room = 0
    world.add(8, duration_s=20)

    world.run_for(120)

    assert not world.scheduler.all
    world.file.room = None
    world.run_for(300)
    assert all_done(world)


def test_tasks_are_handed_back_before_the_walltime_ends() -> None:
    world = BlockWorld()
    world.boot()
    world.add(40, duration_s=350)  # two after another do not fit into 600 s, and nothing says so

    world.run_for(6 * HOUR, until=lambda: all_done(world))

    assert all_done(world)
    assert not any(t.lost for t in world.tasks), "none was killed by the scheduler"


def test_no_task_goes_to_a_block_that_ends_before_it_would() -> None:
    world = BlockWorld()
    world.boot()
    world.add(40, duration_s=350, walltime_s=360)

    world.run_for(6 * HOUR, until=lambda: all_done(world))

    assert [t.runs for t in world.tasks] == [1] * 40


def test_a_block_whose_nodes_never_register_is_cancelled_and_counts_as_dead() -> None:
    world = BlockWorld(limits=msgspec.structs.replace(MANY, walltime_s=36_000.0))
    world.boot()
    world._dial = lambda node: None  # type: ignore[method-assign, assignment]  # no way back through the network
    world.add(2, duration_s=1)

    world.run_for(JOIN_US / SECOND + 120)

    assert [j.ending for j in world.scheduler.all.values()][:1] == [JobEnding.CANCELLED]
    assert "no worker has registered within 10 min" in table_of(world).history.died


def test_the_end_of_a_block_is_final() -> None:
    world = BlockWorld()
    world.boot()
    world.add(1, duration_s=5)
    world.run_for(HOUR)
    table, (block,) = table_of(world), table_of(world).blocks.values()
    assert block.phase is BlockPhase.ENDED

    table.on_jobs({block.job: JobStatus(JobState.RUNNING)}, world.clock.now_us)
    table.on_node_joined(block.id, "n9", world.clock.now_us)
    table.on_submitted(table.mark(block), block.job, world.clock.now_us)

    assert table.blocks[block.id] == block
    assert not table.live


@pytest.mark.parametrize("cancel", [True, False])
def test_no_job_is_left_after_stop(cancel: bool) -> None:
    world = BlockWorld(limits=ScalingLimits(max=8, nodes=2, workers=2, walltime_s=3_000.0, pending=4))
    world.scheduler.queue_s = (1.0, 200.0)
    world.boot()
    world.add(30, duration_s=100)
    world.run_for(61)
    assert world.scheduler.live()
    world.user_stop = cancel

    table_of(world).stop(world.clock.now_us, cancel=cancel)
    world.run_for(600, until=lambda: not table_of(world).live)

    assert not world.scheduler.live()
    assert not table_of(world).live
    assert cancel or not any(t.lost for t in world.tasks)


def test_why_a_task_waits_names_the_job_and_the_schedulers_reason() -> None:
    world = BlockWorld()
    world.scheduler.queue_s = (300.0, 300.0)
    world.boot()
    world.add(1, duration_s=1)

    world.run_for(60)

    assert waiting_words(table_of(world)) == "waiting for a block: job 1, PENDING (Resources)"
    (row,) = block_rows(table_of(world))
    assert (row["state"], row["job"], row["nodes"]) == ("pending", "1", 1)


def test_a_block_cancelled_under_us_is_replaced() -> None:
    world = BlockWorld()
    world.boot()
    world.add(8, duration_s=100)
    world.run_for(60)

    world.scheduler.cancel(tuple(j.id for j in world.scheduler.live()))
    world.run_for(HOUR, until=lambda: all_done(world))

    assert all_done(world)
    assert any(t.lost for t in world.tasks)


def test_initial_blocks_are_asked_for_and_given_back() -> None:
    world = BlockWorld(limits=ScalingLimits(max=4, initial=2, walltime_s=600.0, idle_s=60.0, pending=4))
    world.boot()

    world.run_for(50)
    assert len(world.scheduler.live()) == 2
    world.run_for(200)
    assert not world.scheduler.live()


def test_min_blocks_are_kept_beyond_their_walltime() -> None:
    world = BlockWorld(limits=ScalingLimits(min=1, max=2, walltime_s=600.0, idle_s=10.0))
    world.boot()

    world.run_for(4 * HOUR)

    assert world.scheduler.live()
    assert len(world.scheduler.all) <= 30


def test_a_block_whose_nodes_are_cut_off_is_given_up_and_replaced() -> None:
    world = BlockWorld(limits=ScalingLimits(max=4, walltime_s=3_000.0, idle_s=600.0))
    world.boot()
    world.add(1, duration_s=1)
    world.run_for(60, until=lambda: all_done(world))
    (job,) = world.scheduler.live()
    for node in world.nodes:
        node.connected, node.alive = False, False  # it cannot dial any more
        table_of(world).on_node_left(node.block, node.name, world.clock.now_us)
    world.add(1, duration_s=1)

    world.run_for(600, until=lambda: all_done(world))

    assert all_done(world), "another block was asked for"
    world.run_for(200)
    assert job.ending is JobEnding.CANCELLED


def test_nodes_of_a_block_that_never_came_do_not_count_as_room() -> None:
    world = BlockWorld(limits=ScalingLimits(max=4, nodes=2, workers=2, walltime_s=3_000.0, idle_s=600.0, pending=4))
    dial, dialled = world._dial, []

    def only_the_first(node: SimNode) -> None:
        dialled.append(node)
        if len(dialled) != 2:
            dial(node)

    world._dial = only_the_first  # type: ignore[method-assign]
    world.boot()
    world.add(4, duration_s=300)

    world.run_for(200)

    assert len(world.scheduler.all) == 2
