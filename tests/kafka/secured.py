"""A broker with a TLS listener that knows the users `oncue` and `weak` (who may do nothing), by all mechanisms."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.kafka.broker import Broker

LOGIN = "org.apache.kafka.common.security"
PASSWORD = "s3cret"


@contextlib.contextmanager
def secured_broker(folder: Path) -> Iterator[tuple[Broker, Path]]:
    """(broker, folder with cert.pem); its listener is SAFE. Raises Missing."""
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *request.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    (folder / "store.pem").write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "store.pem"),
        "listener.name.safe.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.safe.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required"
        f' user_oncue="{PASSWORD}" user_weak="{PASSWORD}";',
        "listener.name.safe.scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.safe.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.safe.oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required"
        ' unsecuredLoginStringClaim_sub="oncue";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:oncue;User:ANONYMOUS",
    }
    flags = [f"--add-scram=SCRAM-SHA-{n}=[name=oncue,password={PASSWORD}]" for n in (256, 512)]
    broker = Broker(folder / "broker", settings=settings, listeners={"SAFE": "SASL_SSL"}, format_flags=flags)
    try:
        broker.start()
        yield broker, folder
    finally:
        broker.kill()
