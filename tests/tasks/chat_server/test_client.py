"""The client against a scripted server: every fault, the cache, the log, the key, the limit of costs."""

import email.utils
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.chat_server import ChatClient, ChatRequest, Message, Price, connection, read_price
from tasks.chat_server import client as client_module
from tasks.chat_server.connection import ChatServerError, _wait
from tasks.chat_server.prices import Budget, CostLimitError
from tasks.errors import UserError
from tests.scripted_server import Body, Play, scripted_server

KEY = "sk-test-0123456789"


def request(text: str = "hello", **options: object) -> ChatRequest:
    return ChatRequest("m", (Message("user", text),), **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds; no key and no proxy from outside."""
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.001)
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


FAULTS = {
    "429": Play("slow down", status=429),
    "500": Play("oops", status=500),
    "503": Play("busy", status=503),
    "cut": Play(cut=20),
    "no reply": Play(cut=0),
    "wrong JSON": Play(raw=b"{'choices': ["),
    "another JSON": Play(raw=b'{"choices": []}'),
    "a page": Play(raw=b"<html>gateway</html>"),
    "not text": Play(raw=b'{"choices": [{"message": {"content": 3}}]}'),
    "slow": Play(slow=2.5),
    "drip": Play(drip=0.05),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_request_is_sent_again(fault: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    options = {"log": log, "timeout": 1.5 if fault in ("slow", "drip") else 60.0}
    with scripted_server(lambda body, n: FAULTS[fault] if n < 2 else Play("done")) as server:
        reply = ChatClient(server.url, **options).ask(request(), "a")  # type: ignore[arg-type]
    assert (reply.text, reply.attempts, reply.status) == ("done", 3, "answered")
    assert server.asked == [request().body] * 3
    (row,) = rows(log)
    assert {k: row[k] for k in ("tag", "attempts", "prompt_tokens", "completion_tokens", "text", "finish")} == {
        "tag": "a", "attempts": 3, "prompt_tokens": 100, "completion_tokens": 10, "text": "done", "finish": "stop",
    }  # fmt: skip
    assert float(str(row["seconds"])) > 0


@pytest.mark.parametrize("fault", ["500", "wrong JSON"])
def test_a_request_that_fails_at_every_attempt_is_logged_and_asked_again_next_time(fault: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with scripted_server(lambda body, n: FAULTS[fault] if n < 3 else Play("done")) as server:
        with ChatClient(server.url, log=log, attempts=3) as client:
            assert client.ask(request()).status == "failed"
        with ChatClient(server.url, log=log, attempts=3) as client:
            assert client.ask(request()).text == "done"
    assert [row["status"] for row in rows(log)] == ["failed", "answered"]
    assert "after 3 attempts" in str(rows(log)[0]["error"])


def test_retry_after_in_seconds_or_as_a_date_is_waited() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert _wait("0.4") == 0.4
    assert 50 < (_wait(date) or 0) <= 60
    assert [_wait(text) for text in (None, "soon", "-3", "Sun, 06 Nov 1994 08:49:37 GMT")] == [None, None, 0, 0]
    busy = Play(status=429, headers={"Retry-After": "0.4"})
    with scripted_server(lambda body, n: Play("done") if n else busy) as server, ChatClient(server.url) as client:
        assert client.ask(request()).attempts == 2
    assert server.times[1] - server.times[0] >= 0.4


def test_a_server_that_asks_for_more_than_ten_minutes_is_not_waited_for() -> None:
    with scripted_server(lambda body, n: Play(status=429, headers={"Retry-After": "3600"})) as server:
        assert ChatClient(server.url).ask(request()).attempts == 1


def test_waits_double_up_to_eight_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.5)
    pauses = [client_module._pause(n, None, "k") for n in range(1, 9)]
    for pause, longest in zip(pauses, (0.5, 1, 2, 4, 8, 8, 8, 8), strict=True):
        assert 0.75 * longest <= pause <= longest
    assert len({pause / 8 for pause in pauses[4:]}) == 4  # not all clients come back at once


def test_replies_come_in_order_with_bounded_concurrency_and_equal_requests_are_sent_once() -> None:
    def script(body: Body, n: int) -> Play:
        return Play(body["messages"][0]["content"], slow=0.03 if n % 2 else 0.0)

    texts = [f"t{i % 9}" for i in range(18)]
    with scripted_server(script) as server, ChatClient(server.url, concurrency=3) as client:
        replies = list(client.ask_all((f"tag{i}", request(text)) for i, text in enumerate(texts)))
    assert [reply.text for reply in replies] == texts
    assert [reply.tag for reply in replies] == [f"tag{i}" for i in range(18)]
    assert len(server.asked) == 9
    assert server.most_at_once in (2, 3)


def test_answers_are_read_from_the_log_also_after_half_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with scripted_server(lambda body, n: Play(f"answer {n}")) as server:
        with ChatClient(server.url, log=log) as client:
            first = client.ask(request("a"), "1")
        whole = log.read_bytes()
        log.write_bytes(whole + b'{"time": 17')
        with ChatClient("http://127.0.0.1:9/v1", log=log) as client:  # nothing listens there
            again = client.ask(request("a"), "2")
            assert (again.text, again.cached, again.tag, first.cached) == ("answer 0", True, "2", False)
        assert log.read_bytes() == whole
        with ChatClient(server.url, log=log) as client:
            for other in (
                request("b"),
                request("a", seed=1),
                request("a", temperature=0.5),
                request("a", max_tokens=5),
            ):
                assert not client.ask(other).cached
    assert log.read_bytes().startswith(whole)  # only appended to
    assert len(server.asked) == 5


def test_a_changed_line_of_the_log_is_refused_by_number_and_asked_again_once_it_is_removed(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with scripted_server(lambda body, n: Play(f"answer {n}")) as server:
        with ChatClient(server.url, log=log) as client:
            for text in "abc":
                client.ask(request(text))
        lines = log.read_bytes().splitlines(keepends=True)
        for place in range(0, len(lines[1]) - 1, 3):
            damaged = bytearray(lines[1])
            damaged[place] ^= 1
            log.write_bytes(lines[0] + damaged + lines[2])
            with pytest.raises(UserError, match=r"got another line 2 of log\.jsonl.*remove the line"):
                ChatClient(server.url, log=log)
            assert log.read_bytes() == lines[0] + damaged + lines[2]
        log.write_bytes(lines[0] + lines[2])
        with ChatClient(server.url, log=log) as client:
            assert [client.ask(request(text)).text for text in "abc"] == ["answer 0", "answer 3", "answer 2"]
        rows_before = [json.loads(line) for line in lines]
        for row in rows_before:
            del row["crc"]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows_before))  # as earlier versions wrote it
        with ChatClient("http://127.0.0.1:9/v1", log=log) as client:
            assert [client.ask(request(text)).text for text in "abc"] == ["answer 0", "answer 1", "answer 2"]


def test_a_log_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match=r"log must be a file, got .*log.jsonl' \(a named pipe\)"):
        ChatClient("http://localhost:1/v1", log=tmp_path / "log.jsonl")


def test_a_log_of_something_else_is_an_error(tmp_path: Path) -> None:
    for text in ('{"no": "reply"}\n', "a file without a last line break", '{"k": 1}'):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"line 1 of log\.jsonl"):
            ChatClient("http://localhost:1/v1", log=tmp_path / "log.jsonl")
        assert (tmp_path / "log.jsonl").read_text() == text


@pytest.mark.parametrize("field", [{"cost": "x"}, {"cost": -1.0}, {"cost": None}, {"key": [1]}, {"text": 5}])
def test_a_log_with_values_of_other_kinds_is_an_error(tmp_path: Path, field: dict[str, object]) -> None:
    row = {"time": 1.0, "key": "k", "tag": "", "status": "answered", "text": "Yes."}
    (tmp_path / "log.jsonl").write_text(json.dumps(row | field) + "\n")
    with pytest.raises(UserError, match=r"line 1 of log\.jsonl"):
        ChatClient("http://localhost:1/v1", log=tmp_path / "log.jsonl")


def test_the_key_is_sent_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    plays = [
        Play(f"wrong {KEY}", status=500),
        Play(f"Your key is {KEY}.", finish=f"stop {KEY}"),
        Play(f"bad key {KEY}", status=401),
    ]
    with scripted_server(lambda body, n: plays[n]) as server:
        client = ChatClient(server.url, key_env="MY_KEY", log=tmp_path / "log.jsonl")
        assert client.ask(request()).text == "Your key is [key]."
        with pytest.raises(ChatServerError, match="MY_KEY must hold a key .* it is not accepted") as raised:
            client.ask(request("other"))
    assert KEY not in str(raised.value)
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 3
    assert KEY not in (tmp_path / "log.jsonl").read_text() + repr(vars(client))


def test_without_a_key_none_is_sent_and_a_server_that_needs_one_is_an_error() -> None:
    with scripted_server(lambda body, n: Play(status=401)) as server:
        client = ChatClient(server.url)
        with pytest.raises(ChatServerError, match="OPENAI_API_KEY must hold a key .* it is not set"):
            client.ask(request())
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("value", ["ключ", "two words", "line\nbreak"])
def test_a_key_that_cannot_be_sent_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match="printable ASCII") as raised:
        ChatClient("http://localhost:1/v1")
    assert value not in str(raised.value)


def test_a_proxy_of_the_environment_does_not_get_requests_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        scripted_server(lambda body, n: Play("from the proxy")) as proxy,
        scripted_server(lambda b, n: Play()) as server,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with ChatClient(url) as client:
                assert client.ask(request()).text == "fine"
        with ChatClient("http://chat.invalid/v1") as client:
            assert client.ask(request()).text == "from the proxy"
    assert (len(server.asked), len(proxy.asked)) == (2, 1)


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ChatServerError, match="url must be the address of a running server") as raised:
        ChatClient("http://127.0.0.1:9/v1", attempts=2).ask(request())
    assert "\n" not in str(raised.value)


def test_nothing_is_tried_again_as_long_as_no_connection_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.5)
    started = time.monotonic()
    with pytest.raises(ChatServerError, match="url must be the address of a running server"):
        list(ChatClient("http://127.0.0.1:9/v1").ask_all((str(i), request(str(i))) for i in range(9)))
    assert time.monotonic() - started < 5  # the waits between six attempts take 14 s


@pytest.mark.parametrize("name", ["getaddrinfo", "create_connection"])
def test_a_silent_address_is_one_sentence_after_the_first_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        ended.wait(30)
        raise OSError("timed out")

    monkeypatch.setattr(socket, name, hang)
    monkeypatch.setattr(connection, "_REACH", 0.5)
    started = time.monotonic()
    with pytest.raises(ChatServerError, match=r"got no connection \(nothing answers within 0.5 s\)") as raised:
        list(ChatClient("http://chat.invalid/v1").ask_all((str(i), request(str(i))) for i in range(9)))
    assert time.monotonic() - started < 5
    assert len(str(raised.value)) < 400
    ended.set()


def test_a_silent_proxy_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_REACH", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # takes connections and says nothing
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(ChatServerError, match="nothing answers within 0.5 s"):
            ChatClient("https://chat.invalid/v1").ask(request())


def test_a_slow_server_is_waited_for_and_a_connection_that_is_lost_later_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_REACH", 0.2)
    with scripted_server(lambda body, n: Play("late", slow=1.0)) as server, ChatClient(server.url) as client:
        assert client.ask(request("first")).text == "late"
        fails = iter([True, True])
        post = client._connection._post

        def lost(*arguments: Any) -> Any:
            if next(fails, False):
                raise connection.FaultError("gone", unreachable=True)
            return post(*arguments)

        monkeypatch.setattr(client._connection, "_post", lost)
        assert client.ask(request("second")).attempts == 3


@pytest.mark.parametrize("status", [301, 404, 405])
def test_an_address_without_chat_is_one_sentence(status: int) -> None:
    with scripted_server(lambda body, n: Play("no such model", status=status)) as server:
        client = ChatClient(server.url)
        with pytest.raises(ChatServerError, match=f"got status {status} .*--model"):
            client.ask(request())
    assert len(server.asked) == 1


def test_a_rejected_request_is_not_sent_again_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    def script(body: Body, n: int) -> Play:
        return Play("too long", status=400) if body["messages"][0]["content"] == "long" else Play()

    with scripted_server(script) as server, ChatClient(server.url, log=tmp_path / "l") as client:
        replies = list(client.ask_all((text, request(text)) for text in ("a", "long", "b")))
    assert [reply.status for reply in replies] == ["answered", "rejected", "answered"]
    assert "status 400 (too long)" in replies[1].error
    assert len(server.asked) == 3


def test_a_schema_that_the_server_does_not_know_names_the_option() -> None:
    schema = {"type": "object"}
    unknown = Play("Unsupported fields: {'response_format'}", status=422)
    pairs = [("a", request(schema=schema)), ("b", request("b", schema=schema))]
    with (
        scripted_server(lambda body, n: unknown) as server,
        ChatClient(server.url) as client,
        pytest.raises(ChatServerError, match="Use --reply-format text"),
    ):
        list(client.ask_all(pairs))
    sent = server.asked[0]["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def test_five_requests_in_a_row_without_an_answer_stop_the_run() -> None:
    def script(body: Body, n: int) -> Play:
        return Play("done") if body["messages"][0]["content"] == "0" else Play(status=500)

    seen: list[str] = []
    with scripted_server(script) as server, ChatClient(server.url, attempts=1, concurrency=1) as client:
        replies = client.ask_all((str(i), request(str(i))) for i in range(50))
        with pytest.raises(ChatServerError, match="server must answer, got status 500"):
            seen.extend(reply.status for reply in replies)
        assert client.ask(request("0")).cached
        assert client.ask(request("51")).status == "failed"  # the client can be used again
    assert seen == ["answered", *["failed"] * 4]
    assert len(server.asked) < 30


def test_newer_models_take_another_name_for_the_limit_of_tokens() -> None:
    def script(body: Body, n: int) -> Play:
        return Play("use 'max_completion_tokens' instead", status=400) if "max_tokens" in body else Play()

    with scripted_server(script) as server, ChatClient(server.url) as client:
        assert client.ask(request("a", max_tokens=7)).is_answered
        assert client.ask(request("b", max_tokens=7)).is_answered
    assert [body.get("max_completion_tokens") for body in server.asked] == [None, 7, 7]


def test_no_request_is_sent_that_could_exceed_the_limit_and_a_higher_limit_resumes(tmp_path: Path) -> None:
    price = Price(prompt=1000, completion=10_000)  # a reply of 100 + 10 tokens costs $0.20
    bound = price.most(request(max_tokens=20))
    assert bound > 0.2
    limit = 0.4 + bound  # room for the third request when two are paid
    with scripted_server(lambda body, n: Play()) as server:
        for max_cost, expected in ((limit, 3), (limit + 0.4, 5)):
            client = ChatClient(server.url, log=tmp_path / "l", price=price, max_cost=max_cost, concurrency=2)
            with client, pytest.raises(CostLimitError, match="max-cost must leave room"):
                list(client.ask_all((str(i), request(str(i), max_tokens=20)) for i in range(9)))
            assert len(server.asked) == expected
            assert client.cost == pytest.approx(0.2 * expected)
    assert [row["cost"] for row in rows(tmp_path / "l")] == pytest.approx([0.2] * 5)


def test_a_reply_without_counts_and_a_cut_attempt_cost_their_upper_bound() -> None:
    price = Price(1000, 10_000)
    plays = [Play(cut=5), Play(usage=None)]
    with scripted_server(lambda body, n: plays[n]) as server:
        client = ChatClient(server.url, price=price, max_cost=100)
        assert client.ask(request()).cost == pytest.approx(2 * price.most(request()))


def test_the_bound_of_prompt_tokens_holds_for_any_bytes() -> None:
    assert request("é" * 50).most_prompt_tokens >= 100  # two bytes each, at most two tokens each


def test_a_request_waits_for_those_that_run_if_their_bounds_fill_the_limit() -> None:
    budget, order = Budget(1.0), list[str]()

    def second() -> None:
        with budget.set_aside(0.7):  # fits once the first has cost less than its bound
            order.append("second")

    thread = threading.Thread(target=second)
    with budget.set_aside(0.7):
        thread.start()
        thread.join(0.05)
        order.append("first")
        budget.add(0.3)
    thread.join()
    assert order == ["first", "second"]
    budget.add(0.01)
    with pytest.raises(CostLimitError, match=r"got \$0\.3100 of \$1\.0000"), budget.set_aside(0.7):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("other: {prompt: 1, completion: 2}", "must have a row for 'm', got other"),
        ("m: {prompt: -1, completion: 2}", "dollars per million"),
        ("m: {prompt: 1}", "dollars per million"),
        ("m: 3", "dollars per million"),
        ("m: [", "readable YAML"),
        ("", "no rows"),
    ],
)
def test_a_table_of_prices_that_cannot_be_used_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_price(tmp_path / "p.yaml", "m")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000"}, "http address"),
        ({"url": "http://"}, "http address"),
        ({"url": "http://ex..com/v1"}, "http address"),
        ({"url": "http://host/v1\x7f"}, "http address"),
        ({"key_env": "gsk_secretsecretsecret"}, "name of an environment variable that is set"),
        ({"url": "http://u:secret@host/v1"}, "no user name"),
        ({"url": "http://host/v1?key=secret"}, "no user name, password or query"),
        ({"key_env": "sk-secret-secret"}, "name of an environment variable"),
        ({"concurrency": 0}, "concurrency must be >= 1"),
        ({"attempts": 0}, "attempts must be >= 1"),
        ({"timeout": 0}, "timeout must be > 0"),
        ({"max_cost": 1.0}, "--prices"),
        ({"max_cost": 0, "price": Price(1, 1)}, "max-cost must be > 0"),
    ],
)
def test_arguments_out_of_range_are_errors_that_show_no_secret(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        ChatClient(**({"url": "http://localhost:1/v1"} | options))  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options", [{"model": ""}, {"messages": ()}, {"max_tokens": 0}, {"temperature": -1}, {"temperature": 3}]
)
def test_a_request_out_of_range_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        ChatRequest(**({"model": "m", "messages": (Message("user", "a"),)} | options))  # type: ignore[arg-type]
