from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.jobs.line import KEEP_USERS, Line, Waiting
from serve.jobs.queue import JobQueue
from serve.messages import PRIORITIES, Priority


@dataclass(frozen=True)
class Drawn:
    id: str
    priority: Priority
    user: str
    images: int = 1
    seconds: float = 1.0


def job(number: int, priority: Priority, user: str, images: int, milliseconds: int) -> Drawn:
    return Drawn(str(number), priority, user, images, milliseconds / 1e3)


shapes = st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abcd"), st.integers(1, 4), st.integers(1, 5000))
jobs = st.lists(shapes, max_size=30).map(lambda drawn: [job(number, *shape) for number, shape in enumerate(drawn)])
turns = st.integers(0, 20)


def add(queue: JobQueue, job: Drawn) -> int:
    return queue.add(job.id, job.priority, job.user, images=job.images, image_seconds=job.seconds)


def filled(drawn: list[Drawn]) -> JobQueue:
    queue = JobQueue()
    for job in drawn:
        add(queue, job)
    return queue


def serve(queue: JobQueue, images: int = 10_000) -> list[str]:
    """Places images in turn, as far as there are some; whose they were."""
    served: list[str] = []
    while len(served) < images and (head := queue.head()) is not None:
        queue.served(head)
        served.append(head)
    return served


def begun(served: list[str]) -> list[str]:
    return list(dict.fromkeys(served))


def of_class(ids: list[str], drawn: list[Drawn], priority: Priority) -> list[str]:
    return [job_id for job_id in ids if drawn[int(job_id)].priority == priority]


def test_higher_classes_go_first() -> None:
    queue = filled([Drawn("b", "batch", "u"), Drawn("s", "standard", "u"), Drawn("i", "interactive", "u")])
    assert list(queue) == ["i", "s", "b"]


