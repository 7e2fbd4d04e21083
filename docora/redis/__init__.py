"""Everything Docora keeps in Redis: job queues, live counters and heartbeats.

Losing Redis loses no work: the database records the work, and jobs only wake workers.
"""
