"""Translation of Kafka's errors into errors with a remedy."""

from __future__ import annotations

import logging

from aiokafka import errors as k

from oncue.errors import LogError, NotOwner, OncueError, TooLarge


def quiet() -> None:
    """Silence aiokafka's log, which has a line per retry, unless it is configured.

    This package logs lasting problems itself.
    """
    noisy = logging.getLogger("aiokafka")
    if noisy.level == logging.NOTSET:
        noisy.setLevel(logging.CRITICAL)


def explain(error: BaseException, place: str, doing: str) -> OncueError:
    """Return an OncueError; `doing` completes "Kafka could not ...".

    Returns an OncueError unchanged.
    """
    if isinstance(error, OncueError):
        return error
    if isinstance(error, k.ProducerFenced | k.InvalidProducerEpoch | k.IllegalGenerationError | k.UnknownMemberIdError):
        return NotOwner(f"another server has taken over: Kafka at {place} refused to {doing}")
    if isinstance(error, k.MessageSizeTooLargeError | k.RecordListTooLargeError):
        return TooLarge(
            f"Kafka at {place} does not accept a record of that size",
            remedy="raise record_mb in the log's URL, and the topic's max.message.bytes with it (oncue sets it at the start)",
        )
    what = f"Kafka at {place} could not {doing}: {_name(error)}"
    if isinstance(
        error,
        k.TopicAuthorizationFailedError
        | k.GroupAuthorizationFailedError
        | k.ClusterAuthorizationFailedError
        | k.TransactionalIdAuthorizationFailed,
    ):
        remedy = (
            "the user that oncue is (kafka_user) needs ACLs for its topics, groups and transactional ids: Read, Write, "
        )
        return LogError(what, remedy=remedy + "Create, Describe, Alter, Delete, DescribeConfigs, AlterConfigs")
    if isinstance(error, k.AuthenticationFailedError | k.SaslAuthenticationFailed | k.UnsupportedSaslMechanismError):
        return LogError(what, remedy="check kafka_sasl, kafka_user and the password or token")
    if isinstance(error, k.UnknownTopicOrPartitionError):
        return LogError(
            what, remedy="was the topic deleted? `oncue down` and `oncue up` create it again; its records are lost"
        )
    if isinstance(error, k.InvalidReplicationFactorError | k.NotEnoughReplicasError):
        return LogError(
            what, remedy="there are fewer brokers than copies wanted: start them, or lower ?replication= in the URL"
        )
    if isinstance(error, k.KafkaConnectionError | k.NodeNotReadyError | k.KafkaTimeoutError | k.RequestTimedOutError):
        return LogError(
            what,
            remedy="is the cluster up, and do its advertised.listeners reach this machine? Do TLS and SASL match its settings?",
        )
    return LogError(what, remedy="see the broker's own log (server.log)")


def _name(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return f"{name}: {text}" if text and name not in text else text or name
