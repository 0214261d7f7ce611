"""What is kept for review: sampled, in batches, capped in number and in age."""

import pytest

from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.review import MOST_CHARS, Review, ReviewItem
from llm_cache.errors import StoreUnavailable


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=2, timeout_s=5)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
def make_review(connection, namespace):
    return lambda **settings: Review(
        connection, Keys(namespace), **{"sample_rate": 1.0, **settings}
    )


def item(new: str = "What is 1 + 1?", **changes: object) -> ReviewItem:
    about: dict[str, object] = {"similarity": 0.93, "verdict": "served", "digest": "d" * 32}
    return ReviewItem(new=new, cached="1 + 1 = ?", **{**about, **changes})  # type: ignore[arg-type]


async def test_what_is_offered_is_read_as_it_was(make_review):
    review = make_review()
    offered = [
        item("a 🙂\n", tenant="acme", space="abcd"),
        item(verdict="guard: numbers", similarity=0.1 + 0.2),
    ]
    assert [review.offer(each) for each in offered] == [True, True]
    assert await review.read() == []
    await review.flush()

    kept = await review.read()
    names = ("new", "cached", "similarity", "verdict", "digest", "tenant", "space")
    for before, after in zip(offered, kept, strict=True):
        assert [getattr(before, n) for n in names] == [getattr(after, n) for n in names]
        assert after.at_s > 1.7e9
    assert await review.count() == 2


async def test_nothing_is_kept_unless_asked(make_review, redis, namespace):
    review = make_review(sample_rate=0.0)
    assert not review.offer(item())
    await review.flush()

    assert not await redis.exists(Keys(namespace).review)


async def test_the_sample_is_as_large_as_was_said(make_review):
    draws = iter([0.0, 0.24, 0.25, 0.99])
    review = make_review(sample_rate=0.25, chance=lambda: next(draws))

    assert [review.offer(item()) for _ in range(4)] == [True, True, False, False]


async def test_pairs_that_could_not_be_judged_are_not_kept(make_review):
    review = make_review()

    assert review.offer(item("x" * MOST_CHARS))
    assert not review.offer(item("x" * (MOST_CHARS + 1)))
    assert not review.offer(item(""))


async def test_items_are_read_in_portions_and_forgotten_one_by_one(make_review):
    review = make_review()
    for number in range(5):
        review.offer(item(f"question {number}"))
    await review.flush()
    first = await review.read(limit=2)
    rest = await review.read(after=first[-1].id)
    await review.done([first[0].id, rest[0].id])

    assert [each.new for each in first + rest] == [f"question {n}" for n in range(5)]
    assert [each.new for each in await review.read()] == ["question 1", "question 3", "question 4"]


async def test_the_oldest_go_when_there_are_too_many(make_review):
    review = make_review(max_items=200)
    await review.add([item(f"question {number}") for number in range(1_000)])

    # Redis cuts whole nodes of its own size off.
    assert 200 <= await review.count() < 400
    assert (await review.read(limit=1_000))[-1].new == "question 999"


async def test_items_go_when_their_time_is_over_and_so_does_the_stream(
    make_review, redis, namespace
):
    key = Keys(namespace).review
    now_ms = 1000 * (await redis.time())[0]
    await redis.xadd(key, {"new": "an old one"}, id=f"{now_ms - 61_000}-0")
    await redis.xadd(key, {"new": "one of another release"}, id=f"{now_ms - 30_000}-0")
    review = make_review(ttl_s=60)
    review.offer(item())
    await review.flush()

    assert await review.count() == 2
    assert [each.new for each in await review.read()] == ["What is 1 + 1?"]
    assert 0 < await redis.pttl(key) <= 60_000


async def test_what_redis_did_not_take_stays_pending(make_review, connection):
    review = make_review()
    review.offer(item())
    await connection.aclose()
    with pytest.raises(StoreUnavailable):
        await review.flush()

    await connection.open()
    await review.flush()
    assert await review.count() == 1


async def test_what_piles_up_during_an_outage_is_bounded_and_the_newest_stays(
    make_review, connection
):
    review = make_review()
    await connection.aclose()
    for number in range(1_500):
        review.offer(item(f"question {number}"))
    with pytest.raises(StoreUnavailable):
        await review.flush()
    for number in range(1_500, 1_600):
        review.offer(item(f"question {number}"))

    await connection.open()
    await review.flush()
    kept = await review.read(limit=2_000)
    assert (len(kept), kept[0].new, kept[-1].new) == (1_000, "question 600", "question 1599")
