"""`zcrpc.context()` in handlers, metadata both ways, and what calls made in handlers inherit."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from conftest import Serving, Waits, until
from raw_peer import ERROR, PREFACE, REQUEST, RESPONSE, RawPeer, RawServer, frame, hello

import zcrpc
from zcrpc.errors import Status


class Tells(Waits):
    """A service whose methods tell what they know of their call."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[zcrpc.Context] = []
        self.downstream: Any = None
        self.seen: list[Any] = []
        self.tasks: set[asyncio.Task[None]] = set()

    @zcrpc.method
    async def method(self) -> str:
        return zcrpc.context().method

    @zcrpc.method
    def plain(self) -> tuple[str, float | None]:
        return zcrpc.context().method, zcrpc.context().deadline

    @zcrpc.method
    async def everywhere(self, tag: str) -> list[str]:
        """In the first step, after awaits, in tasks, task groups and threads."""

        async def later() -> zcrpc.Context:
            await asyncio.sleep(0.001)
            return zcrpc.context()

        found = [zcrpc.context()]
        await asyncio.sleep(0)
        found.append(zcrpc.context())
        found.append(await asyncio.create_task(later()))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(later()) for _ in range(3)]
        found += [task.result() for task in tasks]
        found.append(await asyncio.to_thread(zcrpc.context))
        assert all(each is found[0] for each in found)
        return [str(each.metadata["tag"]) for each in found]

    @zcrpc.method
    async def peer(self) -> tuple[str, Any]:
        identity = zcrpc.context().identity
        return zcrpc.context().peer, identity and [identity.pid, identity.uid, identity.gid]

    @zcrpc.method
    async def deadline(self) -> float | None:
        return zcrpc.context().deadline

    @zcrpc.method
    async def got(self) -> dict[str, Any]:
        return dict(zcrpc.context().metadata)

    @zcrpc.method
    async def answers(self, metadata_: dict[str, Any], wait: bool, fail: bool) -> str:
        zcrpc.context().response_metadata.update(metadata_)
        if wait:
            await asyncio.sleep(0.001)
        if fail:
            raise zcrpc.NotFound("no", details=[1])
        return "yes"

    @zcrpc.method
    def answers_plainly(self, value: bytes) -> memoryview:
        zcrpc.context().response_metadata["size"] = str(len(value))
        return memoryview(value)

    @zcrpc.method
    async def wait_and_tell(self) -> None:
        self.contexts.append(zcrpc.context())
        await self.wait()

    @zcrpc.method
    async def relay(self, limit: float | None) -> float | None:
        """The time that a call made here has left, at its handler."""
        left = await self.downstream.deadline(timeout=limit)
        assert isinstance(left, float | None)
        return left

    @zcrpc.method
    async def relay_wait(self) -> str:
        return str(await self.downstream.wait())

    @zcrpc.method
    async def relay_detached(self) -> float | None:
        with zcrpc.detached():
            left = await self.downstream.deadline()
            with pytest.raises(RuntimeError):
                zcrpc.context()
        assert zcrpc.context().deadline
        assert isinstance(left, float | None)
        return left

    @zcrpc.method
    async def leaves_a_task(self) -> None:
        async def outlives() -> None:
            await self.gate.wait()
            self.seen.append(dict(zcrpc.context().metadata))

        task = asyncio.create_task(outlives())
        self.tasks.add(task)


# ---- who, what, until when


def test_outside_of_a_call_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="no call is being served here"):
        zcrpc.context()


