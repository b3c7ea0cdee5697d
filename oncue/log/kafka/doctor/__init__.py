"""Checks of a Kafka cluster, for `oncue doctor`."""
