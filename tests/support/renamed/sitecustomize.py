"""Python imports this from PYTHONPATH as it starts: the process believes that its machine has another name."""

import os
import socket

socket.gethostname = lambda: os.environ["NAME_OF_THE_MACHINE"]
