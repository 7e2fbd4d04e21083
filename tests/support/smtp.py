"""A mail server that accepts messages over a real socket and keeps them."""

import email
import email.policy
import socketserver
import threading
from dataclasses import dataclass, field
from email.message import EmailMessage


@dataclass
class Mail:
    """One received message: its envelope and its raw content."""

    sender: str
    recipients: list[str] = field(default_factory=list)
    raw: bytes = b""

    @property
    def message(self) -> EmailMessage:
        parsed = email.message_from_bytes(self.raw, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed

    @property
    def text(self) -> str:
        return str(self.message.get_content())


class SmtpServer:
    """Listens on 127.0.0.1, on the same port after each start.

    `answers` replaces the reply to a command (`AUTH`, `RCPT`, …). With `silent` set, the server accepts connections and
    never replies.
    """

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.commands: list[str] = []
        self.answers: dict[str, str] = {}
        self.silent = threading.Event()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def start(self) -> None:
        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            smtp = self

        self._server = Server(("127.0.0.1", self.port), _Conversation)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Conversation(socketserver.StreamRequestHandler):
    timeout = 30

    def handle(self) -> None:
        smtp: SmtpServer = self.server.smtp
        if smtp.silent.is_set():
            self.rfile.read(1)  # until the client gives up
            return
        self._reply("220 mail.example ready")
        mail = Mail("")
        while line := self.rfile.readline().decode().strip():
            smtp.commands.append(line)
            verb, _, rest = line.partition(" ")
            if answer := smtp.answers.get(verb.upper()):
                self._reply(answer)
                continue
            match verb.upper():
                case "EHLO":
                    self._reply("250-mail.example\r\n250 AUTH PLAIN")
                case "AUTH":
                    self._reply("235 welcome")
                case "MAIL":
                    mail = Mail(_address(rest))
                    self._reply("250 ok")
                case "RCPT":
                    mail.recipients.append(_address(rest))
                    self._reply("250 ok")
                case "DATA":
                    self._reply("354 go on")
                    mail.raw = self._until_dot()
                    smtp.mails.append(mail)
                    self._reply("250 taken")
                case "QUIT":
                    self._reply("221 bye")
                    return
                case _:
                    self._reply("250 ok")

    def _until_dot(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    def _reply(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


def _address(path: str) -> str:
    """Return the address in `FROM:<a@b> SIZE=1`."""
    return path.partition("<")[2].partition(">")[0]
