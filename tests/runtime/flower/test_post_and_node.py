"""The server's hand and clients' hands in one mailroom: letters go out, answers come back, trouble has words."""

import asyncio
import email.utils
import os
import time

import httpx
import pytest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PushObjectResponse

from fedloom.deployment import certificates
from fedloom.deployment.certificates import node_keys
from fedloom.runtime.flower import node as nodes
from fedloom.runtime.flower import post as posts
from fedloom.runtime.flower.guard import VALID, Guard
from fedloom.runtime.flower.node import Node, _why
from fedloom.runtime.flower.parcels import BLOCK, ParcelError
from fedloom.runtime.station import Lost, Stranger
from runtime.flower.rooms import LARGEST, Room, until

TTL = 600.0


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = Room(tmp_path_factory.mktemp("room") / "server.log")
    yield room
    room.process.stop()


@pytest.fixture(scope="module")
def post(room):
    post = room.post()
    yield post
    post.close()


@pytest.fixture
def enter(room, post):
    """Makes clients that are registered and here: number and node."""
    begun = []

    def enter(**more):
        private, public = node_keys()
        number = post.register(public.encode())
        node = room.node(private.encode(), **more)
        begun.append(node)
        node.announce()
        assert node.id == number
        return number, node

    yield enter
    for node in begun:
        node.leave()


def received(node):
    """Head and body of the next letter, and the letter."""
    letter = until(node.letter)
    return letter.head, bytes(node.body(letter)), letter


def answered(post, *ids):
    """The answer to one of these, whole."""
    (answer,) = until(lambda: post.arrived(ids))
    return answer


@pytest.mark.parametrize("size", [0, 1, 9 * 1000 * 1000])
def test_there_and_back(post, enter, size):
    number, node = enter()
    down, up = os.urandom(size), os.urandom(size)
    id = post.send(number, {"what": "ask", "n": 1}, down, TTL)
    head, body, letter = received(node)
    assert (head, body) == ({"what": "ask", "n": 1}, down)
    assert node.letter() is None
    assert post.arrived([id]) == []
    node.answer(letter, {"what": "reply", "words": "grüße"}, up)
    node.done(letter)
    answer = answered(post, id)
    assert (answer.ask, answer.error) == (id, None)
    assert post.arrived([id]) == [] or post.arrived([id])[0].error is not None
    head, body = post.open(answer)
    assert (head, body) == ({"what": "reply", "words": "grüße"}, up)


def test_a_common_body_is_sent_once(post, enter, monkeypatch):
    pushed = []
    push = post._push
    monkeypatch.setattr(post, "_push", lambda name, *rest: (pushed.append(name), push(name, *rest)))
    (one, first), (two, second) = enter(), enter()
    body = os.urandom(2 * BLOCK + 5)
    post.send(one, {"to": 1}, body, TTL)
    assert len(pushed) == 3 + 3
    post.send(two, {"to": 2}, body, TTL)
    assert len(pushed) == 6 + 3
    got, letter = received(first)[1:]
    first.answer(letter, {}, b"")
    first.done(letter)  # forgets what is the first one's alone
    assert got == body == received(second)[1]
    post.send(one, {"to": 1}, bytes(body[:-1]) + b"!", TTL)
    assert len(pushed) == 9 + 6


def test_letters_come_in_their_order_and_to_one_only(post, enter):
    (one, first), (two, second) = enter(), enter()
    for i in range(3):
        post.send(one, {"n": i}, b"", TTL)
    assert second.letter() is None
    assert [received(first)[0]["n"] for _ in range(3)] == [0, 1, 2]
    assert two != one


def test_an_answer_may_be_dropped_unread(post, enter):
    number, node = enter()
    id = post.send(number, {}, b"ask", TTL)
    letter = received(node)[2]
    node.answer(letter, {}, os.urandom(100))
    answer = answered(post, id)
    post.drop(answer)
    with pytest.raises(ParcelError, match="did not come"):
        post.open(answer)
    again = post.send(number, {"n": 2}, b"", TTL)
    node.answer(received(node)[2], {"n": 3}, b"")
    assert post.open(answered(post, again))[0] == {"n": 3}


