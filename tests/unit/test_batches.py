from serve.jobs.batches import Batches, Outcome
from serve.messages import Batch

THREE = Batch(id="b", jobs=3)
DONE = Outcome(reason=None, took_s=2.0, waited_s=0.5)


def test_a_job_alone_is_a_request():
    assert Batches().add(None, DONE) is DONE


def test_a_request_has_ended_with_its_last_job():
    batches = Batches()
    slow = Outcome(reason=None, took_s=5.0)
    assert [batches.add(THREE, one) for one in (DONE, slow, DONE)] == [
        None,
        None,
        Outcome(reason=None, took_s=5.0, waited_s=0.5),
    ]


def test_the_first_failure_is_the_requests():
    batches = Batches()
    refused, canceled = Outcome(reason="REJECTED", took_s=0.0), Outcome(reason="CANCELED", took_s=1.0)
    told = [batches.add(THREE, one) for one in (DONE, refused, canceled)]
    assert told[:2] == [None, None]
    assert told[2] == Outcome(reason="REJECTED", took_s=2.0, waited_s=0.5)


def test_requests_do_not_mix_and_an_ended_one_is_forgotten():
    batches, two = Batches(), Batch(id="c", jobs=2)
    assert [batches.add(batch, DONE) for batch in (THREE, two, THREE)] == [None] * 3
    assert batches.add(two, DONE) == DONE
    assert batches.add(two, DONE) is None
    assert batches.add(THREE, DONE) == DONE
