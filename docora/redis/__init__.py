"""Everything Docora keeps in Redis: job queues, live counters and heartbeats.

Losing Redis loses no work: the database records what is to be done, and jobs only wake workers.
"""
