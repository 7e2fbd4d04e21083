"""Everything Docora keeps in Redis: job queues, live counters and heartbeats.

Losing all of it loses no work, because the database holds the intent.
"""
