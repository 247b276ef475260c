"""`WebhookSink`: each event is a POST of JSON, signed as the Standard Webhooks specification says."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from lockstep.errors import ConfigurationError, PublishError
from lockstep.records import PublishedEvent
from lockstep.sinks.body import body_of

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
"""How long a receiver may take to be reached, and then to answer."""

PUBLISH_SECONDS = 3.0
"""After this long, `publish` begins no further POST."""

ANSWER_BYTES = 16_384
"""Of an answer's body, what is read, so that the connection can be used again. A longer one costs the connection."""

RETRY_AFTER_SECONDS = 3600.0
"""The longest pause that a receiver may ask for."""


class WebhookSink:
    """Posts to `url`, one event after the other. `secret` is `whsec_` and base64, or any text; without it nothing is signed.

    Raises ConfigurationError for a URL or secret that cannot be used.
    """

    def __init__(self, name: str, url: str, secret: str | None = None) -> None:
        self.name = name
        try:
            parsed = urllib3.util.parse_url(url)
        except LocationParseError:
            parsed = urllib3.util.Url()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError("a webhook needs a URL: webhook:https://host/path", option="sinks")
        self._target = parsed.request_uri
        self._key = None if secret is None else key_of(secret)
        self._headers = {"content-type": "application/json", "user-agent": "lockstep"}
        if parsed.auth:
            self._headers |= urllib3.util.make_headers(basic_auth=parsed.auth)
        # The path may be a secret as much as a password.
        self.address = f"{parsed.scheme}://{parsed.netloc}/..."
        self._url = parsed._replace(auth=None).url
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS)
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, timeout=timeout, retries=False)

    def publish(self, events: Sequence[PublishedEvent]) -> int:
        """See `Sink`."""
        until = time.monotonic() + PUBLISH_SECONDS
        for arrived, event in enumerate(events):
            if arrived and time.monotonic() >= until:
                return arrived
            self._post(event, arrived)
        return len(events)

    def _post(self, event: PublishedEvent, arrived: int) -> None:
        body = body_of(event)
        headers = self._headers | self._signature(event.event_id, body)
        try:
            answer = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False, preload_content=False)
            try:
                answer.read1(ANSWER_BYTES)
            finally:
                # A body that has been read to its end has given its connection back already.
                answer.close()
        except HTTPError as error:
            reason = f"{type(error).__name__}: {error}".replace(self._target, "/...") if len(self._target) > 1 else str(error)
            raise PublishError(
                f"the webhook at {self.address} does not answer ({reason}); check that it runs", arrived=arrived
            ) from None
        if not 200 <= answer.status < 300:
            raise PublishError(
                f"the webhook at {self.address} answers {answer.status}: {_advice(answer.status)}",
                arrived=arrived,
                retry_after_seconds=retry_after(answer.headers.get("retry-after"), time.time()),
            )

    def _signature(self, event_id: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        signature = {} if self._key is None else {"webhook-signature": sign(self._key, event_id, timestamp, body)}
        return {"webhook-id": event_id, "webhook-timestamp": timestamp, **signature}

    def close(self) -> None:
        """See `Sink`."""
        self._pool.clear()


def key_of(secret: str) -> bytes:
    """The key that a secret stands for. Raises ConfigurationError, which does not show it."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ConfigurationError("LOCKSTEP_WEBHOOK_SECRET: what follows whsec_ must be base64", option="sinks") from None


def sign(key: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`: the webhook-signature of Standard Webhooks."""
    digest = hmac.new(key, b".".join([event_id.encode(), timestamp.encode(), body]), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header asks for, within its bound; None: it asks for nothing that can be understood."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS)


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "redirects are not followed; use the URL that it redirects to"
    if status == 410:
        return "it is gone; correct the URL, or remove the sink with `lockstep outbox --remove`"
    if status in (401, 403):
        return "it wants other credentials; check LOCKSTEP_WEBHOOK_SECRET and the URL"
    if status in (408, 425, 429):
        return "it wants to be asked later"
    if 400 <= status < 500:
        return "it refuses the event; correct the URL or the receiver, or skip the event with `lockstep outbox --skip`"
    return "it fails; look at its own log"
