"""One sync of one watch. Start in `attempt.py`; `engine.md` explains the rules.

| step | modules |
|---|---|
| claim | `claim`; then `lease` fences what the attempt writes, and `slots` shares out the app's slots among its runs |
| notices | `events` |
| send | `sender`: `content` reads files, `channel` reaches the app, `responses` decides what each response means |
| | `endpoint_health` and `pace`: is the app down, is it too busy? `time_slice`: does another watch wait? |
| record | `recorder` and `failures` write, in one transaction for each batch |
| finish | `outcomes` and `circuit`; `drift` if there was nothing to send; `dead_processes` if the process died |

The plan itself is made in `planning`. `notification` and `exceptions` hold what the modules pass to each other.
"""