async def test_none_where_calls_are_made_or_have_been_served(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        await tells.method()
        with pytest.raises(RuntimeError):
            zcrpc.context()
        with zcrpc.outgoing(timeout=1), pytest.raises(RuntimeError):
            zcrpc.context()


async def test_async_and_plain_handlers_know_their_call(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        assert await tells.method() == "Tells.method"
        name, left = await tells.plain(timeout=5)  # type: ignore[call-arg]
        assert name == "Tells.plain"
        assert left is not None
        assert 4 < left <= 5.001


async def test_each_of_many_calls_knows_its_own_wherever_it_goes(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address) as client:
        tags = [f"t{n}" for n in range(20)]
        found = await asyncio.gather(
            *(client.call("Tells.everywhere", tag, metadata={"tag": tag}, returns=list[str]) for tag in tags)
        )
        assert found == [[tag] * 7 for tag in tags]


async def test_a_task_that_outlives_its_call_still_knows_that_and_no_other(serving: Serving) -> None:
    service = Tells()
    async with serving(service) as (_, address), zcrpc.connect(address) as client:
        await client.call("Tells.leaves_a_task", metadata={"mine": "1"})
        await client.call("Tells.method", metadata={"other": "2"})
        service.gate.set()
        await asyncio.gather(*service.tasks)
        assert service.seen == [{"mine": "1"}]


async def test_peer_of_tcp_has_address_and_no_identity(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        peer, identity = await tells.peer()
        assert peer.startswith("tcp://127.0.0.1:")
        assert peer != address
        assert identity is None


async def test_peer_of_a_unix_socket_is_a_process(serving: Serving, tmp_path: Path) -> None:
    async with serving(Tells(), address=f"unix://{tmp_path}/s") as (_, address), zcrpc.connect(address, Tells) as tells:
        assert await tells.peer() == (address, [os.getpid(), os.getuid(), os.getgid()])


async def test_deadline_is_what_is_left(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        assert await tells.deadline() is None
        left = await tells.deadline(timeout=3.0)  # type: ignore[call-arg]
        assert left is not None
        assert 2 < left <= 3.001


@pytest.mark.parametrize("end", ["cancelled", "deadline", "connection", "server"])
async def test_context_tells_that_nobody_waits_any_more(serving: Serving, end: str) -> None:
    service = Tells()
    async with serving(service) as (server, address):
        client = await zcrpc.connect(address)
        timeout = 0.05 if end == "deadline" else None
        call = asyncio.ensure_future(client.call("Tells.wait_and_tell", timeout=timeout))
        await until(lambda: service.contexts)
        assert not service.contexts[0].cancelled()
        if end == "cancelled":
            call.cancel()
        elif end == "connection":
            await client.close()
        elif end == "server":
            await server.close(grace=0)
        await until(lambda: service.cancelled == 1)
        assert service.contexts[0].cancelled()
        await asyncio.gather(call, return_exceptions=True)
        await client.close()


async def test_a_call_that_ended_well_was_not_cancelled(serving: Serving) -> None:
    service = Tells()
    async with serving(service) as (_, address), zcrpc.connect(address, Tells) as tells:
        service.gate.set()
        await tells.wait_and_tell()
        await asyncio.sleep(0.01)
        assert not service.contexts[0].cancelled()
        assert "wait_and_tell" in repr(service.contexts[0])


# ---- calls made in handlers


@pytest.fixture
def chained(serving: Serving) -> Any:
    """A server whose handlers call another's."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def open_() -> Any:
        front, back = Tells(), Tells()
        async with serving(back) as (_, behind), zcrpc.connect(behind, Tells) as downstream:
            front.downstream = downstream
            async with serving(front) as (_, address), zcrpc.connect(address, Tells) as tells:
                yield tells, back

    return open_


@pytest.mark.parametrize(("outer", "inner", "least", "most"), [(5, None, 4, 5), (5, 1, 0.5, 1), (1, 5, 0.5, 1)])
async def test_deadline_is_inherited(
    chained: Any, outer: float, inner: float | None, least: float, most: float
) -> None:
    async with chained() as (tells, _):
        assert least < await tells.relay(inner, timeout=outer) <= most + 0.001


async def test_without_deadline_none_is_inherited(chained: Any) -> None:
    async with chained() as (tells, _):
        assert await tells.relay(None) is None
        assert await tells.relay(2.0) > 1


async def test_detached_inherits_nothing(chained: Any) -> None:
    async with chained() as (tells, _):
        assert await tells.relay_detached(timeout=5) is None


@pytest.mark.parametrize("by", ["cancel", "deadline"])
async def test_the_end_of_a_call_ends_the_calls_that_it_made(chained: Any, by: str) -> None:
    async with chained() as (tells, back):
        call = asyncio.ensure_future(tells.relay_wait(timeout=0.1 if by == "deadline" else None))
        await until(lambda: back.began)
        if by == "cancel":
            call.cancel()
        with pytest.raises((zcrpc.DeadlineExceeded, asyncio.CancelledError)):
            await call
        await until(lambda: back.cancelled == 1)


async def test_a_blocked_loop_does_not_stop_the_clock(serving: Serving) -> None:
    """uvloop's time stands still between two turns of the loop."""

    class Blocks(zcrpc.Service):
        @zcrpc.method
        def block(self) -> tuple[float | None, float | None]:
            before = zcrpc.context().deadline
            threading.Event().wait(0.1)
            return before, zcrpc.context().deadline

    async with serving(Blocks()) as (_, address), zcrpc.connect(address) as client:
        before, after = await client.call("Blocks.block", timeout=5.0)
        assert before - after >= 0.1


# ---- metadata


GOOD: list[dict[str, Any]] = [
    {},
    {"a": ""},
    {"request-id": "7", "trace.parent": "00-ab", "0_x": b"\x00\xff"},
    {"k" * 128: "ä" * 100, "long": b"x" * 5000},
]


@pytest.mark.parametrize("metadata", GOOD)
@pytest.mark.parametrize("keywords", [False, True])
async def test_metadata_arrives(serving: Serving, metadata: dict[str, Any], keywords: bool) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address) as client:
        assert await client.call("Tells.got", metadata=metadata) == metadata
        options = {"metadata_": metadata, "wait": False, "fail": False} if keywords else {}
        arguments = () if keywords else (metadata, False, False)
        with zcrpc.outgoing() as out:
            await client.call("Tells.answers", *arguments, metadata=metadata, **options)
        assert out.response_metadata == metadata
        tells = client.use(Tells)
        assert await tells.got(metadata=metadata) == metadata  # type: ignore[call-arg]


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("fail", [False, True])
async def test_metadata_comes_with_results_and_errors(serving: Serving, wait: bool, fail: bool) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        with zcrpc.outgoing() as out:
            if fail:
                with pytest.raises(zcrpc.NotFound) as caught:
                    await tells.answers({"k": b"v"}, wait, fail)
                assert caught.value.metadata == {"k": b"v"}
                assert caught.value.details == [1]
            else:
                assert await tells.answers({"k": b"v"}, wait, fail) == "yes"
            assert out.response_metadata == {"k": b"v"}
            await tells.method()
            assert out.response_metadata == {}


async def test_metadata_comes_with_large_payloads(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        for size in (0, 600, 100_000, 3 << 20):
            with zcrpc.outgoing() as out:
                assert bytes(await tells.answers_plainly(b"z" * size)) == b"z" * size
            assert out.response_metadata == {"size": str(size)}


BAD: list[tuple[Any, str]] = [
    ({"Upper": "x"}, "lower-case token"),
    ({"": "x"}, "lower-case token"),
    ({"-x": "x"}, "lower-case token"),
    ({"a b": "x"}, "lower-case token"),
    ({"a\n": "x"}, "lower-case token"),
    ({"k" * 129: "x"}, "lower-case token"),
    ({1: "x"}, "lower-case token"),
    ({"k": 1}, "neither str nor bytes"),
    ({"k": None}, "neither str nor bytes"),
    ({"k": ["x"]}, "neither str nor bytes"),
]


@pytest.mark.parametrize(
    ("metadata", "says"), [*BAD, ({"zcrpc-x": "1"}, "belong to the protocol"), ([("a", "b")], "mapping")]
)
async def test_bad_metadata_is_not_sent(serving: Serving, metadata: Any, says: str) -> None:
    async with serving(Tells()) as (server, address), zcrpc.connect(address) as client:
        with pytest.raises(zcrpc.InvalidArgument, match=says):
            await client.call("Tells.got", metadata=metadata)
        assert server.stats().requests == 0
        if isinstance(metadata, dict) and all(isinstance(key, str) for key in metadata):
            with pytest.raises(zcrpc.Internal, match=says):
                await client.call("Tells.answers", metadata, False, False)
            with pytest.raises(zcrpc.NotFound):  # what was raised matters more
                await client.call("Tells.answers", metadata, False, True)
        assert await client.call("Tells.method") == "Tells.method"


@pytest.mark.parametrize(("metadata", "says"), [*BAD, (5, "metadata is a map"), ([], "metadata is a map")])
async def test_bad_metadata_is_refused(serving: Serving, metadata: Any, says: str) -> None:
    async with serving(Tells()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(REQUEST, [[], None, metadata], method=peer.methods["Tells.got"], stream=1))
        answer = await peer.frame()
        assert (answer.kind, answer.stream, answer.method) == (ERROR, 1, Status.INVALID_ARGUMENT)
        assert says in answer.header[0]
        peer.call("Tells.method", stream=2)
        assert (await peer.frame()).header == ["Tells.method"]


async def test_keys_of_the_protocol_are_not_shown(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), await RawPeer.greeted(address) as peer:
        peer.send(frame(REQUEST, [[], {}, {"zcrpc-later": "1", "k": "v"}], method=peer.methods["Tells.got"], stream=1))
        assert (await peer.frame()).header == [{"k": "v"}]


async def test_metadata_over_the_limit_is_refused_by_both_sides(serving: Serving) -> None:
    big = {"k": "x" * 101}
    async with serving(Tells(), max_metadata=100) as (server, address):
        async with zcrpc.connect(address) as client:
            with pytest.raises(zcrpc.ResourceExhausted, match="more than the 100 that the peer takes"):
                await client.call("Tells.got", metadata=big)
            assert server.stats().requests == 0
        async with await RawPeer.greeted(address) as peer:
            peer.send(frame(REQUEST, [[], None, big], method=peer.methods["Tells.got"], stream=1))
            answer = await peer.frame()
            assert (answer.kind, answer.method) == (ERROR, Status.RESOURCE_EXHAUSTED)
            assert "more than the 100 that this side takes" in answer.header[0]
        assert server.stats().exhausted["metadata"] == 1
        async with zcrpc.connect(address, max_metadata=100) as client:
            with pytest.raises(zcrpc.ResourceExhausted, match=r"the answer of .* more than the 100"):
                await client.call("Tells.answers", big, False, False)
            with pytest.raises(zcrpc.NotFound) as caught:
                await client.call("Tells.answers", big, False, True)
            assert caught.value.metadata == {}


@pytest.mark.parametrize(
    ("header", "kind", "error", "says"),
    [
        ([1, 5], RESPONSE, zcrpc.Internal, "metadata is a map"),
        ([1, {"K": "x"}], RESPONSE, zcrpc.Internal, "lower-case"),
        ([1, {"k": "x" * 9000}], RESPONSE, zcrpc.ResourceExhausted, "more than the 8192"),
        (["why", None, 5], ERROR, zcrpc.NotFound, "why"),
        (["why", None, {"K": 1}], ERROR, zcrpc.NotFound, "why"),
    ],
)
async def test_bad_metadata_of_a_server(header: Any, kind: int, error: type[Exception], says: str) -> None:
    async def behave(peer: RawPeer) -> None:
        peer.send(PREFACE + hello(methods={"S.m": 1}))
        await peer.read_hello()
        asked = await peer.frame()
        peer.send(frame(kind, header, stream=asked.stream, method=Status.NOT_FOUND if kind == ERROR else 0))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address) as client:
        with pytest.raises(error, match=says):
            await client.call("S.m")


async def test_metadata_travels_as_the_wire_says() -> None:
    seen: list[Any] = []

    async def behave(peer: RawPeer) -> None:
        peer.send(
            PREFACE + hello(methods={"S.m": 1}, limits={"header": 65536, "payload": 0, "in_flight": 9, "metadata": 40})
        )
        greeting = await peer.read_hello()
        seen.append(greeting.header["limits"]["metadata"])
        asked = await peer.frame()
        seen.append(asked.header)
        peer.send(frame(RESPONSE, [7, {"a": b"b"}, "later"], stream=asked.stream))
        asked = await peer.frame()
        peer.send(frame(ERROR, ["no", None, {"c": "d"}, "later"], stream=asked.stream, method=5))
        await peer.closed()

    async with RawServer(behave) as address, zcrpc.connect(address, max_metadata=77) as client:
        with zcrpc.outgoing() as out:
            assert await client.call("S.m", 1, metadata={"k": "v"}) == 7
            assert out.response_metadata == {"a": b"b"}
            with pytest.raises(zcrpc.NotFound) as caught:
                await client.call("S.m")
            assert caught.value.metadata == out.response_metadata == {"c": "d"}
        with pytest.raises(zcrpc.ResourceExhausted, match="40"):
            await client.call("S.m", metadata={"k": "x" * 50})
    assert seen == [77, [[1], {}, {"k": "v"}]]


# ---- outgoing


async def test_outgoing_is_for_all_calls_within(serving: Serving) -> None:
    async with serving(Tells()) as (_, address), zcrpc.connect(address, Tells) as tells:
        with zcrpc.outgoing(timeout=5, metadata={"a": "1", "b": "1"}):
            assert await tells.got() == {"a": "1", "b": "1"}
            assert await tells.deadline() is not None
            with zcrpc.outgoing(timeout=2, metadata={"b": "2", "c": "2"}):
                assert await tells.got(metadata={"c": "3"}) == {"a": "1", "b": "2", "c": "3"}  # type: ignore[call-arg]
                assert await tells.deadline() < 3  # type: ignore[operator]
                assert await tells.deadline(timeout=9.0) > 8  # type: ignore[call-arg, operator]
            got = await asyncio.gather(*(asyncio.create_task(tells.got()) for _ in range(3)))  # type: ignore[arg-type]
            assert got == [{"a": "1", "b": "1"}] * 3
        assert await tells.got() == {}
        assert await tells.deadline() is None


async def test_outgoing_twice_at_once_is_refused_and_again_is_not() -> None:
    out = zcrpc.outgoing()
    for _ in range(2):
        with out:
            with pytest.raises(RuntimeError, match="in force"):
                out.__enter__()


async def test_handlers_do_not_see_the_options_of_who_started_the_server(serving: Serving) -> None:
    with zcrpc.outgoing(metadata={"leaked": "1"}):
        async with serving(Tells()) as (_, address):
            with zcrpc.detached():
                async with zcrpc.connect(address, Tells) as tells:
                    assert await tells.got() == {}
                    assert await tells.method() == "Tells.method"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    from zcrpc.context import SCOPE

    yield
    assert SCOPE.get() is None


@pytest.mark.parametrize(
    "test",
    [
        test_async_and_plain_handlers_know_their_call,
        test_each_of_many_calls_knows_its_own_wherever_it_goes,
        test_a_task_that_outlives_its_call_still_knows_that_and_no_other,
        test_a_blocked_loop_does_not_stop_the_clock,
        test_deadline_is_what_is_left,
        test_outgoing_is_for_all_calls_within,
    ],
)
def test_on_uvloop(serving: Serving, test: Any) -> None:
    uvloop.run(test(serving))


def test_raw_metadata_is_msgpack() -> None:
    from zcrpc import metadata

    assert msgspec.msgpack.decode(bytes(metadata.encode({"a": "b"}, 100, "it"))) == {"a": "b"}