def test_an_answer_said_twice_counts_once(post, enter):
    number, node = enter()
    id = post.send(number, {}, b"", TTL)
    letter = received(node)[2]
    node.answer(letter, {"n": 1}, b"first")
    node.answer(letter, {"n": 2}, b"second")
    assert post.open(answered(post, id)) == ({"n": 1}, b"first")
    assert [found.error is None for found in post.arrived([id])] in ([], [False])


def test_an_answer_to_nothing_is_lost(post, enter):
    number, node = enter()
    id = post.send(number, {}, b"", TTL)
    letter = received(node)[2]
    letter.metadata.message_id = "0" * 64
    node.answer(letter, {}, b"")
    assert post.arrived([id]) == []


def test_a_letter_to_nobody(post):
    assert post.send(12345, {}, b"", TTL) == ""
    assert post.arrived([]) == []


def test_a_letter_past_its_time(post, enter):
    number, node = enter()
    id = post.send(number, {}, b"late", 0.3)
    time.sleep(0.5)
    assert node.letter() is None
    post.forget(id)
    ((answer),) = post.arrived([id])
    assert answer.error


def test_a_body_larger_than_the_client_reads(post, enter, monkeypatch):
    number, node = enter()
    monkeypatch.setattr(node, "_largest", BLOCK)
    post.send(number, {}, bytes(3 * BLOCK), TTL)
    with pytest.raises(ParcelError, match="4 parts, at most 3"):
        until(node.letter)


def test_who_is_present(post, enter):
    number, node = enter()
    stamp = post.present()[number]
    assert post.present()[number] == stamp
    time.sleep(0.01)
    node.announce()
    again = post.present()[number]
    assert again > stamp
    assert node.id == number
    node.leave()
    assert number not in post.present()


def test_a_restart_begins_anew_at_once(room, post):
    private, public = node_keys()
    number = post.register(public.encode())
    first = room.node(private.encode())
    first.announce()
    stamp = post.present()[number]
    again = room.node(private.encode())  # as after kill -9: the mailroom believes the first one to be here
    with pytest.raises(Stranger, match="another process uses it, or did so 20 seconds ago"):
        again.announce()
    again.recall(number)
    again.announce()
    assert post.present()[number] > stamp
    again.leave()
    first.leave()


def test_a_restart_after_a_goodbye(room, post, enter):
    private, public = node_keys()
    number = post.register(public.encode())
    for _ in range(2):
        node = room.node(private.encode())
        node.recall(number)
        node.announce()
        assert number in post.present()
        node.leave()
        node.leave()
        assert number not in post.present()


def test_a_wrong_number_recalled(room, post):
    """A server that was started anew gave new numbers."""
    private, public = node_keys()
    number = post.register(public.encode())
    node = room.node(private.encode())
    node.recall(number + 1)
    node.announce()
    assert node.id == number
    node.leave()


def test_who_is_expelled_is_a_stranger(room, post, enter):
    number, node = enter()
    post.send(number, {}, b"", TTL)
    post.expel(number)
    for call in (node.letter, node.announce):
        with pytest.raises(Stranger, match="does not know this client's key: it was revoked, or belongs"):
            call()
    assert number not in post.present()
    assert post.send(number, {}, b"", TTL) == ""
    private, public = node_keys()  # invited again
    new = post.register(public.encode())
    node = room.node(private.encode())
    node.announce()
    assert node.id == new != number
    node.leave()


def test_who_never_came_can_be_expelled(room, post):
    private, public = node_keys()
    number = post.register(public.encode())
    post.expel(number)
    node = room.node(private.encode())
    with pytest.raises(Stranger):
        node.announce()
    room.process.check()
    assert isinstance(post.present(), dict)
    node.leave()


def test_a_letter_to_one_who_was_expelled_meanwhile(post, enter):
    """The server asks on for an answer that cannot come."""
    number, _ = enter()
    id = post.send(number, {}, b"", TTL)
    post.expel(number)
    found = [answer for _ in range(2) for answer in post.arrived([id])]
    assert found and all(answer.error for answer in found)


def test_an_unknown_key(room):
    node = room.node(node_keys()[0].encode())
    with pytest.raises(Stranger, match="does not know this client's key"):
        node.announce()
    with pytest.raises(Lost, match="has not announced itself"):
        node.letter()
    node.leave()


def test_nobody_listens(room):
    node = Node("127.0.0.1:9", None, node_keys()[0].encode(), LARGEST)
    with pytest.raises(Lost, match="refused"):
        node.announce()
    node.leave()