def test_users_take_turns() -> None:
    queue = filled([Drawn(name, "standard", name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c1")])
    assert list(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_the_least_recently_served_user_is_next() -> None:
    queue = filled([Drawn(name, "standard", name[0]) for name in ("a1", "b1", "c1")])
    serve(queue, 2)
    for name in ("b2", "a2", "c2"):
        add(queue, Drawn(name, "standard", name[0]))
    assert serve(queue) == ["c1", "a2", "b2", "c2"]


def test_a_lower_class_gets_every_tenth_second_while_a_higher_one_waits() -> None:
    queue = filled([Drawn(f"i{number}", "interactive", "u") for number in range(40)] + [Drawn("b1", "batch", "u")])
    assert list(queue).index("b1") == 10


def test_what_was_free_is_not_held_against_a_class() -> None:
    queue = filled([Drawn(f"b{number}", "batch", "u") for number in range(60)])
    serve(queue, 50)
    for number in range(40):
        add(queue, Drawn(f"i{number}", "interactive", "u"))
    assert "".join(served[0] for served in serve(queue, 21)) == 10 * "i" + "b" + 9 * "i" + "b"


def test_what_a_class_was_owed_is_forgotten_when_nothing_of_it_waits() -> None:
    queue = filled([Drawn(f"i{number}", "interactive", "u") for number in range(40)] + [Drawn("b1", "batch", "u")])
    serve(queue, 9)
    queue.remove("b1")
    add(queue, Drawn("b2", "batch", "u"))
    assert serve(queue, 11) == [f"i{number}" for number in range(9, 19)] + ["b2"]


def test_unmeasured_work_has_its_tenth_of_the_turns() -> None:
    queue = filled([Drawn(f"i{number}", "interactive", "u", seconds=0) for number in range(40)])
    queue.add("b1", "batch", "u")
    assert list(queue).index("b1") == 10


def test_a_job_is_finished_before_its_class_takes_up_another() -> None:
    queue = filled([Drawn("a1", "standard", "a", images=3), Drawn("b1", "standard", "b", images=2)])
    assert serve(queue) == ["a1", "a1", "a1", "b1", "b1"]


def test_a_higher_class_comes_between_the_images_of_a_job() -> None:
    queue = filled([Drawn("b1", "batch", "a", images=3)])
    serve(queue, 1)
    add(queue, Drawn("i1", "interactive", "a"))
    assert serve(queue) == ["i1", "b1", "b1"]


def test_placed_jobs_keep_their_positions_until_they_are_removed() -> None:
    queue = filled([Drawn("b1", "batch", "u"), Drawn("b2", "batch", "u")])
    serve(queue)
    add(queue, Drawn("i1", "interactive", "u"))
    assert (list(queue), queue.head(), queue.waiting_of("u")) == (["b1", "b2", "i1"], "i1", 3)
    queue.remove("b1")
    assert (list(queue), queue.waiting_of("u")) == (["b2", "i1"], 2)


def test_a_lost_image_of_a_job_that_still_waits_is_placed_again_first() -> None:
    queue = filled([Drawn("a1", "standard", "a", images=2), Drawn("b1", "standard", "b")])
    assert serve(queue, 2) == ["a1", "a1"]
    queue.add("a1", "standard", "a", images=1, image_seconds=1.0)
    assert serve(queue) == ["a1", "b1"]


def test_new_arrivals_follow_those_that_were_given_back_their_places() -> None:
    queue = JobQueue()
    queue.add("old", "standard", "u", arrival=7)
    assert queue.add("new", "standard", "u") == 8
    assert list(queue) == ["old", "new"]


def test_a_newcomer_that_is_owed_nothing_yet_waits_for_its_own_class_and_those_above() -> None:
    queue = filled(
        [Drawn(name, "standard", name[0]) for name in ("a1", "a2", "a3", "b1")] + [Drawn("b2", "batch", "b")]
    )
    assert queue.ahead_of("standard", "c") == ["a1", "b1"]
    assert queue.ahead_of("batch", "c") == ["a1", "b1", "a2", "a3", "b2"]
    assert queue.ahead_of("interactive", "c") == []
    assert list(queue) == ["a1", "b1", "a2", "a3", "b2"]
    assert len(queue) == 5


def test_only_so_many_users_are_remembered() -> None:
    line = Line()
    for number in range(KEEP_USERS + 1):
        job = Waiting(f"{number}", f"u{number}", 0, number, 1, 1, None)
        line.add(job)
        line.give_turn(job, number + 1)
        line.remove(job)
    for number in (KEEP_USERS, 1, 0):
        line.add(Waiting(f"again {number}", f"u{number}", 0, KEEP_USERS + 1, 1, 1, None))
    assert [job.user for job in line] == ["u0", "u1", f"u{KEEP_USERS}"]


def test_a_class_is_owed_one_image_at_a_time() -> None:
    queue = filled([Drawn("i1", "interactive", "u", seconds=10), Drawn("i2", "interactive", "u", seconds=10)])
    add(queue, Drawn("s1", "standard", "u", images=3))
    add(queue, Drawn("s2", "standard", "u"))
    assert list(queue) == ["i1", "s1", "i2", "s2"]
    assert serve(queue) == ["i1", "s1", "i2", "s1", "s1", "s2"]


@given(jobs, turns)
def test_the_order_shown_is_the_order_in_which_jobs_begin(drawn: list[Drawn], already: int) -> None:
    queue = filled(drawn)
    before = serve(queue, already)
    shown = list(queue)
    after = begun(serve(queue))
    waiting = [job_id for job_id in after if job_id not in before]
    assert [job_id for job_id in shown if job_id not in before] == waiting


@given(jobs, turns)
def test_positions_are_a_permutation(drawn: list[Drawn], already: int) -> None:
    queue = filled(drawn)
    serve(queue, already)
    assert sorted(queue) == sorted(job.id for job in drawn)
    assert len(queue) == len(drawn)
    assert all(job.id in queue for job in drawn)


@given(jobs)
def test_every_image_is_placed_once(drawn: list[Drawn]) -> None:
    served = serve(filled(drawn))
    assert {job.id: served.count(job.id) for job in drawn} == {job.id: job.images for job in drawn}


@given(jobs)
def test_jobs_of_a_user_begin_as_they_came(drawn: list[Drawn]) -> None:
    order = begun(serve(filled(drawn)))
    for user in "abcd":
        for priority in PRIORITIES:
            mine = [int(i) for i in of_class(order, drawn, priority) if drawn[int(i)].user == user]
            assert mine == sorted(mine)


@given(jobs, st.lists(turns, max_size=30))
def test_nobody_gets_two_turns_while_another_user_of_the_class_waits(drawn: list[Drawn], pace: list[int]) -> None:
    """Jobs come while others are served: `pace` images are placed after each arrival."""
    queue, history = JobQueue(), list[tuple[str, str]]()
    for number, job in enumerate(drawn):
        add(queue, job)
        history.append(("came", job.id))
        history += [("began", job_id) for job_id in serve(queue, pace[number] if number < len(pace) else 0)]
    history += [("began", job_id) for job_id in serve(queue)]
    history = list(dict.fromkeys(history))
    for job in drawn:
        wait = history[history.index(("came", job.id)) + 1 : history.index(("began", job.id))]
        others = [drawn[int(job_id)] for kind, job_id in wait if kind == "began"]
        mine = [other for other in others if other.user == job.user and other.priority == job.priority]
        rivals = [other.user for other in others if other.user != job.user and other.priority == job.priority]
        assert all(rivals.count(user) <= len(mine) + 1 for user in rivals)


@given(st.lists(shapes, min_size=30, max_size=120), st.integers(1, 8))
def test_no_class_starves(drawn: list[tuple[Priority, str, int, int]], waiting: int) -> None:
    """Over every span in which a class waits, it gets a tenth of the GPU-seconds, less 1.25 of the costliest image."""
    all_jobs = [job(number, *shape) for number, shape in enumerate(drawn)]
    queue, coming = filled(all_jobs[:waiting]), iter(all_jobs[waiting:])
    costliest = max(job.seconds for job in all_jobs)
    images = {job.id: job.images for job in all_jobs}
    lags = dict.fromkeys(PRIORITIES[1:], 0.0)  # seconds behind its tenth, in the span that is its worst
    while (head := queue.head()) is not None:
        left = {all_jobs[int(job_id)].priority for job_id in queue if images[job_id]}
        served = all_jobs[int(head)]
        queue.served(head)
        images[head] -= 1
        for name in lags:
            got = served.seconds if served.priority == name else 0.0
            lags[name] = max(0.0, lags[name] + served.seconds / 10 - got) if name in left else 0.0
            assert lags[name] <= 1.25 * costliest
        if (newcomer := next(coming, None)) is not None:
            add(queue, newcomer)


def test_endless_higher_work_does_not_starve_batch() -> None:
    queue = filled([Drawn(f"b{number}", "batch", "u", seconds=3.0) for number in range(100)])
    seconds = dict.fromkeys(PRIORITIES, 0.0)
    for number in range(500):
        add(queue, Drawn(f"i{number}", "interactive", f"u{number % 7}", seconds=2.0))
        add(queue, Drawn(f"s{number}", "standard", f"u{number % 5}", seconds=5.0))
        served = queue.head()
        assert served is not None
        queue.served(served)
        queue.remove(served)
        seconds[{"i": "interactive", "s": "standard", "b": "batch"}[served[0]]] += {"i": 2, "s": 5, "b": 3}[served[0]]
    assert seconds["batch"] == pytest.approx(0.1 * sum(seconds.values()), abs=5.0)
    assert seconds["standard"] == pytest.approx(0.1 * sum(seconds.values()), abs=5.0)


@given(jobs.filter(bool), turns, st.data())
def test_cancelling_never_reorders_others_of_the_class(drawn: list[Drawn], already: int, data: st.DataObject) -> None:
    queue = filled(drawn)
    placed = set(serve(queue, already))
    before = [job_id for job_id in queue if job_id not in placed]
    gone = drawn[data.draw(st.integers(0, len(drawn) - 1))]
    queue.remove(gone.id)
    queue.remove(gone.id)
    after = [job_id for job_id in queue if job_id not in placed]
    assert gone.id not in queue
    for priority in PRIORITIES:
        old, new = of_class(before, drawn, priority), of_class(after, drawn, priority)
        for mine in (True, False):
            kept = [i for i in old if (drawn[int(i)].user == gone.user) is mine and i != gone.id]
            assert [i for i in new if (drawn[int(i)].user == gone.user) is mine] == kept
        assert all(new.index(job_id) <= old.index(job_id) for job_id in new)


@given(jobs.filter(bool), turns, st.data())
def test_what_comes_back_gets_its_old_place(drawn: list[Drawn], already: int, data: st.DataObject) -> None:
    """Jobs are given their turns and removed, as when they begin; then some are lost and come back, in any order."""
    queue, arrivals = JobQueue(), dict[str, int]()
    for job in drawn:
        arrivals[job.id] = add(queue, job)
    given: dict[str, int] = {}
    for _ in range(already):
        if (head := queue.head()) is not None:
            given[head] = queue.served(head)
    expected = list(given) + [job_id for job_id in queue if job_id not in given]
    for job_id in given:
        queue.remove(job_id)
    for job_id in data.draw(st.permutations(list(given))):
        job = drawn[int(job_id)]
        how = {"images": job.images, "image_seconds": job.seconds, "turn": given[job_id]}
        assert queue.add(job.id, job.priority, job.user, arrivals[job_id], **how) == arrivals[job_id]
    for priority in PRIORITIES:
        assert of_class(list(queue), drawn, priority) == of_class(expected, drawn, priority)


@given(jobs)
def test_it_counts_what_each_user_has_waiting(drawn: list[Drawn]) -> None:
    queue = filled(drawn)
    for user in "abcd":
        assert queue.waiting_of(user) == sum(job.user == user for job in drawn)


@given(jobs, st.sampled_from(PRIORITIES))
def test_up_to_a_class_are_its_jobs_and_those_above(drawn: list[Drawn], lowest: Priority) -> None:
    queue = filled(drawn)
    allowed = PRIORITIES[: PRIORITIES.index(lowest) + 1]
    assert queue.up_to(lowest) == [job_id for job_id in queue if drawn[int(job_id)].priority in allowed]


@pytest.mark.parametrize("placed", [0, 1, 2])
def test_an_heir_gets_what_is_left_and_nobody_else_moves(placed: int) -> None:
    queue = JobQueue()
    first = queue.add("first", "standard", "u", images=2)
    between, heir = queue.add("between", "standard", "u", images=1), queue.arrive()
    queue.add("other", "standard", "v", images=1)
    for _ in range(placed):
        assert queue.head() == "first"
        queue.served("first")
    others = [job_id for job_id in queue if job_id != "first"] if placed else ["between", "other"]
    queue.hand_over("first", "heir", "standard", "u", heir)
    assert first < between < heir
    assert list(queue) == (["heir", *others] if placed else [*others, "heir"])
    assert (len(queue), queue.waiting_of("u"), "first" in queue) == (3, 2, False)
    assert queue.head() == ("heir" if placed == 1 else others[0])
