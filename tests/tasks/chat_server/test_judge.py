"""A judge at a scripted server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.chat_server import ChatClient, ServerJudge
from tasks.chat_server.connection import ChatServerError, RejectedError
from tests.scripted_server import Body, Play, scripted_server


def length_of_prompt(body: Body, n: int) -> Play:
    return Play(str(len(body["messages"][-1]["content"])))


def test_a_judge_asks_each_prompt_once_also_in_a_later_run(tmp_path: Path) -> None:
    log = tmp_path / "judge.jsonl"
    with scripted_server(length_of_prompt) as server:
        with ChatClient(server.url, log=log) as client:
            judge = ServerJudge(client, "m", system="Grade.", max_tokens=9, temperature=0.2, seed=None)
            assert judge.ask_all(["a", "bb", "a"]) == ["1", "2", "1"]
            assert judge.ask("bb") == "2"
        with ChatClient("http://127.0.0.1:9/v1", log=log) as client:
            again = ServerJudge(client, "m", system="Grade.", max_tokens=9, temperature=0.2, seed=None)
            assert again.ask("a") == "1"
    assert sorted(body["messages"][1]["content"] for body in server.asked) == ["a", "bb"]
    first = server.asked[0]
    assert first["messages"][0] == {"role": "system", "content": "Grade."}
    assert (first["max_tokens"], first["temperature"], "seed" in first) == (9, 0.2, False)


@pytest.mark.parametrize(
    ("ask", "kind"),
    [(lambda judge: judge.ask("a"), RejectedError), (lambda judge: judge.ask_all(["a", "b"]), ChatServerError)],
)
def test_no_reply_is_an_error_and_never_a_grade(ask: Callable[[ServerJudge], object], kind: type[Exception]) -> None:
    with scripted_server(lambda body, n: Play("too long", status=400)) as server:
        judge = ServerJudge(ChatClient(server.url), "m")
        with pytest.raises(kind, match=r"status 400 \(too long\)"):
            ask(judge)
    assert "system" not in [message["role"] for message in server.asked[0]["messages"]]


def test_a_rejected_prompt_is_none_among_others_and_is_not_sent_twice() -> None:
    def script(body: Body, n: int) -> Play:
        play = length_of_prompt(body, n)
        return Play("too long", status=413) if int(play.text) > 2 else play

    with scripted_server(script) as server:
        judge = ServerJudge(ChatClient(server.url), "m")
        assert judge.ask_all(["aaa", "b", "aaa"]) == [None, "1", None]
        with pytest.raises(RejectedError, match="status 413"):
            judge.ask("aaa")
        assert judge.ask("b") == "1" and len(server.asked) <= 3
        asked = len(server.asked)
        with pytest.raises(RejectedError, match="status 413"):
            judge.ask("aaa")
    assert len(server.asked) == asked


def test_a_request_that_fails_at_every_attempt_is_no_rejection() -> None:
    def script(body: Body, n: int) -> Play:
        return Play(status=500) if body["messages"][0]["content"] == "bad" else Play("1")

    with scripted_server(script) as server:
        judge = ServerJudge(ChatClient(server.url, attempts=1), "m")
        with pytest.raises(ChatServerError, match="Start the same command again; other replies are kept"):
            judge.ask_all(["a", "bad", "c"])