def test_signs_of_life(post, enter, monkeypatch):
    monkeypatch.setattr(nodes, "BEAT", 0.1)
    number, node = enter()
    beats = []
    send = node._pulse.SendNodeHeartbeat
    monkeypatch.setattr(node._pulse, "SendNodeHeartbeat", lambda request: (beats.append(request), send(request))[1])
    until(lambda: len(beats) > 2)
    assert {beat.node.node_id for beat in beats} == {number}
    assert node._alive.is_alive()
    node.leave()
    assert not node._alive.is_alive()


def test_the_runs_task_is_kept_alive(room, monkeypatch):
    monkeypatch.setattr(posts, "BEAT", 0.1)
    post = room.post()
    assert post._alive.is_alive()
    beats = len(room.lines())
    time.sleep(0.5)
    assert len(room.lines()) == beats, "a beat was refused"
    post.close()
    assert not post._alive.is_alive()


# -- requests said again


def test_a_signed_request_opens_once(room, post, enter):
    number, node = enter()
    post.send(number, {"n": 1}, b"", TTL)
    taken = []
    node._fleet._client.event_hooks = {"request": [taken.append]}
    received(node)
    node._fleet._client.event_hooks = {}
    for request in taken:
        for path in (request.url.path, "/v1/fleet/pull-messages", "/v1/fleet/deactivate-node"):
            again = httpx.post(f"http://{room.address}{path}", headers=request.headers, content=request.content)
            assert (again.status_code, again.text) == (401, "this request was made before")
    assert "refused 401 POST '/v1/fleet/deactivate-node'" in room.lines()[-1]
    assert number in post.present()
    assert node.letter() is None


def test_what_was_not_let_in_is_not_remembered():
    """Nobody can fill the memory, nor keep a node out by naming its next signature."""
    now, statuses = [0.0], [401, 200, 412, 401, 400, 307, 500]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": statuses.pop(0)})

    guard = Guard(app, "token", clock=lambda: now[0])

    def ask(key=b"a2V5", when=b"2026"):
        headers = [(b"content-length", b"0"), (b"flwr-public-key", key), (b"flwr-timestamp", when)]
        scope = {"type": "http", "method": "POST", "path": "/v1/fleet/pull-messages", "headers": headers}
        said = []

        async def send(event):
            said.append(event.get("status"))

        asyncio.run(guard(scope, None, send))
        return said[0], len(guard._seen)

    assert ask() == (401, 0)
    assert ask() == (200, 1)
    assert ask() == (401, 1)
    assert ask(key=b"b3RoZXI=") == (412, 2)
    now[0] = VALID + 1.0
    assert [ask(when=b"2027") for _ in range(4)] == [(401, 0), (400, 0), (307, 0), (500, 0)]
    assert statuses == []


# -- answers that are none


@pytest.fixture
def asked(post, enter):
    """A client that was asked something, what it was, and the letter's id."""
    number, node = enter()
    id = post.send(number, {}, b"", TTL)
    return node, received(node)[2], id


def pushing(monkeypatch, node, change):
    """Let a client send what `change` makes of its objects: a list for each."""
    real = node._fleet.PushObject

    def push(request):
        for one in change(request):
            real(one)
        return PushObjectResponse(stored=True)

    monkeypatch.setattr(node._fleet, "PushObject", push)


def test_an_answer_on_its_way_keeps_nobody_waiting(post, asked, monkeypatch):
    """The head, which is sent last, is held back: the answer is not told of before it is there."""
    node, letter, id = asked
    held = []

    def change(request):
        if b"json" in request.object_content:
            held.append(request)
            return []
        return [request]

    pushing(monkeypatch, node, change)
    node.answer(letter, {"ticket": "of this test"}, b"body")
    began = time.monotonic()
    assert [post.arrived([id]) for _ in range(3)] == [[], [], []]
    assert time.monotonic() - began < 2
    monkeypatch.undo()
    node._fleet.PushObject(held[0])
    assert post.open(answered(post, id)) == ({"ticket": "of this test"}, b"body")


def test_a_block_that_never_comes(post, asked, monkeypatch):
    node, letter, id = asked
    monkeypatch.setattr(posts, "LITTLE", 0.2)
    pushing(monkeypatch, node, lambda request: [] if b"block" in request.object_content else [request])
    node.answer(letter, {"n": 1}, b"body")
    with pytest.raises(ParcelError, match="did not come"):
        post.open(answered(post, id))


