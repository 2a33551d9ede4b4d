"""A judge at a scripted server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.chat_server import ChatClient, ServerJudge
from tasks.chat_server.connection import ChatServerError
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


@pytest.mark.parametrize("ask", [lambda judge: judge.ask("a"), lambda judge: judge.ask_all(["a", "b"])])
def test_no_reply_is_an_error_and_never_a_grade(ask: Callable[[ServerJudge], object]) -> None:
    with scripted_server(lambda body, n: Play("too long", status=400)) as server:
        judge = ServerJudge(ChatClient(server.url), "m")
        with pytest.raises(ChatServerError, match=r"status 400 \(too long\)"):
            ask(judge)
    assert "system" not in [message["role"] for message in server.asked[0]["messages"]]
