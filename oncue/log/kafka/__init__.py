"""Log on Apache Kafka, for several servers or an existing cluster.

The only package that imports aiokafka.

    append ──► KafkaWriter (queue per partition) ──► idempotent producer, acks=all ──► futures
    commit ──► Transactions (producers per input partition) ──► records and offsets, atomically
    read   ──► KafkaReader ◄── Fetcher (few connections, read_committed) ◄── brokers
               └── Membership: partitions of a group that this process owns

A Record is a Kafka record, a RecordBatch is a stored batch. Offsets are Kafka's: transaction
markers take offsets, too. An empty key is no key; in a compacted topic an empty value is a
tombstone.
"""

from oncue.log.kafka.log import KafkaLog

__all__ = ["KafkaLog"]
