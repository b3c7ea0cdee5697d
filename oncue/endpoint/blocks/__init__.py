"""Blocks: batch jobs whose nodes run an endpoint's tasks.

records.py     what the journal stores of a block
table.py       life of each block: asked, pending, running, draining, ended
scaling.py     how many are asked for; task_sizes.py, gang_packing.py: what the tasks need
limits.py, breaker.py, durations.py, task_walltimes.py: what stands against it
workers.py     connects them with the scheduler and the nodes
status.py      tells people
"""
