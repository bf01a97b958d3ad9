"""Alerts against real servers: what arrives, what a dead channel changes, and that no URL is ever seen."""

from collections.abc import Iterator

import pytest

from pipelines.accounts.channels import Channel, Message, Outbox, opened, without_url
from pipelines.config import UserError
from tests.alert_servers import Mailbox, Web, mail_server, web_server
from tests.conftest import free_ports

NEWS = Message(title="[critical] classify: stalled", body="it stands <b>still</b> & more", tone="failure")
SECRET = "Sentinel-4711"


@pytest.fixture(scope="module")
def _web() -> Iterator[Web]:
    with web_server() as web:
        yield web


@pytest.fixture
def web(_web: Web) -> Web:
    _web.rest()
    _web.refuse = _web.refused = 0
    return _web


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as mailbox:
        yield mailbox


def dead_url() -> str:
    (port,) = free_ports(1)
    return f"json://someone:{SECRET}@127.0.0.1:{port}/hook/{SECRET}"


def test_a_web_hook_gets_each_message_whole(web: Web) -> None:
    channel = Channel("hook", web.url("some/path"))

    assert channel.send(NEWS) is None
    assert channel.send(Message(title="second", body="two", tone="success")) is None

    first, second = web.next(), web.next()
    assert (first["path"], first["title"], first["message"]) == ("/some/path", NEWS.title, NEWS.body)
    assert (first["type"], second["type"], second["message"]) == ("failure", "success", "two")


def test_a_mail_reaches_its_receiver_and_its_text_is_no_markup(mailbox: Mailbox) -> None:
    url = f"mailto://127.0.0.1:{mailbox.port}/?from=pipelines@example.com&to=oncall@example.com&mode=insecure"

    assert Channel("mail", url).send(NEWS) is None

    mail = mailbox.next()
    whole = mail.as_string()
    assert "oncall@example.com" in str(mail["To"])
    assert NEWS.title in str(mail["Subject"])
    assert "<b>still</b>" not in whole or mail.get_content_type() == "text/plain"
    assert "it stands" in whole


def test_a_message_that_is_refused_is_tried_again_until_it_is_taken(web: Web) -> None:
    web.refuse = 2
    said: list[str] = []
    outbox = Outbox({"hook": Channel("hook", web.url(SECRET))}, say=said.append, retry_s=0.01)

    outbox.post(NEWS, ("hook",))

    assert web.next()["title"] == NEWS.title
    assert outbox.close() == []
    assert len(said) == 1
    assert "503" in said[0] or "Servers are overloaded" in said[0]
    assert SECRET not in said[0]


def test_a_dead_channel_holds_up_no_other_is_said_once_and_named_at_the_end(web: Web) -> None:
    said: list[str] = []
    channels = {"hook": Channel("hook", web.url("x")), "dead": Channel("dead", dead_url())}
    outbox = Outbox(channels, say=said.append, retry_s=0.01)

    for number in range(5):
        outbox.post(Message(title=f"news {number}", body="x", tone="info"), ("dead", "hook"))

    assert [web.next()["title"] for _ in range(5)] == [f"news {number}" for number in range(5)]
    (line,) = outbox.close()
    assert line.startswith("channel dead: 5 not delivered (")
    assert line.endswith("news 0; news 1; news 2; …")
    assert [text for text in said if "dead" not in text] == []
    assert len(said) == 1
    assert not any(piece in line + said[0] for piece in (SECRET, "4711", "hook/", "someone"))


def test_leaving_waits_no_longer_than_it_may_for_a_channel_that_does_not_answer(web: Web) -> None:
    class Stuck(Channel):
        def send(self, message: Message) -> str | None:
            web.next()  # nothing comes
            return None

    outbox = Outbox({"stuck": Stuck("stuck", "json://127.0.0.1")}, say=lambda text: None)
    outbox.post(NEWS, ("stuck",))

    (line,) = outbox.close(within_s=0.05)

    assert "1 not delivered (no answer in time)" in line
    Channel("hook", web.url("x")).send(NEWS)  # lets the thread go


def test_with_a_full_backlog_the_oldest_messages_go_and_are_counted() -> None:
    outbox = Outbox({"dead": Channel("dead", dead_url())}, say=lambda text: None)

    for number in range(130):
        outbox.post(Message(title=f"news {number}", body="x", tone="info"), ("dead",))

    (line,) = outbox.close()
    assert line.startswith("channel dead: 130 not delivered")
    assert line.endswith("news 30; news 31; news 32; …")


def test_a_channel_whose_variable_is_not_set_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match=r"alerts\.channels\.oncall is to be found in PIPELINES_ALERT_X, which is not"):
        opened({"oncall": "PIPELINES_ALERT_X"}, {})


@pytest.mark.parametrize("url", [f"nosuch://{SECRET}", SECRET, f"slack://{SECRET}", f"mailto://{SECRET}", "json://"])
def test_a_channel_that_apprise_cannot_use_is_refused_without_its_url(
    url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"alerts\.channels\.oncall: PIPELINES_ALERT_X holds no URL") as refused:
        opened({"oncall": "PIPELINES_ALERT_X"}, {"PIPELINES_ALERT_X": url})

    assert SECRET not in str(refused.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize("piece", ["T0ken", "user77", "pa%40ss", "pa@ss", "hooks.example.com", "query99"])
def test_no_piece_of_a_url_is_left_in_what_a_library_says_of_it(piece: str) -> None:
    url = "jsons://user77:pa%40ss@hooks.example.com/T0ken/x?key=query99"

    assert piece not in without_url(f"cannot reach {piece}: refused", url)
    assert without_url("refused, error=403.", url) == "refused, error=403."
