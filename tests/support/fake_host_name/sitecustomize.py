"""Give this process another host name. Python imports this module from PYTHONPATH when it starts."""

import os
import socket

socket.gethostname = lambda: os.environ["FAKE_HOST_NAME"]
