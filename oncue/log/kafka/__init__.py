"""The log on Apache Kafka: for more than one machine, or where a cluster is there already. The only aiokafka import.

    append ──► Writer (a queue a partition, one batch of it under way) ──► idempotent producer, acks=all ──► futures, watchers
    commit ──► Transactions (a producer an input partition) ──► records and the group's offsets, together
    read   ──► KafkaReader ◄── Fetcher (few connections for all readers, read_committed) ◄── brokers
               └── Membership: which partitions of a group are this process's

A Record is a Kafka record, a Batch what is stored as one batch. Offsets are Kafka's: the marks that end a transaction take
offsets too. An empty key is no key; in a compacted topic an empty value is a tombstone.
"""

from oncue.log.kafka.log import KafkaLog

__all__ = ["KafkaLog"]