def test_a_part_with_other_bytes_is_not_taken(post, asked, monkeypatch):
    node, letter, id = asked
    monkeypatch.setattr(posts, "LITTLE", 0.2)

    def change(request):
        if b"block" in request.object_content:
            request.object_content = request.object_content[:-1] + b"x"
        return [request]

    pushing(monkeypatch, node, change)
    node.answer(letter, {"n": 1}, b"body")
    with pytest.raises(ParcelError, match="did not come"):
        post.open(answered(post, id))


def test_an_answer_that_its_sender_takes_away(post, asked):
    node, letter, id = asked
    push = node._fleet.PushMessages
    sent = []
    node._fleet.PushMessages = lambda request: (sent.append(request), push(request))[1]
    node.answer(letter, {"n": 1}, b"body")
    gone = sent[0].messages_list[0].metadata.message_id
    node._fleet.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node._me(), run_id=letter.metadata.run_id, message_object_id=gone)
    )
    found = [answer for _ in range(3) for answer in post.arrived([id])]
    assert found and all(answer.error for answer in found)


def test_a_sign_of_life_in_an_announcement(post, enter, monkeypatch):
    monkeypatch.setattr(nodes, "BEAT", 0.005)
    _, node = enter()
    gone = node._fleet.DeactivateNode
    monkeypatch.setattr(node._fleet, "DeactivateNode", lambda request: (gone(request), time.sleep(0.2)))
    for _ in range(3):
        node.announce()


def test_an_announcement_that_was_not_answered(post, enter, monkeypatch):
    number, node = enter()
    for call in ("ActivateNode", "DeactivateNode"):
        real = getattr(node._fleet, call)

        def cut(request, real=real):
            real(request)
            raise httpx.ReadTimeout("cut")

        with monkeypatch.context() as patch:
            patch.setattr(node._fleet, call, cut)
            with pytest.raises(Lost, match="cut"):
                node.announce()
        node.announce()
        assert number in post.present()


# -- words


def refusal(**ahead):
    response = httpx.Response(401, headers={})
    if "seconds" in ahead:
        response.headers["date"] = email.utils.formatdate(time.time() - ahead["seconds"], usegmt=True)
    if "date" in ahead:
        response.headers["date"] = ahead["date"]
    return _why(response)


@pytest.mark.parametrize("seconds", [7, 4000])
def test_a_clock_that_is_ahead(seconds):
    said = refusal(seconds=seconds)
    assert "ahead of the server's" in said and "set the clock (NTP)" in said
    assert any(f"clock is {seconds + late} seconds" in said for late in (-1, 0, 1))


def test_a_clock_that_is_behind():
    assert "seconds behind the server's" in refusal(seconds=-400)


@pytest.mark.parametrize("seconds", [0, 2, -5, -250])
def test_a_clock_that_is_right(seconds):
    assert "does not know this client's key" in refusal(seconds=seconds)


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Nov 2026 19:24:47 GMT", "0"])
def test_a_date_that_is_none(date):
    assert "does not know this client's key" in refusal(date=date)


def test_no_date():
    assert "does not know this client's key" in refusal()


# -- TLS


def test_over_tls(tmp_path):
    from deployment.homes import NOW, create

    home = create(tmp_path / "home", ("127.0.0.1",))
    room = Room(tmp_path / "log", home)
    post = room.post()
    private, public = node_keys()
    number = post.register(public.encode())
    node = room.node(private.encode())
    node.announce()
    id = post.send(number, {"n": 1}, b"ask", TTL)
    head, body, letter = received(node)
    assert (head, body) == ({"n": 1}, b"ask")
    node.answer(letter, {"n": 2}, b"reply")
    assert post.open(answered(post, id)) == ({"n": 2}, b"reply")
    other = room.node(private.encode(), ca=certificates.make_ca(NOW)[0].encode())
    with pytest.raises(Lost, match="certificate"):
        other.announce()
    plain = Node(room.address, None, private.encode(), LARGEST)
    with pytest.raises(Lost):
        plain.announce()
    for one in (node, other, plain):
        one.leave()
    post.close()
    began = time.monotonic()
    room.process.stop()
    assert time.monotonic() - began < 5
