"""A broker with TLS, SASL and the users `oncue` and `weak`.

`weak` has no permissions.

Listener SAFE: all mechanisms, with TLS. BARE: PLAIN without TLS. TLS: no user.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.kafka.broker import Broker

LOGIN = "org.apache.kafka.common.security"
PASSWORD = "s3cret"


@contextlib.contextmanager
def secured_broker(folder: Path) -> Iterator[tuple[Broker, Path]]:
    """Yield (broker, folder with cert.pem). Raises Missing."""
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *request.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    (folder / "store.pem").write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    plain = f'{LOGIN}.plain.PlainLoginModule required user_oncue="{PASSWORD}" user_weak="{PASSWORD}";'
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "store.pem"),
        "listener.name.safe.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.safe.plain.sasl.jaas.config": plain,
        "listener.name.bare.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.bare.plain.sasl.jaas.config": plain,
        "listener.name.safe.scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.safe.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.safe.oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required"
        ' unsecuredLoginStringClaim_sub="oncue";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:oncue;User:ANONYMOUS",
    }
    flags = [f"--add-scram=SCRAM-SHA-{n}=[name=oncue,password={PASSWORD}]" for n in (256, 512)]
    listeners = {"SAFE": "SASL_SSL", "BARE": "SASL_PLAINTEXT", "TLS": "SSL"}
    broker = Broker(folder / "broker", settings=settings, listeners=listeners, format_flags=flags)
    try:
        broker.start()
        yield broker, folder
    finally:
        broker.kill()


def token(subject: str) -> str:
    """Return an unsigned token, as a broker without identity provider accepts."""
    now = int(time.time())
    parts = [{"alg": "none"}, {"sub": subject, "iat": now - 10, "exp": now + 3_600}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."
