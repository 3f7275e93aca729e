from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve.jobs.queue import JobQueue
from serve.messages import PRIORITIES, Priority

jobs = st.lists(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abc")), max_size=40)


def filled(drawn: list[tuple[Priority, str]]) -> JobQueue:
    queue = JobQueue()
    for number, (priority, user) in enumerate(drawn):
        queue.add(str(number), priority, user)
    return queue


@given(jobs)
def test_classes_in_turn_and_arrival_within_a_class(drawn: list[tuple[Priority, str]]) -> None:
    expected = sorted(range(len(drawn)), key=lambda number: (PRIORITIES.index(drawn[number][0]), number))
    assert list(filled(drawn)) == [str(number) for number in expected]


@given(jobs, st.data())
def test_removing_never_reorders_the_others(drawn: list[tuple[Priority, str]], data: st.DataObject) -> None:
    queue = filled(drawn)
    before = list(queue)
    gone = data.draw(st.sets(st.sampled_from(before))) if before else set()
    for job_id in gone:
        queue.remove(job_id)
        queue.remove(job_id)
    assert list(queue) == [job_id for job_id in before if job_id not in gone]
    assert len(queue) == len(before) - len(gone)


@given(jobs.filter(bool), st.data())
def test_what_comes_back_gets_its_old_place(drawn: list[tuple[Priority, str]], data: st.DataObject) -> None:
    queue = JobQueue()
    arrivals = [queue.add(str(number), priority, user) for number, (priority, user) in enumerate(drawn)]
    before, back = list(queue), data.draw(st.integers(0, len(drawn) - 1))
    queue.remove(str(back))
    assert queue.add(str(back), *drawn[back], arrivals[back]) == arrivals[back]
    assert list(queue) == before
    assert len(queue) == len(drawn)


@given(jobs)
def test_it_counts_what_each_user_has_waiting(drawn: list[tuple[Priority, str]]) -> None:
    queue = filled(drawn)
    for user in "abc":
        assert queue.waiting_of(user) == sum(owner == user for _, owner in drawn)


@given(jobs, st.sampled_from(PRIORITIES))
def test_a_newcomer_waits_for_its_own_class_and_those_before(drawn: list[tuple[Priority, str]], mine: Priority) -> None:
    ahead = filled(drawn).up_to(mine)
    allowed = PRIORITIES[: PRIORITIES.index(mine) + 1]
    assert len(ahead) == sum(priority in allowed for priority, _ in drawn)
